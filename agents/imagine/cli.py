"""`kairos imagine WORLD --out RUN`: train in the dream, examine in reality."""

from collections.abc import Sequence

from kairos_env.agents.imagine.config import StudyConfig
from kairos_env.terminal import result_console, run_command


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit status."""
    return run_command("kairos imagine", StudyConfig, run, argv)


def run(config: StudyConfig) -> None:
    """Train, examine, print, write."""
    import torch

    from kairos_env.agents.imagine.report import Live, draw_curves, print_results
    from kairos_env.agents.imagine.study import imagine

    torch.set_num_threads(config.threads)
    with Live() as live:
        results = imagine(config, live)
    console = result_console()
    print_results(results, console)
    picture = draw_curves(config.out)
    if picture is None:
        console.print('no curves: pip install "kairos-env[study]"', highlight=False)
    console.print(f"wrote {config.out / 'results.json'} and policy.zip beside it", highlight=False)
