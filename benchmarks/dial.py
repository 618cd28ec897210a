"""What each setting of a dream wins in speed and costs in fidelity.

Every setting turns one knob of a world's own: denoising steps, window, precision, compiler. Errors
are against the truth, on the same held-out episodes for all settings; times are processor times of
a step with pictures, taken in turns.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import torch
import tyro
from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table
from torch import Tensor

from kairos_env.benchmarks.environment import started, stepping
from kairos_env.benchmarks.fidelity.config import FidelityConfig
from kairos_env.benchmarks.fidelity.measure import DREAM, Evidence, gather, summarise
from kairos_env.benchmarks.fidelity.predictors import Dream
from kairos_env.benchmarks.fidelity.report import plain
from kairos_env.benchmarks.machine import results_folder, write_results
from kairos_env.benchmarks.tables import cell
from kairos_env.benchmarks.timing import Clock
from kairos_env.catalogue import bundled_worlds
from kairos_env.dreams import Precision, rounded
from kairos_env.terminal import run_command
from kairos_env.world_model.state import DreamState
from kairos_env.world_model.world_model import Prediction, WorldModel
from kairos_env.worlds import World, load_world

Json = dict[str, Any]
Setting = Mapping[str, Any]
OWN = "its own"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DialBench:
    """Turn the dial of worlds; writes benchmarks/results/dial-WORLD-MACHINE.json for each."""

    worlds: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names or folders; all bundled ones if none."""
    denoise_steps: tuple[int, ...] = (2, 4)
    windows: tuple[int, ...] = (1, 2)
    precisions: tuple[Precision, ...] = ("bfloat16",)
    compile: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Time the compiled step too: minutes for each batch size."""
    batches: tuple[int, ...] = (1, 8)
    episodes: int = 50
    """Held-out episodes; the longest hundred-frame ones take most of the time."""
    horizon: int = 50
    rounds: int = 30
    seconds: float = 5.0
    """Most processor time for one setting at one batch size."""
    threads: int = 1
    out: Path | None = None
    """Folder for the results; benchmarks/results of the checkout by default."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialled:
    """A world model under a setting, as `predictors.Dream` asks one."""

    model: WorldModel
    denoise_steps: int | None = None
    precision: Precision = "float32"

    @property
    def config(self) -> Any:
        """The model's."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """The model's."""
        return self.model.device

    def start(self, frames: Tensor, actions: Tensor, *, seeds: Tensor) -> DreamState:
        """Begin under the setting."""
        with rounded(self.device, self.precision):
            return self.model.start(frames, actions, seeds=seeds)

    def step(self, state: DreamState, chunk: Tensor) -> tuple[DreamState, Prediction]:
        """Step under the setting."""
        with rounded(self.device, self.precision):
            return self.model.step(state, chunk, denoise_steps=self.denoise_steps)


def settings(world: World, bench: DialBench) -> dict[str, Setting]:
    """The arguments of `DreamVectorEnv` by setting, one knob at a time."""
    model = world.manifest.model
    turned: dict[str, Setting] = {OWN: {}}
    for steps in bench.denoise_steps:
        if steps != model.denoise_steps:
            turned[f"denoise_steps={steps}"] = {"denoise_steps": steps}
    for window in bench.windows:
        if window != model.transformer.window:
            turned[f"window={window}"] = {"window": window}
    turned |= {f'precision="{name}"': {"precision": name} for name in bench.precisions}
    if bench.compile:
        turned["compile=True"] = {"compile": True}
    return turned


def fidelity(world: World, bench: DialBench, turned: Mapping[str, Setting], bar: Bar) -> Json:
    """Errors by setting; a compiled step computes what the plain one does and is left out."""
    config = FidelityConfig(
        episodes=bench.episodes, horizon=bench.horizon, horizons=(10, bench.horizon), resamples=200
    )
    judged = {name: setting for name, setting in turned.items() if "compile" not in setting}
    task = bar.add_task(f"{world.name}: fidelity", total=bench.episodes * (len(judged) + 1))

    def tell(what: str, done: int, of: int) -> None:
        bar.advance(task, done - told.get(what, 0))
        told[what] = done

    told: dict[str, int] = {}
    evidence = _evidence(world, config, judged, tell)
    summary = summarise(evidence, config, state_names=world.manifest.environment.state_names)
    found = plain(summary["predictors"])
    return {name: found[DREAM if name == OWN else name] for name in judged}


def _evidence(
    world: World, config: FidelityConfig, judged: Mapping[str, Setting], tell: Any
) -> Evidence:
    from kairos_env.benchmarks.fidelity.episodes import HeldOut

    predictors = {}
    for name, setting in judged.items():
        knobs = dict(setting)
        model = world.model
        if "window" in knobs:
            model = world.with_window(knobs.pop("window")).model
        dialled = cast(WorldModel, Dialled(model=model, **knobs))  # all that a predictor asks of it
        predictors[DREAM if name == OWN else name] = Dream(dialled)
    held_out = HeldOut(world.manifest.environment, world.model.config.history, config)
    try:
        return gather(held_out, predictors, config, on_progress=tell)
    finally:
        held_out.close()


def speed(world: World, bench: DialBench, turned: Mapping[str, Setting]) -> Json:
    """Milliseconds of a step by batch size and setting."""
    clock = Clock(rounds=bench.rounds, seconds=bench.seconds, processor=True)
    times: Json = {}
    for B in bench.batches:
        work = {name: stepping(started(world, B, **setting)) for name, setting in turned.items()}
        times[str(B)] = {name: 1e3 * t for name, t in clock.medians(work).items()}
    return times


def rows(turned: Mapping[str, Setting], times: Json, errors: Json) -> list[Json]:
    """One row for each setting."""
    result = []
    for name in turned:
        row: Json = {"setting": name, "step_ms": {B: t[name] for B, t in times.items()}}
        horizons = errors.get(name, {}).get("horizons", {})
        for horizon, found in horizons.items():
            objects = found.get("objects", {})
            row[f"at_{horizon}"] = {
                "psnr": _value(found["psnr"]),
                "state": _value(found.get("state")),
                "objects_px": {k: _value(v["error_px"]) for k, v in objects.items()},
            }
        result.append(row)
    return result


def _value(estimate: Json | None) -> float | None:
    return None if estimate is None else estimate["value"]


def report(world: World, table: Sequence[Json]) -> Table:
    """The rows for a person."""
    shown = Table("setting", title=f"world {world.name}", title_justify="left")
    marks = [key for key in table[0] if key.startswith("at_")]
    for B in table[0]["step_ms"]:
        shown.add_column(f"ms, {B} dreams", justify="right")
    for mark in marks:
        shown.add_column(f"PSNR, frame {mark[3:]}", justify="right")
    for row in table:
        quality = [cell(row.get(mark, {}).get("psnr")) for mark in marks]
        shown.add_row(row["setting"], *map(cell, row["step_ms"].values()), *quality)
    return shown


def main(argv: Sequence[str]) -> int:
    """`kairos bench dial`."""
    return run_command(
        "kairos bench dial", DialBench, run, argv, also=(), failed=2, interrupted="Interrupted."
    )


def run(bench: DialBench) -> None:
    """Measure, print and write, world by world."""
    torch.set_num_threads(bench.threads)
    for name in bench.worlds or bundled_worlds():
        _one(load_world(name), bench, Console())


def _one(world: World, bench: DialBench, console: Console) -> None:
    turned = settings(world, bench)
    with Bar(console=console, transient=True) as bar:
        errors = fidelity(world, bench, turned, bar)
        bar.add_task(f"{world.name}: speed", total=None)
        table = rows(turned, speed(world, bench, turned), errors)
    console.print(report(world, table))
    results = {
        "world": {"name": world.name, "fingerprint": world.fingerprint},
        "episodes": bench.episodes,
        "rows": table,
    }
    path = write_results(f"dial-{world.name}", results, folder=bench.out or results_folder())
    console.print(f"wrote {path}", highlight=False)
