"""From a finished run to a world on disk: weights, starts, what the data say of their origin."""

import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kairos_env.agents.data.dataset import Dataset, DatasetSpec
from kairos_env.agents.data.views import JoinedDataset
from kairos_env.agents.training.calibration import calibrate
from kairos_env.agents.training.checkpoints import Progress
from kairos_env.agents.training.clips import TrainingData
from kairos_env.agents.training.config import TrainConfig
from kairos_env.manifest import EnvironmentSpec, Manifest, space_to_json
from kairos_env.real import make_real
from kairos_env.spaces import decode_actions
from kairos_env.starts import Snapshot, Starts
from kairos_env.version import __version__
from kairos_env.world_model.world_model import WorldModel
from kairos_env.worlds import find_world, read_manifest, save_world

STARTS = 64


def export_world(
    config: TrainConfig, world: WorldModel, data: TrainingData, progress: Progress
) -> Path:
    """Write the world that a run has learned."""
    spec = environment_spec(data)
    checked = calibrate(world, data)
    manifest = Manifest(
        name=config.name or config.out.name,
        description=config.description or f"Learned from {spec.id}.",
        environment=spec,
        model=world.config,
        provenance=provenance(config, data, progress) | {"calibration": checked},
    )
    starts = make_starts(world, data, spec)
    world.to("cpu")
    return save_world(
        config.out, world, manifest=manifest, starts=starts, overwrite=True, dtype=torch.float16
    )


def environment_spec(data: TrainingData) -> EnvironmentSpec:
    """What the dataset says of its environment, and what the simulator adds."""
    told = data.spec.provenance.get("environment")
    if not isinstance(told, dict) or "id" not in told:
        raise ValueError(
            "the dataset does not say which environment it was recorded in, so a world of it has "
            "no action space; record it with 'kairos collect', or convert it"
        )
    real = make_real(
        told["id"],
        chunk=told["chunk"],
        frames_per_chunk=told["frames_per_chunk"],
        frame_size=told["frame_size"],
        horizon=told["horizon"],
        **told.get("kwargs", {}),
    )
    try:
        low_level: Any = real.low_level.unwrapped
        return EnvironmentSpec(
            id=told["id"],
            kwargs=told.get("kwargs", {}),
            chunk=told["chunk"],
            frames_per_chunk=told["frames_per_chunk"],
            frame_size=told["frame_size"],
            horizon=told["horizon"] or real.horizon or 1000,
            fps=real.fps,
            action_space=space_to_json(real.low_level.action_space),
            reward="sum of the environment's rewards over the chunk, without discount",
            termination="as the environment terminates",
            state_names=tuple(getattr(low_level, "state_names", ())),
        )
    finally:
        real.close()


def make_starts(world: WorldModel, data: TrainingData, spec: EnvironmentSpec) -> Starts:
    """Histories from recorded episodes, half from the beginning, with the simulator's state.

    The state after a history is found by doing the recorded actions again from the recorded start;
    the pictures are those of the simulator, without the loss of a video. Where one of the episodes
    came without a snapshot, no start has one: dreams can begin there, the truth cannot be put
    there.
    """
    random = np.random.default_rng(0)
    F = spec.frames_per_chunk
    length = world.config.history_frames
    places = []
    for i, episode in enumerate(_long_enough(data, length)[:STARTS]):
        latest = max(_recorded(data, episode) // F - length // F - 5, 0) if i % 2 else 0
        places.append((episode, int(random.integers(0, latest + 1))))
    if not all(data.start_snapshot(episode) for episode, _ in places):
        return _recorded_starts(data, places, length, F)
    real = _make_real(spec)
    try:
        rows = [_replay(real, data, episode, skip, length) for episode, skip in places]
    finally:
        real.close()
    frames, actions, state, snapshots = zip(*rows, strict=True)
    return Starts(np.stack(frames), np.stack(actions), np.stack(state), tuple(snapshots))


def _recorded_starts(
    data: TrainingData, places: list[tuple[int, int]], length: int, F: int
) -> Starts:
    """Histories as they were recorded."""
    first = np.array([data.cache.offsets[e] + skip * F for e, skip in places])
    rows = first[:, None] + np.arange(length)
    cache = data.cache
    return Starts(cache.frames(rows), cache.actions[rows[:, :-1]], cache.state[rows[:, -1]])


def _replay(
    real: Any, data: TrainingData, episode: int, skip: int, length: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32], Snapshot]:
    """A history of `length` frames that begins `skip` steps into an episode."""
    F = real.frames_per_chunk
    first = int(data.cache.offsets[episode])
    frame, info = real.restore(data.start_snapshot(episode))
    frames, actions = [frame], []
    for step in range(skip + -(-(length - 1) // F)):
        encoded = data.cache.actions[first + step * F : first + (step + 1) * F]  # (F, A, D)
        chunk = decode_actions(real.action_space, encoded.reshape(-1, encoded.shape[-1]))
        _, _, _, _, info = real.step(chunk)
        frames += list(info["frames"])
        actions += list(encoded)
    kept = np.stack(frames[-length:]), np.stack(actions[len(actions) - length + 1 :])
    return *kept, np.asarray(info["state"], np.float32), real.snapshot()


def _make_real(spec: EnvironmentSpec) -> Any:
    return make_real(
        spec.id,
        chunk=spec.chunk,
        frames_per_chunk=spec.frames_per_chunk,
        frame_size=spec.frame_size,
        horizon=spec.horizon,
        **dict(spec.kwargs),
    )


def _recorded(data: TrainingData, episode: int) -> int:
    """Transitions of an episode."""
    return int(data.cache.offsets[episode + 1] - data.cache.offsets[episode]) - 1


def _long_enough(data: TrainingData, length: int) -> list[int]:
    """Training episodes with room for a history and a few steps after it."""
    episodes = [e for e in data.train_episodes() if _recorded(data, e) >= length + 5]
    if not episodes:
        raise ValueError(f"no training episode has {length + 5} transitions to start a dream from")
    return episodes


def start_of(config: TrainConfig) -> dict[str, Any] | None:
    """The world that a run began with, and how that one was made."""
    if config.start is None:
        return None
    manifest = read_manifest(find_world(config.start))
    return {"name": manifest.name, "provenance": manifest.provenance}


def recipe(spec: DatasetSpec) -> dict[str, Any]:
    """What `kairos collect` must be told to record the same data."""
    return {key: spec.provenance.get(key) for key in ("policies", "seed", "environment")}


def joined(config: TrainConfig, dataset: Dataset) -> dict[str, Any]:
    """The same for each dataset of a run that has several."""
    if len(config.data) == 1 or not isinstance(dataset, JoinedDataset):
        return {}
    return {"joined": [{"episodes": len(part), **recipe(part.spec)} for part in dataset.parts]}


def provenance(config: TrainConfig, data: TrainingData, progress: Progress) -> dict[str, Any]:
    """How the world was made."""
    frames = int(data.cache.offsets[-1])
    return {
        "command": ["kairos", *sys.argv[1:]],
        "size": config.size if config.start is None else None,
        "start": start_of(config),
        "seed": config.seed,
        "stages": progress.history,
        "training_seconds": round(progress.seconds, 1),
        "data": {
            "episodes": len(data.cache.identities),
            "frames": frames,
            "environment_steps": frames * data.spec.actions_per_frame,
            "recipe": recipe(data.spec),
        }
        | joined(config, data.dataset),
        "versions": {
            "kairos-env": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": platform.processor() or platform.machine(),
    }
