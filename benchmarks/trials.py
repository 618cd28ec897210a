"""Policies in the real twin of a world: the same held-out episodes for each, and what they cost.

A trial is one episode of one policy. It is a function of the seed, the episode's number and the
policy, so a measurement can stop after any trial and go on later; the file is whole at any time.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.flop_counter import FlopCounterMode

from kairos_env.agents.data.files import read_json, write_json
from kairos_env.agents.policies import Policy
from kairos_env.benchmarks.fidelity.episodes import ACTING, HELD_OUT_FROM, held_out_seed
from kairos_env.benchmarks.fidelity.statistics import Bootstrap
from kairos_env.benchmarks.machine import commit, describe_machine
from kairos_env.kernels import dispatch
from kairos_env.real import RealEnv
from kairos_env.worlds import World

Json = dict[str, Any]
Progress = Callable[[int, int], None]
RESAMPLES = 1000
# Policies between which shares are told: 0 is the one, 1 the other.
WORST, BEST = "random", "expert"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contestant:
    """A policy that is tried, and the settings that make it what it is."""

    policy: Policy
    settings: Json
    thinks: bool = True
    """Whether its decisions cost something that is worth telling."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trials:
    """What is tried, and where it is written down.

    Args:
        world: Whose twin it is.
        contestants: By name, in the order of the table.
        episodes: Of each.
        seed: Decides the episodes and all policies' randomness.
        path: The results; None keeps them in memory alone.
        name: What kind of results these are.
        command: As it was given.
        device: Where the world runs.
    """

    world: World
    contestants: Mapping[str, Contestant]
    episodes: int
    seed: int
    path: Path | None
    name: str
    command: str
    device: str

    def run(self, env: RealEnv, on_progress: Progress | None = None) -> Json:
        """Try what has not been tried yet; returns the whole document.

        Args:
            env: The real twin.
            on_progress: Called with (trials done, of).

        Raises:
            ValueError: The file holds another measurement.
        """
        document = self._opened()
        for name, contestant in self.contestants.items():
            if contestant.thinks and name not in document["costs"]:
                document["costs"][name] = {"gflop": gigaflops(env, contestant.policy)}
        wanted = [(n, name) for n in range(self.episodes) for name in self.contestants]
        done = {(trial["episode"], trial["policy"]) for trial in document["trials"]}
        for number, (episode, name) in enumerate(wanted):
            if on_progress is not None:
                on_progress(number, len(wanted))
            if (episode, name) not in done:
                document["trials"].append(self._trial(env, episode, name))
                self._write(document)
        if on_progress is not None:
            on_progress(len(wanted), len(wanted))
        return document

    def _trial(self, env: RealEnv, episode: int, name: str) -> Json:
        """One episode."""
        policy = self.contestants[name].policy
        frame, _ = env.reset(seed=held_out_seed(self.seed, episode))
        policy.begin(env, np.random.default_rng([self.seed, ACTING, episode]))
        steps, gained, over, success = 0, 0.0, False, False
        wall: list[float] = []
        cpu: list[float] = []
        while not over:
            step = policy.step(env, frame)
            frame, steps, gained = step.frame, steps + 1, gained + step.reward
            over = step.terminated or step.truncated
            success = success or bool(step.info.get("success", False))
            if "decision_seconds" in step.info:
                wall.append(1e3 * step.info["decision_seconds"])
                cpu.append(1e3 * step.info["decision_cpu_seconds"])
        trial: Json = {"policy": name, "episode": episode, "success": success}
        trial |= {"return": round(gained, 5), "steps": steps}
        for key, values in (("wall_ms", wall), ("cpu_ms", cpu)):
            trial[key] = round(float(np.median(values)), 3) if values else None
        return trial

    def _opened(self) -> Json:
        """The document so far: a new one, or the file's if it is of this measurement."""
        settings = {name: c.settings for name, c in self.contestants.items()}
        fresh: Json = {
            "name": self.name,
            "command": self.command,
            "commit": commit(),
            "machine": describe_machine(self.device),
            "world": {"name": self.world.name, "fingerprint": self.world.fingerprint},
            "environment": self.world.manifest.environment.id,
            "seed": self.seed,
            "policies": settings,
            "costs": {},
            "results": {},
            "trials": [],
        }
        if self.path is None or not self.path.exists():
            return fresh
        old = read_json(self.path)
        for key in ("name", "world", "environment", "seed", "policies"):
            if old.get(key) != fresh[key]:
                raise ValueError(
                    f"{self.path} holds another measurement: its {key} is {old.get(key)!r}, here "
                    f"it is {fresh[key]!r}. Give another --json, or delete the file"
                )
        held = 1 + max((trial["episode"] for trial in old["trials"]), default=-1)
        if held > self.episodes:
            raise ValueError(
                f"{self.path} holds {held} episodes already: ask for as many or more, or give "
                "another --json"
            )
        return fresh | {key: old[key] for key in ("trials", "costs", "results")}

    def _write(self, document: Json) -> None:
        document["results"] = summary(document["trials"], self.contestants)
        document["measured_at"] = datetime.now(UTC).isoformat(timespec="seconds")
        if self.path is not None:
            write_json(self.path, document)


def summary(trials: Sequence[Json], names: Mapping[str, object]) -> Json:
    """What each policy achieved in the episodes that all have played, with 95 % intervals."""
    played = [{t["episode"] for t in trials if t["policy"] == name} for name in names]
    common = set.intersection(*played)
    if not common:
        return {}
    of = {
        name: [t for t in trials if t["policy"] == name and t["episode"] in common]
        for name in names
    }
    means = {name: float(np.mean([t["return"] for t in mine])) for name, mine in of.items()}
    return {name: _row(mine, means, name) for name, mine in of.items()}


def _row(trials: Sequence[Json], means: Mapping[str, float], name: str) -> Json:
    """What one policy achieved."""
    boot = Bootstrap(len(trials), resamples=RESAMPLES, seed=0)
    row: Json = {
        "episodes": len(trials),
        "success": proportion(sum(trial["success"] for trial in trials), len(trials)),
    }
    for key in ("return", "steps"):
        values = np.array([[trial[key]] for trial in trials], np.float64)
        row[key] = dataclasses.asdict(boot.mean(values))
    if BEST in means and means[BEST] != means[WORST]:
        row["share"] = (means[name] - means[WORST]) / (means[BEST] - means[WORST])
    for key in ("wall_ms", "cpu_ms"):
        medians = [trial[key] for trial in trials if trial[key] is not None]
        row[key] = float(np.median(medians)) if medians else None
    return row


def proportion(hits: int, n: int) -> Json:
    """A share with Wilson's 95 % interval: a bootstrap of none or all hits has no width."""
    z = 1.96
    middle = (hits + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(hits * (n - hits) / n + z**2 / 4)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return {"value": hits / n, "low": low, "high": high, "n": n}


def gigaflops(env: RealEnv, policy: Policy) -> float:
    """Billions of floating-point operations of one decision, looking included.

    Counted in the torch versions of all kernels: the counter does not see into others. Elementwise
    operations are not counted.
    """
    frame, _ = env.reset(seed=HELD_OUT_FROM)
    policy.begin(env, np.random.default_rng(0))
    frame = policy.step(env, frame).frame  # the first look at an episode costs something else
    with _torch_kernels(), FlopCounterMode(display=False) as counter:
        policy.step(env, frame)
    return float(counter.get_total_flops()) / 1e9


@contextmanager
def _torch_kernels() -> Iterator[None]:
    before = os.environ.get(dispatch.VARIABLE)
    os.environ[dispatch.VARIABLE] = "torch"
    try:
        yield
    finally:
        if before is None:
            del os.environ[dispatch.VARIABLE]
        else:
            os.environ[dispatch.VARIABLE] = before
