"""`kairos fidelity WORLD`: how far a dream drifts from the truth, on episodes it has never seen."""

import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from kairos_env.benchmarks.cells import cache_folder
from kairos_env.benchmarks.fidelity.config import FidelityConfig
from kairos_env.benchmarks.progress import Tell, progress_bar, teller
from kairos_env.terminal import result_console, run_command

if TYPE_CHECKING:
    from kairos_env.agents.data.dataset import Dataset
    from kairos_env.benchmarks.fidelity.conv_predictor import ConvConfig, ConvPredictor
    from kairos_env.worlds import World

# Episodes that are recorded for the baseline when no dataset is named.
BASELINE_EPISODES = 300


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compare a world with the simulator it was learned from: same start states, same actions.

    The episodes are new (no `kairos collect` uses their seeds). Beside the dream stand three
    baselines: the last frame, the mean frame, and a convolutional network without memory that is
    trained on the spot (once: it is kept for the next time).
    """

    world: Annotated[str, tyro.conf.Positional]
    """A bundled world's name, a folder, or OWNER/NAME on the hub."""
    config: Annotated[FidelityConfig, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=FidelityConfig
    )
    beside: tuple[str, ...] = ()
    """Other worlds of the same environment, named as the first: they dream the same episodes, and
    the report says episode by episode whose dreams are truer."""
    json: Path | None = None
    """Write everything that was measured to this file."""
    strips: Path | None = None
    """Write a picture: truth above, dream and baseline below."""
    write: bool = False
    """Put a summary into the world's world.json and card."""
    baseline_updates: int = 2000
    """Updates of the convolutional baseline; 0 leaves it out."""
    baseline_data: tuple[Path, ...] = ()
    """Datasets for it, best those of the world itself. Without any, the first 300 episodes of the
    recipe that the world was made from are recorded."""
    cache: Path | None = None
    """Where the baseline is kept; ~/.cache/kairos-env when not given."""
    threads: int = 1
    """CPU threads. On a shared machine one is far faster than several that wait for each other."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if len(set(self.beside)) < len(self.beside):
            raise ValueError(f"--beside names a world twice: {' '.join(self.beside)}")
        if self.baseline_updates < 0:
            raise ValueError(f"--baseline-updates must not be negative: {self.baseline_updates}")


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit status."""
    return run_command(
        "kairos fidelity",
        Arguments,
        run,
        argv,
        interrupted="Interrupted. Nothing was written; a trained baseline is kept.",
    )


def run(arguments: Arguments) -> None:
    """Measure, print, write."""
    import torch

    from kairos_env.benchmarks.fidelity import report
    from kairos_env.benchmarks.fidelity.measure import measure
    from kairos_env.worlds import load_world

    torch.set_num_threads(arguments.threads)
    world = load_world(arguments.world, device=arguments.device)
    beside = {name: load_world(name, device=arguments.device) for name in arguments.beside}
    with progress_bar() as bar:
        tell = teller(bar)
        network, facts = _baseline(world, arguments, tell)
        conv = None if network is None else _predictor(network, world)
        measured = measure(world, arguments.config, conv=conv, beside=beside, on_progress=tell)
    content = report.document(
        measured,
        command=" ".join(["kairos", *sys.argv[1:]]),
        device=arguments.device,
        more={"conv_baseline": facts},
    )
    console = result_console()
    report.print_report(content, console)
    if arguments.json is not None:
        report.write_report(arguments.json, content)
        console.print(f"wrote {arguments.json}", highlight=False)
    if arguments.strips is not None:
        report.write_strips(arguments.strips, measured)
        console.print(f"wrote {arguments.strips}", highlight=False)
    if arguments.write:
        report.write_into_world(world, content)
        console.print(f"wrote the summary into {world.path}", highlight=False)


def _predictor(network: "ConvPredictor", world: "World") -> Any:
    from kairos_env.benchmarks.fidelity.conv_predictor import ConvBaseline

    F = world.manifest.environment.frames_per_chunk
    return ConvBaseline(network.to(world.model.device), world.model.tokenizer, F)


def _baseline(
    world: "World", arguments: Arguments, tell: Tell
) -> "tuple[ConvPredictor | None, dict[str, Any]]":
    """The convolutional baseline, trained now or earlier, and what its training took."""
    from kairos_env.agents.training.clips import encoder_fingerprint
    from kairos_env.benchmarks.fidelity import conv_predictor as conv

    if not arguments.baseline_updates:
        return None, {"left_out": "--baseline-updates 0"}
    model = world.model.config
    if model.tokenizer.temporal != 1:
        return None, {"left_out": "the tokenizer codes several frames together"}
    config: ConvConfig = conv.ConvConfig(steps=arguments.baseline_updates)
    dataset = _dataset(world, arguments, tell)
    shape = (
        model.latent_shape,
        model.actions_per_frame * model.action_size,
        model.heads.state_size,
    )

    def train() -> "tuple[ConvPredictor, dict[str, Any]]":
        encoding, training = "encoding frames for the baseline", "training the baseline"
        data = conv.read_dataset(
            dataset, world.model.tokenizer, lambda done: tell(encoding, done, 1.0)
        )
        network, facts = conv.train(data, config, lambda done: tell(training, done, 1.0))
        return network, {"data": dataset.path, "episodes": len(dataset), **facts}

    name = f"{encoder_fingerprint(world.model.tokenizer)} {dataset.fingerprint()}"
    return conv.cached(_cache(arguments), name, config, train, shape)


def _dataset(world: "World", arguments: Arguments, tell: Tell) -> "Dataset":
    """What the baseline learns from: what was named, or the beginning of the world's own data."""
    from kairos_env.agents.collect import collect
    from kairos_env.agents.data.readers import open_dataset
    from kairos_env.agents.policies import PolicySpec
    from kairos_env.benchmarks.fidelity.episodes import policy_specs, real_twin

    if arguments.baseline_data:
        return open_dataset(arguments.baseline_data)
    e = world.manifest.environment
    recipe = (world.manifest.provenance.get("data") or {}).get("recipe") or {}
    told = recipe.get("policies") or ()
    # a checkpoint of another machine cannot act here
    keys = {field.name for field in dataclasses.fields(PolicySpec)}
    kinds = ("random", "smooth", "expert")
    specs = [PolicySpec(**{k: p[k] for k in keys & p.keys()}) for p in told if p["name"] in kinds]
    if not specs:
        env = real_twin(e, horizon=e.horizon)
        specs = list(policy_specs((), env))
        env.close()
    out = _cache(arguments) / f"data-{_name(world, specs)}"
    collect(
        e.id,
        episodes=BASELINE_EPISODES,
        out=out,
        policies=specs,
        seed=recipe.get("seed") or 0,
        chunk=e.chunk,
        frames_per_chunk=e.frames_per_chunk,
        frame_size=e.frame_size,
        horizon=e.horizon,
        on_episode=lambda done, _: tell("episodes for the baseline", done, BASELINE_EPISODES),
        **dict(e.kwargs),
    )
    return open_dataset(out)


def _name(world: "World", specs: Sequence[Any]) -> str:
    text = f"{world.manifest.environment} {[dataclasses.asdict(spec) for spec in specs]}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _cache(arguments: Arguments) -> Path:
    if arguments.cache is not None:
        return arguments.cache
    return cache_folder() / "fidelity"
