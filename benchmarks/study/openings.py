"""Start states: short true histories that no training has seen, which anybody can come back to.

A dream needs a few true frames to begin with. The simulator is reset with a held-out seed, and
smooth noise acts until the history is whole; seed and actions lead back to the same state.

Legend: E episodes, W steps of history, K low-level actions per step, F frames per step, A = K / F,
D numbers per action, h frames of history, S state size.
"""

import dataclasses
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kairos_env.agents.data.files import write_bytes
from kairos_env.agents.policies import SmoothPolicy
from kairos_env.benchmarks.fidelity.episodes import (
    LEAST_USABLE,
    EpisodesError,
    dream_seed,
    held_out_seed,
    real_twin,
)
from kairos_env.spaces import decode_actions, encode_actions

if TYPE_CHECKING:
    from kairos_env.real import RealEnv
    from kairos_env.worlds import World

WARM = 21  # stream of the study's seed


@dataclasses.dataclass(frozen=True, eq=False)
class Openings:
    """E start states."""

    numbers: NDArray[np.int64]
    """(E,): of the episodes, from which all their randomness follows."""
    resets: NDArray[np.int64]
    """(E,): reset seeds."""
    dreams: NDArray[np.int64]
    """(E,): seeds of the dreams."""
    warm: NDArray[np.float32]
    """(E, W, K, D): encoded actions from the reset to the start state."""
    frames: NDArray[np.uint8]
    """(E, h, H, W, 3)."""
    actions: NDArray[np.float32]
    """(E, h - 1, A, D): what was done between them."""
    state: NDArray[np.float32]
    """(E, S): at the last of them."""

    def __len__(self) -> int:
        return len(self.numbers)

    def index(self, rows: slice) -> "Openings":
        """Some of them."""
        return Openings(**{name: array[rows] for name, array in vars(self).items()})


def warm_steps(world: "World") -> int:
    """W: steps until there are as many frames as a dream of this world begins with."""
    F = world.manifest.environment.frames_per_chunk
    return -(-(world.manifest.model.history_frames - 1) // F)


def open_twin(world: "World", steps: int, *, draw: bool = True) -> "RealEnv":
    """The truth, cut off `steps` env steps after a start state; undrawn, it shows no pictures."""
    horizon = warm_steps(world) + steps
    return real_twin(world.manifest.environment, horizon=horizon, draw=draw)


def find_openings(world: "World", env: "RealEnv", *, episodes: int, seed: int) -> Openings:
    """The first so many episodes that outlast their history.

    Raises:
        EpisodesError: Nearly none does.
    """
    found: list[dict[str, Any]] = []
    number = 0
    while len(found) < episodes:
        one = _one(world, env, number, seed)
        number += 1
        if one is not None:
            found.append(one)
        elif number > 10 + len(found) / LEAST_USABLE:
            raise EpisodesError(
                f"{number - len(found)} of {number} episodes of {env.name} ended within the "
                f"{world.manifest.model.history_frames} frames that a dream is started with"
            )
    return Openings(**{name: np.stack([one[name] for one in found]) for name in found[0]})


def go_to(env: "RealEnv", openings: Openings, row: int) -> tuple[NDArray[np.uint8], Any]:
    """Bring the simulator to a start state; returns frame and info."""
    frame, info = env.reset(seed=int(openings.resets[row]))
    for chunk in openings.warm[row]:
        frame, _, _, _, info = env.step(decode_actions(env.action_space, chunk))
    return frame, info


def write_openings(path: Path, openings: Openings) -> None:
    """As `.npz`, whole or not at all."""
    file = io.BytesIO()
    np.savez_compressed(file, **vars(openings))
    write_bytes(path, file.getvalue())


def read_openings(path: Path) -> Openings:
    """What `write_openings` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return Openings(**{name: file[name] for name in file.files})


def _one(world: "World", env: "RealEnv", number: int, seed: int) -> dict[str, Any] | None:
    """Episode `number` up to its start state; None when it ends before."""
    reset = held_out_seed(seed, number)
    frame, info = env.reset(seed=reset)
    policy = SmoothPolicy()
    policy.begin(env, np.random.default_rng([seed, WARM, number]))
    frames, warm = [frame], []
    for _ in range(warm_steps(world)):
        step = policy.step(env, frames[-1])
        if step.terminated or step.truncated:
            return None
        info = step.info
        frames += list(info["frames"])
        warm.append(encode_actions(env.action_space, step.chunk))
    h, A = world.manifest.model.history_frames, world.manifest.model.actions_per_frame
    D = world.manifest.model.action_size
    chunks = np.array(warm, np.float32).reshape(len(warm), env.chunk, D)
    return {
        "numbers": np.int64(number),
        "resets": np.int64(reset),
        "dreams": np.int64(dream_seed(seed, number)),
        "warm": chunks,
        "frames": np.stack(frames[-h:]),
        "actions": chunks.reshape(-1, A, D)[len(chunks) * env.frames_per_chunk - h + 1 :],
        "state": np.asarray(info["state"], np.float32),
    }
