"""Everything a study has measured, as one document.

Two scores: the return, and success where the task's episodes terminate exactly when it is solved
(a dream says when it ends, not why). `agreement.py` compares each between truth and every side.

Legend: P policies, E episodes.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kairos_env.benchmarks.fidelity.report import plain
from kairos_env.benchmarks.machine import commit, describe_machine
from kairos_env.benchmarks.study.agreement import agreement, means
from kairos_env.benchmarks.study.shards import FORMAT, Plan, read_outcomes
from kairos_env.benchmarks.study.sides import DREAM, REPLAY, STATE, TRUTH, Outcomes

Json = dict[str, Any]
Table = NDArray[np.float64]
"""(P, E): one number for each episode."""

SUCCESS, RETURN = "success", "return"
# What each side is, in the words of the report.
SIDES = {
    DREAM: "acting in the dream",
    STATE: "acting in the dream on its state head",
    REPLAY: "true actions replayed in the dream",
}


def summarise(plan: Plan, folder: Path, sides: Sequence[str], *, drift: Json) -> Json:
    """The document of a study whose shards are all there.

    Args:
        plan: What is studied.
        folder: Where.
        sides: Those that were run, truth among them.
        drift: From `drift.py`; empty when it was left out.
    """
    P = range(len(plan.grades))
    found = {side: [read_outcomes(folder, (i, side)) for i in P] for side in sides}
    tables = {side: scores(found[side]) for side in sides}
    solved = ends_when_solved(found[TRUTH])
    names = [SUCCESS] * solved + [RETURN]
    e, config = plan.world.manifest.environment, plan.config
    return {
        "name": "study",
        "format": FORMAT,
        "command": " ".join(["kairos", *sys.argv[1:]]),
        "commit": commit(),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(str(plan.world.model.device)),
        "world": {"name": plan.world.name, "fingerprint": plan.world.fingerprint},
        "environment": {"id": e.id, "kwargs": dict(e.kwargs), "chunk": e.chunk},
        "config": dataclasses.asdict(config) | {"steps": plan.steps},
        "success": "the episode terminates" if solved else None,
        "agreement": {
            side: {
                name: agreement(
                    dream=tables[side][name],
                    truth=tables[TRUTH][name],
                    resamples=config.resamples,
                    seed=config.seed,
                )
                for name in names
            }
            for side in sides
            if side != TRUTH
        },
        "policies": _policies(plan, found, tables, names),
        "drift": drift,
    }


def document(*args: Any, **kwargs: Any) -> Json:
    """`summarise` with JSON values in the place of estimates."""
    content: Json = plain(summarise(*args, **kwargs))
    return content


def scores(policies: Sequence[Outcomes]) -> dict[str, Table]:
    """Each score's table (P, E)."""
    return {
        SUCCESS: np.stack([one.ended.astype(np.float64) for one in policies]),
        RETURN: np.stack([one.returns for one in policies]),
    }


def ends_when_solved(truth: Sequence[Outcomes]) -> bool:
    """Whether true episodes terminated exactly when the task was solved."""
    return all(bool((one.success == one.ended).all()) for one in truth)


def figure_cell(estimate: Json, *, sign: bool = False) -> str:
    """A figure with its interval: `0.973 [0.940, 0.991]`; signed for differences."""
    if estimate["value"] is None:
        return "-"
    form = "+.3f" if sign else ".3f"
    value, low, high = (format(estimate[key], form) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _policies(
    plan: Plan,
    found: Mapping[str, Sequence[Outcomes]],
    tables: Mapping[str, Mapping[str, Table]],
    names: Sequence[str],
) -> list[Json]:
    """A row for each policy, best in truth first."""
    c = plan.config
    estimates = {
        (side, name): means(table[name], resamples=c.resamples, seed=c.seed)
        for side, table in tables.items()
        for name in names
    }
    rows: list[Json] = []
    for i, grade in enumerate(plan.grades):
        row: Json = {
            "label": grade.label,
            "family": grade.family,
            "grade": dataclasses.asdict(grade),
            "place": i,
        }
        for side, outcomes in found.items():
            row[side] = {name: estimates[side, name][i] for name in names}
            row[side]["steps"] = float(outcomes[i].length.mean())
            if side != TRUTH:
                same = outcomes[i].ended == found[TRUTH][i].ended
                row[side]["same_ending"] = float(same.mean())
                row[side]["uncertainty"] = float(np.nanmean(outcomes[i].uncertainty))
        rows.append(row)
    return sorted(rows, key=lambda row: -float(row[TRUTH][names[0]].value or 0))
