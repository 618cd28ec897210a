"""`kairos imagine WORLD --out RUN`: train in the dream, examine in reality."""

import sys
from collections.abc import Sequence

import tyro
from rich.console import Console

from kairos_env.agents.imagine.config import StudyConfig

INTERRUPTED = 130
PIPE_WIDTH = 110


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit status."""
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        run(tyro.cli(StudyConfig, args=list(argv), prog="kairos imagine"))
    except KeyboardInterrupt:
        errors.print("Interrupted. The last round is kept; the same command goes on.")
        return INTERRUPTED
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        errors.print(f"kairos imagine: {error}", markup=False, style="red")
        return 1
    return 0


def run(config: StudyConfig) -> None:
    """Train, examine, print, write."""
    import torch

    from kairos_env.agents.imagine.report import Live, draw_curves, print_results
    from kairos_env.agents.imagine.study import imagine

    torch.set_num_threads(config.threads)
    with Live() as live:
        results = imagine(config, live)
    # a file or a pipe has no width of its own
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    print_results(results, console)
    picture = draw_curves(config.out)
    if picture is None:
        console.print('no curves: pip install "kairos-env[study]"', highlight=False)
    console.print(f"wrote {config.out / 'results.json'} and policy.zip beside it", highlight=False)
