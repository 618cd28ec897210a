"""Does the dream hold up on episodes it was never trained on? Numbers by horizon, and a picture.

This is the quick look during training; `kairos fidelity` is the full report against the simulator.
"""

import dataclasses
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
from numpy.typing import NDArray

from kairos_env.agents.data.clips import Batch
from kairos_env.agents.training import processes
from kairos_env.agents.training.clips import TrainingData, as_tensors, begin_dreams
from kairos_env.agents.training.config import StageConfig
from kairos_env.agents.training.learner import Learner, Metrics, generator_for
from kairos_env.world_model.history import coded
from kairos_env.world_model.objective import ACTION_MODES
from kairos_env.world_model.world_model import WorldModel

EPISODES = 32
HORIZONS = (1, 10, 50)
SHOWN = 4  # episodes in the picture
COLUMNS = (1, 2, 5, 10, 15, 20, 30, 40, 50)


def validate(learner: Learner) -> Metrics:
    """Judge the slow average of the weights, which is what will be kept; process 0 does.

    Data too small to hold anything out are not judged.
    """
    average = learner.whole_average()
    if processes.number() > 0 or not learner.data.holds_out():
        return {}
    picture = learner.config.folder / f"{learner.stage.name}-{learner.step:06d}.png"
    kept = {name: x.clone() for name, x in learner.target.state_dict().items()}
    learner.target.load_state_dict(average)
    try:
        with torch.no_grad():
            if learner.stage.draws:
                return reconstruct(learner.world, learner.data, learner.stage, picture)
            if learner.stage.watches:
                return explain(learner.world, learner.data, learner.stage)
            return dream(learner.world, learner.data, learner.stage, picture)
    finally:
        learner.target.load_state_dict(kept)


def reconstruct(
    world: WorldModel, data: TrainingData, stage: StageConfig, picture: Path
) -> Metrics:
    """How well frames come back from their latents."""
    few = 2 * world.config.tokenizer.temporal
    clips = as_tensors(held_out(data, stage, frames=few), str(world.device))
    frames = clips["frames"]
    rebuilt = world.tokenizer.decode(world.tokenizer.encode(frames))
    _write_strips(picture, frames[:, :1].cpu().numpy(), rebuilt[:, :1].cpu().numpy())
    return {"psnr": _psnr(frames.cpu().numpy(), rebuilt.cpu().numpy())}


def explain(world: WorldModel, data: TrainingData, stage: StageConfig) -> Metrics:
    """The loss and its parts, each action mode once, with the same noise every time."""
    batch = held_out(data, stage, frames=stage.frames)
    clips = as_tensors(batch, str(world.device))
    if world.text is not None:
        clips["words"] = data.words(world.text, batch).to(world.device)
    clips = coded(clips, world.config.tokenizer.temporal)
    draws = world.draw(clips, generator_for(0, 0, str(world.device)))
    metrics: Metrics = {}
    for name in dict(ACTION_MODES):
        mode = [other for other, _ in ACTION_MODES].index(name)
        _, found = world.loss(clips, dataclasses.replace(draws, mode=mode))
        metrics |= {name: float(value) for name, value in found.items()}
    return metrics


def dream(world: WorldModel, data: TrainingData, stage: StageConfig, picture: Path) -> Metrics:
    """How far frames dreamed from the first few are from the true ones, by horizon."""
    F, real = world.config.frames_per_chunk, world.config.history_frames
    steps = -(-max(HORIZONS) // F)
    batch = held_out(data, stage, frames=real + steps * F)
    clips, state = begin_dreams(world, data, batch)
    dreamed, states = [], []
    for t in range(real - 1, real - 1 + steps * F, F):
        state, prediction = world.step(state, clips["actions"][:, t : t + F].flatten(1, 2))
        dreamed.append(prediction.frames)
        states.append(prediction.state)
    guess = torch.cat([frames for frames in dreamed if frames is not None], dim=1).cpu().numpy()
    truth = clips["frames"][:, real:].cpu().numpy()
    valid = clips["valid"][:, real:].cpu().numpy()
    last = np.broadcast_to(clips["frames"][:, real - 1 : real].cpu().numpy(), truth.shape)
    _write_strips(picture, truth[:SHOWN], guess[:SHOWN])
    metrics: Metrics = {}
    gap = (torch.cat(states, dim=1) - clips["state"][:, real:]) / world.heads.state_scale
    off = gap.cpu().numpy()
    for horizon in HORIZONS:
        exist = valid[:, horizon - 1]
        if exist.any():
            there = truth[exist, horizon - 1]
            metrics[f"psnr@{horizon}"] = _psnr(there, guess[exist, horizon - 1])
            metrics[f"copy@{horizon}"] = _psnr(there, last[exist, horizon - 1])
            if off.shape[-1]:
                squares = np.square(off[exist, horizon - 1])
                metrics[f"state@{horizon}"] = float(np.sqrt(squares.mean()))
    return metrics


def held_out(data: TrainingData, stage: StageConfig, *, frames: int) -> Batch:
    """The first frames of held-out episodes, always the same ones, the longest first."""
    clips = data.clips(stage, 0, frames=frames, split="validation")
    lengths = np.diff(data.cache.offsets)[clips.episodes]
    chosen = np.argsort(-lengths, kind="stable")[:EPISODES]
    return clips.cut(chosen, np.zeros(len(chosen), np.int64))


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
