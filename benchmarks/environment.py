"""How fast dreams are behind Gymnasium's interface, and what limits them.

    kairos bench env               # rates, cold start, snapshots and forks
    kairos bench env --long        # and dreams of a hundred thousand steps (endurance.py)

Times are processor times of this process, medians of candidates that take turns: other work on the
machine disturbs them less. Only the cold start is by the clock.
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import Progress as Bar
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

from kairos_env.agents.training.allocator import keep_freed_memory
from kairos_env.benchmarks.efficiency.flops import step_operations
from kairos_env.benchmarks.endurance import Endurance
from kairos_env.benchmarks.machine import results_folder, write_results
from kairos_env.benchmarks.timing import Clock, Work, matmul_peak
from kairos_env.snapshot import DreamSnapshot
from kairos_env.terminal import run_command
from kairos_env.vector_env import DreamVectorEnv
from kairos_env.worlds import World, load_world

Json = dict[str, Any]
# What a process has to do before it has dreamed one step.
COLD = """
import time; wall, cpu = time.time(), time.process_time()
import gymnasium as gym, kairos_env, torch
torch.set_num_threads(1)
env = gym.make("Kairos-v0", world={world!r})
env.reset(seed=0); env.step(env.action_space.sample())
print(time.time() - wall, time.process_time() - cpu)
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvironmentBench:
    """Measure dreams on this machine; writes benchmarks/results/environment-WORLD-MACHINE.json."""

    world: tyro.conf.Positional[str | None] = None
    """A bundled world's name or a folder; the best bundled one if none."""
    batches: tuple[int, ...] = (1, 8, 64)
    """Numbers of dreams."""
    rounds: int = 50
    """Steps of each candidate."""
    seconds: float = 8.0
    """Most processor time for one candidate."""
    threads: int = 1
    forks: int = 1000
    """Dreams that continue one."""
    away: int = 1000
    """Steps after which a snapshot is gone back to."""
    cold_starts: int = 3
    long: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also dream `steps` steps; stopped, the same command goes on where it stood."""
    steps: int = 100_000
    long_batches: tuple[int, ...] = (1, 64)
    minutes: float = 15.0
    """Processor time for each of the long runs."""
    folder: Path = Path("endurance")
    """Where long runs are kept between calls."""
    out: Path | None = None
    """Folder for the results; benchmarks/results of the checkout by default."""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        for name in ("rounds", "threads", "forks", "away", "cold_starts", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do."""

    count: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and do it."""
        self.count += 1
        return func(*args, **(kwargs or {}))


def rates(world: World, bench: EnvironmentBench, clock: Clock) -> list[Json]:
    """Steps a processor second by number of dreams, and where the time of a step goes."""
    peak = matmul_peak(clock, torch.float32, 1024)
    operations = step_operations(world.model, decode=True)
    rows = []
    for B in bench.batches:
        make = partial(started, world, B)
        steps = world.manifest.model.denoise_steps
        whole, plain = make(), make(observation="latent", decode=False)
        further = make(observation="latent", decode=False, denoise_steps=steps + 1)
        times = clock.medians(
            {"whole": stepping(whole), "plain": stepping(plain), "further": stepping(further)}
        )
        one_pass = times["further"] - times["plain"]
        rows.append(
            {
                "dreams": B,
                "steps_per_cpu_second": B / times["whole"],
                "step_ms": 1e3 * times["whole"],
                "without_decoding_per_cpu_second": B / times["plain"],
                "decoding_ms": 1e3 * (times["whole"] - times["plain"]),
                "denoising_pass_ms": 1e3 * one_pass,
                "rest_ms": 1e3 * (times["plain"] - steps * one_pass),
                "gflop_per_dream": operations / 1e9,
                "fraction_of_matmul_peak": B * operations / times["whole"] / peak,
                "matmul_peak_gflops": peak / 1e9,
                "torch_operations": _operations(whole),
            }
        )
    return rows


def started(world: World, dreams: int, **kwargs: Any) -> DreamVectorEnv:
    """Dreams that have begun and never have to wait for a reset."""
    envs = DreamVectorEnv(dreams, world=world, horizon=2**31, autoreset_mode="SameStep", **kwargs)
    envs.reset(seed=0)
    envs.action_space.seed(0)
    return envs


def stepping(envs: DreamVectorEnv) -> Work:
    """One step with some action."""
    actions = [envs.action_space.sample() for _ in range(8)]
    turn = iter(range(2**31))
    return lambda: envs.step(actions[next(turn) % len(actions)])


def cold_start(world: World, bench: EnvironmentBench) -> Json:
    """Seconds from a new process to the first step, imports included: the median start."""
    name = world.name if world.path is None else str(world.path)
    code = COLD.format(world=name)
    environment = os.environ | {"OMP_NUM_THREADS": str(bench.threads)}
    starts = []
    for _ in range(bench.cold_starts):
        before = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        wall = time.perf_counter() - before
        starts.append((wall, float(done.stdout.split()[1])))
    wall, cpu = np.median(starts, axis=0)
    return {"wall_seconds": float(wall), "cpu_seconds": float(cpu), "starts": bench.cold_starts}


def snapshots(world: World, bench: EnvironmentBench, clock: Clock) -> Json:
    """What going back and forking cost, and whether they are exact."""
    envs = started(world, 1)
    act = stepping(envs)
    for _ in range(5):
        act()
    kept = envs.snapshot()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dream.safetensors"
        work: dict[str, Work] = {
            "snapshot": envs.snapshot,
            "restore": lambda: envs.restore(kept),
            "save": lambda: kept.save(path),
            "load": lambda: DreamSnapshot.load(path),
        }
        times = {f"{name}_ms": 1e3 * t for name, t in clock.medians(work).items()}
        size = path.stat().st_size
        exact = _same_future(envs, path, bench.away)
    weights = sum(p.nbytes for p in world.model.parameters())
    result = {"bytes": kept.nbytes(), "file_bytes": size, "weights_bytes": weights, **times}
    return result | {"exact_after_steps": bench.away if exact else 0} | _forks(envs, bench)


def _same_future(envs: DreamVectorEnv, path: Path, away: int) -> bool:
    """Whether a dream that comes back from a file after `away` steps goes on bit for bit."""
    envs.action_space.seed(1)
    actions = [envs.action_space.sample() for _ in range(20)]
    envs.restore(path)
    expected = _future(envs, actions)
    act = stepping(envs)
    for _ in range(away):
        act()
    envs.restore(path)
    pairs = zip(_future(envs, actions), expected, strict=True)
    return all(np.array_equal(mine, theirs) for mine, theirs in pairs)


def _future(envs: DreamVectorEnv, actions: Sequence[Any]) -> list[Any]:
    """Observations, rewards and ends of all steps, in a row."""
    return [told for action in actions for told in envs.step(action)[:4]]


def _forks(envs: DreamVectorEnv, bench: EnvironmentBench) -> Json:
    """One dream continued by many in one batch, without pictures."""
    one = started(envs.world, 1, observation="latent", decode=False)
    start = time.process_time()
    many = one.fork(bench.forks)
    forked = time.process_time() - start
    action = one.action_space.sample()
    start = time.process_time()
    seen: Any = many.step(np.repeat(action, bench.forks, axis=0))[0]
    stepped = time.process_time() - start
    alone: Any = one.step(action)[0]
    return {
        "forks": bench.forks,
        "fork_ms": 1e3 * forked,
        "forks_bytes": many.snapshot().nbytes(),
        "forks_step_ms": 1e3 * stepped,
        "forks_agree": bool((seen == seen[0]).all()),
        "fork_to_original": float(np.abs(seen[0] - alone[0]).max()),
    }


def _operations(envs: DreamVectorEnv) -> int:
    counter = Operations()  # type: ignore[no-untyped-call]  # torch gives no type
    with counter:
        envs.step(envs.action_space.sample())
    return counter.count


def endure(world: World, bench: EnvironmentBench, bar: Bar) -> list[Json]:
    """The long runs, with freed memory kept: else glibc's heap is now larger, now smaller."""
    keep_freed_memory()
    rows = []
    for dreams in bench.long_batches:
        task = bar.add_task(f"{dreams} dreams", total=bench.steps)
        run = Endurance(
            world=world,
            dreams=dreams,
            steps=bench.steps,
            minutes=bench.minutes,
            folder=bench.folder,
        )
        rows.append(run.run(lambda done, _, task=task: bar.update(task, completed=done)))  # type: ignore[misc]
    return rows


def report(results: Json) -> list[Table]:
    """The numbers for a person."""
    speed = Table("dreams", "steps / CPU s", "ms", "decoding", "a pass", "rest", "of peak", "calls")
    for row in results["speed"]:
        names = ("step_ms", "decoding_ms", "denoising_pass_ms", "rest_ms")
        times = [f"{row[name]:.2f}" for name in names]
        rate, share = row["steps_per_cpu_second"], row["fraction_of_matmul_peak"]
        speed.add_row(
            str(row["dreams"]), f"{rate:.0f}", *times, f"{share:.2f}", str(row["torch_operations"])
        )
    rest = Table("what", "value")
    for section in ("cold_start", "snapshots"):
        for name, value in results[section].items():
            rest.add_row(name.replace("_", " "), f"{value:,.4g}")
    tables = [speed, rest]
    if results.get("long"):
        long = Table(*(name.replace("_", " ") for name in results["long"][0]))
        for row in results["long"]:
            long.add_row(*map(str, row.values()))
        tables.append(long)
    return tables


def main(argv: Sequence[str]) -> int:
    """`kairos bench env`."""
    return run_command(
        "kairos bench env",
        EnvironmentBench,
        run,
        argv,
        also=(),
        failed=2,
        interrupted="Interrupted.",
    )


def run(bench: EnvironmentBench) -> None:
    """Measure, print, write."""
    console = Console()
    torch.set_num_threads(bench.threads)
    world = load_world(bench.world)
    results = measure(world, bench, console)
    for table in report(results):
        console.print(table)
    path = write_results(f"environment-{world.name}", results, folder=bench.out or results_folder())
    console.print(f"wrote {path}", highlight=False)


def measure(world: World, bench: EnvironmentBench, console: Console) -> Json:
    """Every section."""
    clock = Clock(rounds=bench.rounds, seconds=bench.seconds, processor=True)
    results: Json = {"world": {"name": world.name, "fingerprint": world.fingerprint}}
    with Bar(console=console, transient=True) as bar:
        task = bar.add_task("rates", total=3)
        results["speed"] = rates(world, bench, clock)
        bar.update(task, description="snapshots", advance=1)
        results["snapshots"] = snapshots(world, bench, clock)
        bar.update(task, description="cold starts", advance=1)
        results["cold_start"] = cold_start(world, bench)
        bar.update(task, advance=1)
        results["long"] = endure(world, bench, bar) if bench.long else []
    return results
