"""One policy's run: practise, be examined, be judged, until the budget or the guard ends it.

    while the budget lasts:
        practise                 one round in the dream (or in reality, for a baseline)
        be examined              dreamed and real returns from the same fresh starts
        be judged                keep the best; stop when only the dream gets better

A run that was killed goes on from its last round when the same call is made again, and ends with
the same policy.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kairos_env.agents.data.files import BrokenDataError, read_json, write_bytes, write_json
from kairos_env.agents.imagine.algorithms import Learner
from kairos_env.agents.imagine.config import ImagineConfig
from kairos_env.agents.imagine.exam import Actor, Examiner, RealResult, actor
from kairos_env.agents.imagine.guard import Guard, Reading, Verdict
from kairos_env.agents.runs import keep_config

CONFIG, LOG, RESULT = "run.json", "log.jsonl", "result.json"
LEARNER, BEST, POLICY = "learner.pt", "best.pt", "policy.zip"
# What another run has kept, to begin with: as `Learner.save` wrote it, after one round.
HANDED_ON = "handed-on.pt"


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """A line of the log: an examination and what it took to get there."""

    reading: Reading
    success: float | None
    seconds: float
    """Of the whole run so far."""
    exam_steps: int
    """Low-level real actions that all examinations so far have used."""

    def to_json(self) -> dict[str, Any]:
        """JSON values; means for people, single returns for the guard."""
        reading = self.reading
        dreamed = None if reading.dreamed is None else reading.dreamed.tolist()
        return {
            "steps": reading.steps,
            "real": float(reading.real.mean()),
            "dreamed": None if reading.dreamed is None else float(reading.dreamed.mean()),
            "success": self.success,
            "uncertainty": reading.uncertainty,
            "seconds": round(self.seconds, 1),
            "exam_steps": self.exam_steps,
            "real_returns": reading.real.tolist(),
            "dreamed_returns": dreamed,
        }

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> "Entry":
        """The inverse."""
        dreamed = line["dreamed_returns"]
        reading = Reading(
            steps=line["steps"],
            dreamed=None if dreamed is None else np.array(dreamed),
            real=np.array(line["real_returns"]),
            uncertainty=line["uncertainty"],
        )
        return cls(reading, line["success"], line["seconds"], line["exam_steps"])


Tell = Callable[[Entry, float], None]
"""Shows an examination, and which share of the budget is spent."""
Judge = Callable[[list[Entry]], Verdict]
"""Decides over a run from all its examinations."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Practice:
    """Who practises, and until when."""

    config: ImagineConfig
    learner: Callable[[], Learner]
    """Made when there is something left to practise."""
    begin: Callable[[Learner], None] = lambda learner: None
    """Teaches a new learner what it should know before it practises. One that was handed on is
    examined first, and then begins anew where the run imitates."""
    judge: Judge
    dreams: bool = True
    """Whether examinations are dreamed too."""
    steps: int | None = None
    """Budget in steps; else the config's."""
    seconds: float = math.inf

    def spent(self, entries: list[Entry]) -> float:
        """The share of the budget that is spent, 1 when the run is over."""
        if not entries:
            return 0.0
        last = entries[-1]
        by_steps = last.reading.steps / self.steps if self.steps else 0.0
        return min(max(by_steps, last.seconds / self.seconds), 1.0)


def learn(practice: Practice, examiner: Examiner, folder: Path, tell: Tell) -> dict[str, Any]:
    """Run to the end; returns what the finished policy is worth, also in the folder's files."""
    open_folder(practice, folder)
    config, entries = practice.config, read_log(folder)
    if (folder / RESULT).exists():
        result: dict[str, Any] = read_json(folder / RESULT)
        done = result["stopped"] or practice.spent(entries) >= 1
        if done and result["steps"] == entries[-1].reading.steps:
            return result
    learner = practice.learner()
    try:
        handed_on = (folder / HANDED_ON).exists()
        if (folder / LEARNER).exists():
            learner.load(folder / LEARNER)
        elif handed_on:
            learner.load(folder / HANDED_ON)
        else:
            practice.begin(learner)
        act = actor(learner.predict, examiner.chunk, hold=config.hold)
        verdict = practice.judge(entries) if entries else Verdict(best=True)
        began = time.perf_counter() - (entries[-1].seconds if entries else 0.0)
        while not verdict.stop and practice.spent(entries) < 1:
            # Else it is to be examined first: killed before that, or it knows something already.
            if learner.rounds == len(entries):
                if verdict.back:
                    learner.go_back(folder / BEST)
                if handed_on and learner.rounds == 1 and config.imitate:
                    learner.forget()  # what it knew well it would hold on to
                    practice.begin(learner)
                if learner.rounds == len(entries):
                    learner.learn_at(verdict.pace)
                    learner.practise(config.round_steps)
                learner.save(folder / LEARNER)
            entries.append(examine(practice, examiner, act, learner, entries, began))
            verdict = practice.judge(entries)
            if verdict.best:
                learner.save(folder / BEST, replay=False)
                learner.export(folder / POLICY)
            write_log(folder, entries)
            tell(entries[-1], practice.spent(entries))
        return finish(practice, examiner, folder, learner, entries, verdict)
    finally:
        learner.close()


def examine(
    practice: Practice,
    examiner: Examiner,
    act: Actor,
    learner: Learner,
    entries: list[Entry],
    began: float,
) -> Entry:
    """Examine the policy as it stands."""
    reading, real = examiner.read(act, learner.steps, dream=practice.dreams)
    before = entries[-1].exam_steps if entries else 0
    spent = before + real.low_level_steps
    return Entry(reading, real.success, time.perf_counter() - began, spent)


def finish(
    practice: Practice,
    examiner: Examiner,
    folder: Path,
    learner: Learner,
    entries: list[Entry],
    verdict: Verdict,
) -> dict[str, Any]:
    """Test the last policy and the kept one on episodes that no examination has seen."""
    act = actor(learner.predict, examiner.chunk, hold=practice.config.hold)
    last = examiner.test(act)
    real = [entry.reading.real.mean() for entry in entries]
    best = entries[int(np.argmax(real))]
    kept = last
    if best is not entries[-1]:
        learner.load(folder / BEST)
        kept = examiner.test(act)
    result = {
        "steps": entries[-1].reading.steps,
        "kept_step": best.reading.steps,
        "kept_exam": float(max(real)),
        "seconds": entries[-1].seconds,
        "exam_steps": entries[-1].exam_steps,
        "stopped": verdict.reason or None,
        "kept": tested(kept),
        "last": tested(last),
        "gap_at_kept": None if best.reading.dreamed is None else best.reading.gap,
        "gap_at_last": None if entries[-1].reading.dreamed is None else entries[-1].reading.gap,
        "largest_fall": float(max(np.maximum.accumulate(real) - real)),
    }
    write_json(folder / RESULT, result)
    return result


def tested(result: RealResult) -> dict[str, Any]:
    """A test as JSON values; the error is the standard error of the mean return."""
    returns = result.returns
    error = returns.std(ddof=1) / math.sqrt(len(returns)) if len(returns) > 1 else None
    return {
        "return": float(returns.mean()),
        "error": None if error is None else float(error),
        "success": result.success,
        "episodes": len(returns),
    }


def guarded(guard: Callable[[], Guard]) -> Judge:
    """A judgement of all examinations in order; a guard remembers nothing else."""

    def judge(entries: list[Entry]) -> Verdict:
        fresh = guard()
        verdicts = [fresh.judge(entry.reading) for entry in entries]
        return verdicts[-1]

    return judge


def unguarded(entries: list[Entry]) -> Verdict:
    """Only keep the best."""
    return Verdict(best=is_best(entries))


def is_best(entries: list[Entry]) -> bool:
    """Whether the last examination is better than all before it."""
    *before, last = (float(entry.reading.real.mean()) for entry in entries)
    return last > max(before, default=-math.inf)


def converged(rounds: int, floor: float) -> Judge:
    """Stop when the best real return has not risen by 1 % of the gain for so many examinations."""

    def judge(entries: list[Entry]) -> Verdict:
        real = np.array([entry.reading.real.mean() for entry in entries])
        best = np.maximum.accumulate(real)
        old = len(best) > rounds and best[-1] - best[-1 - rounds] < 0.01 * abs(best[-1] - floor)
        steps = entries[-1].reading.steps
        reason = f"converged by step {steps}: no rise in {rounds} examinations" if old else ""
        return Verdict(best=is_best(entries), stop=bool(old), reason=reason)

    return judge


def open_folder(practice: Practice, folder: Path) -> None:
    """Claim a folder for a run.

    The budget is not part of it: a finished run that is given more of it goes on.
    """
    asked = {k: v for k, v in practice.config.as_json().items() if k not in ("steps", "minutes")}
    keep_config(folder / CONFIG, asked)


def read_log(folder: Path) -> list[Entry]:
    """The examinations of a run so far."""
    path = folder / LOG
    if not path.exists():
        return []
    try:
        lines = path.read_text("utf-8").splitlines()
        return [Entry.from_json(json.loads(line)) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenDataError(
            f"{path} is not the log of a run ({error!r}); delete {folder} to start again"
        ) from error


def write_log(folder: Path, entries: list[Entry]) -> None:
    """All of them, whole or not at all."""
    lines = (json.dumps(entry.to_json(), allow_nan=False) + "\n" for entry in entries)
    write_bytes(folder / LOG, "".join(lines).encode())
