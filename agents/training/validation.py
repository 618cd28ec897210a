"""Does the dream hold up on episodes it was never trained on? Numbers by horizon, and a picture.

This is the quick look during training; `kairos fidelity` is the full report against the simulator.
"""

from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from numpy.typing import NDArray

from kairos_env.agents.training import processes
from kairos_env.agents.training.clips import TrainingData, as_tensors
from kairos_env.agents.training.config import TrainConfig
from kairos_env.agents.training.learner import Learner, Metrics
from kairos_env.world_model.world_model import WorldModel

EPISODES = 32
HORIZONS = (1, 10, 50)
REAL = 3  # true frames before the dream begins
SHOWN = 4  # episodes in the picture
COLUMNS = (1, 2, 5, 10, 15, 20, 30, 40, 50)


def validate(
    config: TrainConfig, world: WorldModel, learner: Learner, data: TrainingData
) -> Metrics:
    """Judge the slow average of the weights, which is what will be kept; process 0 does."""
    average = learner.whole_average()
    if processes.number() > 0:
        return {}
    kept = {name: x.clone() for name, x in learner.target.state_dict().items()}
    learner.target.load_state_dict(average)
    try:
        with torch.no_grad():
            if learner.stage.learns == "tokenizer":
                return _reconstruct(config, world, learner, data)
            return _dream(config, world, learner, data)
    finally:
        learner.target.load_state_dict(kept)


def _reconstruct(
    config: TrainConfig, world: WorldModel, learner: Learner, data: TrainingData
) -> Metrics:
    frames = _held_out(config, learner, data, frames=2)["frames"]
    rebuilt = world.tokenizer.decode(world.tokenizer.encode(frames))
    picture = config.folder / f"{learner.stage.name}-{learner.step:06d}.png"
    _write_strips(picture, frames[:, :1].cpu().numpy(), rebuilt[:, :1].cpu().numpy())
    return {"psnr": _psnr(frames.cpu().numpy(), rebuilt.cpu().numpy())}


def _dream(config: TrainConfig, world: WorldModel, learner: Learner, data: TrainingData) -> Metrics:
    F = world.config.frames_per_chunk
    steps = -(-max(HORIZONS) // F)
    real = F * -(-REAL // F)
    clips = _held_out(config, learner, data, frames=real + steps * F)
    history = clips["frames"][:, :real]
    seeds = torch.arange(len(history), device=history.device)
    state = world.start(history, clips["actions"][:, : real - 1], seeds=seeds)
    dreamed = []
    for t in range(real - 1, real - 1 + steps * F, F):
        state, prediction = world.step(state, clips["actions"][:, t : t + F].flatten(1, 2))
        dreamed.append(prediction.frames)
    dream = torch.cat([frames for frames in dreamed if frames is not None], dim=1).cpu().numpy()
    truth = clips["frames"][:, real:].cpu().numpy()
    valid = clips["valid"][:, real:].cpu().numpy()
    last = np.broadcast_to(clips["frames"][:, real - 1 : real].cpu().numpy(), truth.shape)
    _write_strips(
        config.folder / f"{learner.stage.name}-{learner.step:06d}.png", truth[:SHOWN], dream[:SHOWN]
    )
    metrics: Metrics = {}
    for horizon in HORIZONS:
        exist = valid[:, horizon - 1]
        if exist.any():
            there = truth[exist, horizon - 1]
            metrics[f"psnr@{horizon}"] = _psnr(there, dream[exist, horizon - 1])
            metrics[f"copy@{horizon}"] = _psnr(there, last[exist, horizon - 1])
    return metrics


def _held_out(
    config: TrainConfig, learner: Learner, data: TrainingData, *, frames: int
) -> dict[str, torch.Tensor]:
    """The first frames of held-out episodes, always the same ones, the longest first."""
    clips = data.clips(learner.stage, 0, frames=frames, split="validation")
    lengths = np.diff(data.cache.offsets)[clips.episodes]
    chosen = np.argsort(-lengths, kind="stable")[:EPISODES]
    return as_tensors(clips.cut(chosen, np.zeros(len(chosen), np.int64)), config.device)


def _psnr(truth: NDArray[np.uint8], guess: NDArray[np.uint8]) -> float:
    error = float(np.square(truth.astype(np.float64) - guess).mean())
    return 10.0 * float(np.log10(255.0**2 / max(error, 1e-3)))


def _write_strips(path: Path, truth: NDArray[np.uint8], guess: NDArray[np.uint8]) -> None:
    """Rows in pairs, truth above, guess below; columns are frames further and further on."""
    columns = [c - 1 for c in COLUMNS if c <= truth.shape[1]]
    rows = []
    for real, dreamed in zip(truth[:SHOWN], guess[:SHOWN], strict=True):
        rows += [np.concatenate(list(video[columns]), axis=1) for video in (real, dreamed)]
    iio.imwrite(path, np.concatenate(rows, axis=0))
