"""How fast a replayed dream drifts: `kairos fidelity`'s measurement with a floor beneath it.

The floor is a dream that is right in everything: true frames, coded and decoded by the world's own
tokenizer and seen by the same eyes. Nothing that the dynamics learn can get below it.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kairos_env.agents.data.files import read_json, write_bytes, write_json
from kairos_env.benchmarks.fidelity.config import FidelityConfig
from kairos_env.benchmarks.fidelity.measure import DREAM, TRUTH, measure
from kairos_env.benchmarks.fidelity.predictors import Guess, Replay
from kairos_env.benchmarks.fidelity.report import plain
from kairos_env.benchmarks.study.config import StudyConfig
from kairos_env.world_model.world_model import WorldModel

if TYPE_CHECKING:
    from kairos_env.worlds import World

FLOOR = "floor"
# Frames at which there are intervals; the band is drawn through them.
MARKS = (1, 2, 3, 5, 7, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100, 150, 200)

# Episodes whose pictures are kept: the first ones, not chosen.
SHOWN = 4

Json = dict[str, Any]


class Drift(NamedTuple):
    """Errors by horizon, and the pictures of the first episodes."""

    document: Json
    truth: NDArray[np.uint8]
    """(N, T, H, W, 3)."""
    dream: NDArray[np.uint8]
    """(N, T, H, W, 3)."""
    lengths: NDArray[np.int64]
    """(N,): frames that exist."""


class Floor(Replay):
    """The truth through the tokenizer: pictures only."""

    def __init__(self, model: WorldModel) -> None:
        self._device, self._tokenizer = model.device, model.tokenizer

    @torch.no_grad()
    def step(self, memory: Any, chunk: NDArray[np.float32]) -> tuple[Any, Guess]:
        """What happened, coded and decoded."""
        memory, guess = super().step(memory, chunk)
        latents = self._tokenizer.encode(torch.from_numpy(guess.frames).to(self._device))
        return memory, Guess(self._tokenizer.decode(latents).cpu().numpy())


def drift(
    world: "World",
    config: StudyConfig,
    folder: Path,
    *,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Drift:
    """Measure, once: what is in the folder is read."""
    numbers, pictures = folder / "drift.json", folder / "drift.npz"
    if not numbers.exists():
        frames = config.drift_frames
        sizes = FidelityConfig(
            episodes=config.drift_episodes,
            seed=config.seed,
            horizon=frames,
            horizons=tuple(sorted({*(mark for mark in MARKS if mark < frames), frames})),
            shown=SHOWN,
            resamples=config.resamples,
        )
        report = measure(
            world,
            sizes,
            others={FLOOR: Floor(world.model)},
            on_progress=on_progress,
        )
        file = io.BytesIO()
        shown = {name: report.pictures[name] for name in (TRUTH, DREAM)}
        np.savez_compressed(file, lengths=report.lengths, **shown)
        write_bytes(pictures, file.getvalue())
        write_json(numbers, plain(report.document))
    with np.load(pictures, allow_pickle=False) as file:
        return Drift(read_json(numbers), file[TRUTH], file[DREAM], file["lengths"])
