"""Dreams that go on for a hundred thousand steps: memory, speed and numbers at their end.

Beside the old dreams stand young ones, put back to the old ones' snapshot at step 100 whenever they
are timed. The two take turns, so that whatever else the machine does meets both. An end that the
world predicts is counted and not obeyed: the dream goes on.

Everything that the run depends on is written down every block, so it can be stopped at any time and
goes on where it stood.
"""

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from kairos_env.agents.data.files import read_json, write_json
from kairos_env.vector_env import DreamVectorEnv
from kairos_env.worlds import World

Json = dict[str, Any]
Progress = Callable[[int, int], None]
YOUNG = 100
"""Age of the young dreams."""
LATE = 0.1
"""The last part of a run, whose speed is compared with the young dreams'."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Endurance:
    """One long run."""

    world: World
    dreams: int
    steps: int
    minutes: float
    """Processor time after which it stops, wherever it stands."""
    folder: Path
    """Where it is kept between calls."""
    block: int = 500
    """Steps between two notes."""
    pairs: int = 20
    """Steps of old and young dreams that are timed in turns, after each block."""
    seed: int = 0

    def run(self, on_progress: Progress | None = None) -> Json:
        """Dream until the steps are made or the minutes used; returns what `report` says."""
        old, young, log = self._make(), self._make(), self._opened()
        observation, infos = self._begin(old, log)
        first = len(log["blocks"])
        while log["steps"] < self.steps and log["cpu_seconds"] < 60 * self.minutes:
            start = time.process_time()
            for _ in range(min(self.block, self.steps - log["steps"])):
                observation, infos = self._step(old, log)
                if log["steps"] == YOUNG:
                    old.snapshot().save(self._path("young"))
            times = self._take_turns(old, young, log)
            log["cpu_seconds"] += time.process_time() - start
            log["in_space"] &= observation in old.observation_space
            log["blocks"].append(
                {
                    "steps": log["steps"],
                    "process": first,
                    "resident_mb": round(resident_bytes() / 2**20, 2),
                    "largest_deviation": round(_largest(old, infos), 3),
                    **times,
                }
            )
            self._keep(old, log)
            if on_progress is not None:
                on_progress(log["steps"], self.steps)
        old.close()
        young.close()
        return report(self, log)

    def _make(self) -> DreamVectorEnv:
        return DreamVectorEnv(
            self.dreams,
            world=self.world,
            observation="state" if self.world.manifest.model.heads.state_size else "latent",
            decode=False,
            horizon=2**31,
            autoreset_mode="Disabled",
        )

    def _begin(self, old: DreamVectorEnv, log: Json) -> tuple[Any, Json]:
        """Where the run stands."""
        if log["steps"]:
            return old.restore(self._path(log["kept"]))
        return old.reset(seed=self.seed)

    def _step(self, envs: DreamVectorEnv, log: Json) -> tuple[Any, Json]:
        """One step of the old dreams; the actions are a function of the step."""
        observation, *_, infos = envs.step(self._actions(envs, log["steps"]))
        log["steps"] += 1
        log["ends"] += int(envs.over.sum())
        carry_on(envs)
        return observation, infos

    def _take_turns(self, old: DreamVectorEnv, young: DreamVectorEnv, log: Json) -> Json:
        """Processor time of a step of either, medians in milliseconds."""
        if log["steps"] < YOUNG:
            return {}
        young.restore(self._path("young"))
        times: dict[str, list[float]] = {"old_ms": [], "young_ms": []}
        for n in range(self.pairs):
            for name, envs in (("old_ms", old), ("young_ms", young)):
                actions = self._actions(envs, log["steps"] + n)
                start = time.process_time()
                envs.step(actions)
                times[name].append(1e3 * (time.process_time() - start))
                log["ends"] += int(envs.over.sum()) if envs is old else 0
                carry_on(envs)
        log["steps"] += self.pairs
        return {name: round(float(np.median(values)), 4) for name, values in times.items()}

    def _actions(self, envs: DreamVectorEnv, step: int) -> NDArray[Any]:
        space, shape = envs.chunk_space, (self.dreams, *envs.chunk_space.shape)
        generator = np.random.default_rng([self.seed, step])
        if isinstance(space, spaces.Box):
            low, high = np.clip((space.low, space.high), -1e3, 1e3)
            return generator.uniform(low, high, shape).astype(np.float32)
        return generator.integers(space.nvec, size=shape) + space.start

    def _keep(self, old: DreamVectorEnv, log: Json) -> None:
        """Write down where the run stands; a kill in the middle leaves what was written before."""
        old.snapshot().save(self._path(log["steps"]))
        before, log["kept"] = log["kept"], log["steps"]
        write_json(self._log, log)
        if before:
            self._path(before).unlink()

    @property
    def _log(self) -> Path:
        return self.folder / f"{self.world.name}-{self.dreams}.json"

    def _path(self, age: str | int) -> Path:
        return self.folder / f"{self.world.name}-{self.dreams}-{age}.safetensors"

    def _opened(self) -> Json:
        """The notes of an earlier call, if they are of this run."""
        fresh: Json = {
            "fingerprint": self.world.fingerprint,
            "seed": self.seed,
            "block": self.block,
            "steps": 0,
            "kept": 0,
            "ends": 0,
            "cpu_seconds": 0.0,
            "in_space": True,
            "blocks": [],
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._log.exists():
            return fresh
        log: Json = read_json(self._log)
        if any(log.get(name) != fresh[name] for name in ("fingerprint", "seed", "block")):
            raise ValueError(f"{self._log} holds another run; delete it, or give another --folder")
        return log


def report(run: Endurance, log: Json) -> Json:
    """What a run shows, as far as it has come."""
    blocks = log["blocks"]
    late = [b for b in blocks if b["steps"] > (1 - LATE) * log["steps"] and "old_ms" in b]
    return {
        "dreams": run.dreams,
        "steps": log["steps"],
        "cpu_minutes": round(log["cpu_seconds"] / 60, 1),
        "young_ms": _median([b["young_ms"] for b in late]),
        "old_ms": _median([b["old_ms"] for b in late]),
        "old_to_young": _median([b["old_ms"] / b["young_ms"] for b in late]),
        "pairs": run.pairs * len(late),
        "memory_growth": round(_growth(blocks), 4),
        "resident_mb": blocks[-1]["resident_mb"],
        "memory_trend": round(_trend(blocks), 4),
        "processes": len({b["process"] for b in blocks}),
        "largest_deviation": max(b["largest_deviation"] for b in blocks),
        "in_space": log["in_space"],
        "predicted_ends": log["ends"],
    }


def _median(values: list[float]) -> float | None:
    """None for a run that is not old yet."""
    return round(float(np.median(values)), 4) if values else None


def carry_on(envs: DreamVectorEnv) -> None:
    """Let dreams that are said to be over go on."""
    if envs.over.any():
        snapshot = envs.snapshot()
        envs.restore(dataclasses.replace(snapshot, over=np.zeros_like(snapshot.over)))


def resident_bytes() -> int:
    """Memory of this process that lies in RAM; Linux alone tells it so."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _growth(blocks: list[Json]) -> float:
    """How much resident memory grew after the first block of a process, at worst: 0.01 is 1 %."""
    return max(max(mb) / mb[0] - 1.0 for mb in _memory(blocks).values())


def _trend(blocks: list[Json]) -> float:
    """The same between the medians of a process's first and last tenth: what stayed."""
    trends = []
    for mb in _memory(blocks).values():
        tenth = -(-len(mb) // 10)
        trends.append(float(np.median(mb[-tenth:]) / np.median(mb[:tenth])) - 1.0)
    return max(trends)


def _memory(blocks: list[Json]) -> dict[int, list[float]]:
    """Resident megabytes block by block, of each process that had a part in the run."""
    processes: dict[int, list[float]] = {}
    for block in blocks:
        processes.setdefault(block["process"], []).append(block["resident_mb"])
    return processes


def _largest(envs: DreamVectorEnv, infos: Json) -> float:
    """The largest number of the state, in deviations of the world's data."""
    heads = envs.world.model.heads
    state = infos["state"]
    if state.shape[-1] == 0:
        return 0.0
    mean, scale = (x.cpu().numpy() for x in (heads.state_mean, heads.state_scale))
    return float(np.abs((state - mean) / scale).max())
