"""`kairos bench ablation`: what each kind of memory is worth, at equal size, data and updates.

    windows   SWA SWA SWA SWA      near frames alone
    dilated   SWA SWA DSWA SWA     one window stretched
    hybrid    SWA SWA DSWA GLA     and one memory without an end

Each is trained on each dataset and then compared with the truth. The three differ by less than one
percent in parameters; operations of a step stand in the results.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

from kairos_env.agents.data.readers import open_dataset
from kairos_env.agents.training.cli import Arguments, run_config
from kairos_env.benchmarks.cells import Cells, Json, cell_folder
from kairos_env.benchmarks.efficiency.flops import parameters, step_operations
from kairos_env.benchmarks.fidelity.config import FidelityConfig
from kairos_env.benchmarks.fidelity.measure import DREAM, measure
from kairos_env.benchmarks.fidelity.report import document, show
from kairos_env.benchmarks.machine import write_results
from kairos_env.benchmarks.transformer import own_model
from kairos_env.terminal import run_command
from kairos_env.world_model.config import HYBRID, LayerKind
from kairos_env.world_model.presets import SIZES
from kairos_env.worlds import load_world

VARIANTS: dict[str, tuple[LayerKind, ...]] = {
    "windows": ("SWA", "SWA", "SWA", "SWA"),
    "dilated": ("SWA", "SWA", "DSWA", "SWA"),
    "hybrid": HYBRID,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationBench:
    """Train windows alone, with dilation, and with the delta rule, and compare their dreams.

    Each of datasets times variants is a cell; a stopped run goes on inside the cell where it
    stopped.
    """

    data: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Datasets; each is a scene of its own, called by its folder's name."""
    minutes: float = 60.0
    """Wall-clock budget of training each variant on each dataset. On a shared machine give steps:
    minutes are not equal there."""
    steps: tuple[int, ...] | None = None
    """Updates of tokenizer, dynamics, rollout and unroll instead."""
    stages: tuple[str, ...] | None = None
    """As for `kairos train`; all when not given."""
    memory: int | None = None
    """As for `kairos train`: frames after which what is out of sight shall still be known."""
    size: str = "small"
    variants: tuple[str, ...] = tuple(VARIANTS)
    episodes: int = 100
    """Held-out episodes that each world is compared on."""
    horizon: int = 100
    seed: int = 0
    threads: int = 1
    worlds: Path = Path("ablation")
    """Folder that keeps the trained worlds, DATASET-VARIANT, and the finished cells."""
    out: Path | None = None
    """Folder for the results; benchmarks/results of the checkout by default."""

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        unknown = sorted(set(self.variants) - set(VARIANTS))
        if unknown or not self.variants:
            raise ValueError(
                f"no variant {', '.join(unknown) or 'is named'}; there are {', '.join(VARIANTS)}"
            )
        names = [path.resolve().name for path in self.data]
        if len(set(names)) != len(names):
            raise ValueError(f"datasets need different folder names, got {', '.join(names)}")
        if self.size not in SIZES:
            raise ValueError(f"no size {self.size!r}; there are {', '.join(SIZES)}")

    @property
    def fidelity(self) -> FidelityConfig:
        """How the worlds are compared."""
        horizons = tuple(h for h in (1, 10, 50, 100) if h <= self.horizon)
        return FidelityConfig(
            episodes=self.episodes, horizon=self.horizon, horizons=horizons, seed=self.seed
        )


def run(bench: AblationBench) -> Json:
    """All cells."""
    told = settings(bench)
    cells = Cells(cell_folder("cells", told, bench.worlds))
    # Training shows its own bar.
    rows = [
        cells.read_or_measure(
            f"{path.resolve().name}-{variant}", partial(cell, bench, path, variant)
        )
        for path in bench.data
        for variant in bench.variants
    ]
    return {"settings": told, "rows": rows}


def settings(bench: AblationBench) -> Json:
    """Everything that a cell depends on."""
    free = {"data", "variants", "threads", "worlds", "out"}
    told = {k: v for k, v in dataclasses.asdict(bench).items() if k not in free}
    return told | {
        "data": {path.resolve().name: open_dataset(path).fingerprint() for path in bench.data}
    }


def cell(bench: AblationBench, path: Path, variant: str, tell: Callable[[float], None]) -> Json:
    """Train one variant on one dataset (or find it trained), and compare it with the truth."""
    from kairos_env.agents.training.loop import train

    scene = path.resolve().name
    out = bench.worlds / f"{scene}-{variant}"
    arguments = Arguments(
        data=(path,),
        out=out,
        minutes=bench.minutes,
        stages=bench.stages,
        steps=bench.steps,
        memory=bench.memory,
        size=bench.size,
        layers=VARIANTS[variant] * SIZES[bench.size].groups,
        name=f"{scene}-{variant}",
        seed=bench.seed,
        threads=bench.threads,
    )
    world = load_world(train(run_config(arguments)))
    tell(0.9)
    model = own_model(world)
    found = document(measure(world, bench.fidelity), command="", device="cpu", more={})
    return {
        "scene": scene,
        "variant": variant,
        "layers": list(model.config.transformer.layers),
        "reach": model.config.transformer.reach,
        "parameters": parameters(model),
        "megaflops_per_step": 1e-6 * step_operations(model, decode=False),
        "stages": world.manifest.provenance["stages"],
        "fingerprint": world.fingerprint,
        "horizons": found["predictors"][DREAM]["horizons"],
        "reward": found["reward"][DREAM],
        "reappearance": found["reappearance"][DREAM],
    }


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit status."""
    return run_command("kairos bench ablation", AblationBench, _measure, argv)


def _measure(bench: AblationBench) -> None:
    torch.set_num_threads(bench.threads)
    results = run(bench)
    _show(results)
    Console().print(f"written to {write_results('ablation', results, folder=bench.out)}")


def figures(row: Json) -> dict[str, Any]:
    """What a row's world is judged by, as estimates: objects and pictures soon and at last."""
    horizons = list(row["horizons"].items())
    told: dict[str, Any] = {}
    for horizon, found in horizons[1:2] + horizons[-1:]:
        for name, thing in found.get("objects", {}).items():
            told[f"{name}, px at {horizon}"] = thing["error_px"]
        told[f"PSNR at {horizon}"] = found["psnr"]
    told["reward R²"] = row["reward"]["r2"]
    for thing, seen in row["reappearance"].items():
        for gap in seen["gaps"]:
            to = f"-{gap['to']}" if gap["to"] else "+"
            told[f"{thing} after {gap['from']}{to} hidden, px"] = gap["error_px"]
    return told


def _show(results: Json) -> None:
    console = Console()
    for scene in dict.fromkeys(row["scene"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["scene"] == scene]
        table = Table(scene, *(row["variant"] for row in rows))
        table.add_row("parameters", *(f"{row['parameters']:,}" for row in rows))
        table.add_row("MFLOP a step", *(f"{row['megaflops_per_step']:.1f}" for row in rows))
        told = [figures(row) for row in rows]
        for name in told[0]:
            table.add_row(name, *(show(one.get(name)) for one in told))
        console.print(table)
