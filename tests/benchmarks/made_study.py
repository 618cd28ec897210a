"""A study's document made by hand: eight policies whose outcomes are drawn."""

import numpy as np

from kairos_env.benchmarks.fidelity.report import plain
from kairos_env.benchmarks.study.agreement import agreement, means
from kairos_env.benchmarks.study.grades import ladder

SIZES = {"resamples": 50, "seed": 0}


def made_document():
    """As `kairos study --no-drift` would leave it."""
    random, grades = np.random.default_rng(0), ladder(8, expert=True)
    chance = np.linspace(0.95, 0.05, len(grades))[:, None]
    tables = {side: (random.random((8, 50)) < chance).astype(float) for side in ("truth", "dream")}
    rows = {side: means(table, **SIZES) for side, table in tables.items()}
    found = agreement(**tables, **SIZES)
    content = {
        "command": "kairos study made",
        "commit": "0123456789abcdef",
        "measured_at": "2026-01-01T00:00:00+00:00",
        "machine": {"processor": "P", "threads": 1, "torch": "2"},
        "world": {"name": "made", "fingerprint": "f" * 16},
        "environment": {"id": "Made-v0"},
        "config": {"episodes": 50, "steps": 10},
        "agreement": {"dream": {"success": found, "return": found}},
        "policies": [
            {
                "label": grade.label,
                "family": grade.family,
                "truth": {"success": rows["truth"][i], "return": rows["truth"][i]},
                "dream": {
                    "success": rows["dream"][i],
                    "return": rows["dream"][i],
                    "same_ending": 0.9,
                    "uncertainty": 0.3,
                },
            }
            for i, grade in enumerate(grades)
        ],
        "drift": {},
    }
    return plain(content)
