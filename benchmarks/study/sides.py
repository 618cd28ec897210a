"""A policy's episodes in truth, in the dream, and the true actions replayed in the dream.

All begin in the same states. Nothing is drawn here: noise stands on the tape, and each dream has
the seed of its episode, the same for every policy.

Legend: E episodes, b of them still running, N steps, K low-level actions per step, D numbers per
action, F frames per step.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from kairos_env.benchmarks.study.eyes import Eyes
from kairos_env.benchmarks.study.grades import Actor, Chunks, Rows, Seen
from kairos_env.benchmarks.study.openings import Openings, go_to
from kairos_env.spaces import decode_actions
from kairos_env.view import view_of

if TYPE_CHECKING:
    from kairos_env.real import RealEnv
    from kairos_env.worlds import World

TRUTH, DREAM, REPLAY = "truth", "dream", "replay"
# The dream again, for policies that act on its state head instead of its pictures.
STATE = "state"

# An end that the dream announces one step after the true one still counts in a replay.
TOLERANCE = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Outcomes:
    """What came of E episodes."""

    reward: NDArray[np.float32]
    """(E, N): NaN after the end."""
    ended: NDArray[np.bool_]
    """(E,): terminated, not cut off."""
    success: NDArray[np.float32]
    """(E,): NaN where nobody says."""
    uncertainty: NDArray[np.float32]
    """(E, N): NaN in truth and after the end."""
    chunks: NDArray[np.float32]
    """(E, N, K, D): what was done; zero after the end."""

    @property
    def length(self) -> NDArray[np.int64]:
        """(E,): steps."""
        return np.asarray(np.isfinite(self.reward).sum(1))

    @property
    def returns(self) -> NDArray[np.float64]:
        """(E,): summed rewards."""
        return np.asarray(np.nansum(self.reward.astype(np.float64), 1))

    @classmethod
    def empty(cls, episodes: int, steps: int, shape: Sequence[int]) -> "Outcomes":
        """Nothing happened yet."""
        return cls(
            reward=np.full((episodes, steps), np.nan, np.float32),
            ended=np.zeros(episodes, np.bool_),
            success=np.full(episodes, np.nan, np.float32),
            uncertainty=np.full((episodes, steps), np.nan, np.float32),
            chunks=np.zeros((episodes, steps, *shape), np.float32),
        )


Film = list[list[NDArray[np.uint8]]]
"""Frames (H, W, 3) of each episode, the last of its history first."""


class Acting(Protocol):
    """What decides the chunks of a dream: a policy, or a recording."""

    needs_frames: bool

    def act(self, rows: Rows, step: int, seen: Seen) -> Chunks:
        """The chunks (b, K, D) of episodes `rows`."""


def in_truth(
    env: "RealEnv", actor: Actor, openings: Openings, *, steps: int, film: Film | None = None
) -> Outcomes:
    """A policy in the simulator, one episode after the other.

    Args:
        env: From `open_twin` with the same steps; undrawn for policies that see the state.
        actor: The policy.
        openings: Where it begins.
        steps: N.
        film: Frames are added to it.
    """
    out = Outcomes.empty(len(openings), steps, openings.warm.shape[2:])
    for e in range(len(openings)):
        frame, info = go_to(env, openings, e)
        row, seen, over, n = np.array([e]), [_seen(info["state"], frame)], False, 0
        shown = [frame]
        while not over and n < steps:
            chunk = actor.act(row, n, seen[max(n - actor.grade.late, 0)])
            action = decode_actions(env.action_space, chunk[0])
            frame, reward, terminated, truncated, info = env.step(action)
            out.reward[e, n], out.chunks[e, n], out.ended[e] = reward, chunk[0], terminated
            out.success[e] = _solved(out.success[e], info)
            seen.append(_seen(info["state"], frame))
            shown += list(info["frames"])
            over, n = terminated or truncated, n + 1
        if film is not None:
            film.append(shown)
    return out


def in_dream(
    world: "World",
    actor: Acting,
    openings: Openings,
    *,
    steps: int,
    batch: int,
    late: int = 0,
    eyes: Eyes | None = None,
    limits: NDArray[np.int64] | None = None,
    film: Film | None = None,
) -> Outcomes:
    """A policy in the dream, many episodes at once. Pictures are only made for who asks for them.

    Args:
        world: Who dreams.
        actor: The policy; it sees what the dream predicts.
        openings: Where it begins.
        steps: N.
        batch: Episodes at once; it does not change what they are beyond the last digits.
        late: Steps ago at which the policy looks.
        eyes: Read the state off the dreamed pictures; the world's own state head when None.
        limits: (E,): steps after which an episode is cut off; N for all when None.
        film: Frames are added to it.
    """
    out = Outcomes.empty(len(openings), steps, openings.warm.shape[2:])
    limits = np.full(len(openings), steps) if limits is None else limits
    for first in range(0, len(openings), batch):
        rows = np.arange(first, min(first + batch, len(openings)))
        shown = None if film is None else [[openings.frames[e, -1]] for e in rows]
        _dream_rows(world, actor, openings, rows, out, late, eyes, limits, shown)
        if film is not None and shown is not None:
            film += shown
    return out


class Recording:
    """The actions of true episodes, given again; after the end the last of them."""

    needs_frames = False

    def __init__(self, truth: Outcomes) -> None:
        self._chunks, self._last = truth.chunks, truth.length - 1

    def act(self, rows: Rows, step: int, seen: Seen) -> Chunks:
        """What was done in truth, whatever the dream shows."""
        del seen
        return np.asarray(self._chunks[rows, np.minimum(step, self._last[rows])])


def replayed(
    world: "World", truth: Outcomes, openings: Openings, *, steps: int, batch: int
) -> Outcomes:
    """The true actions in the dream: the same episodes if the dream is right."""
    limits = np.minimum(truth.length + TOLERANCE, steps)
    return in_dream(world, Recording(truth), openings, steps=steps, batch=batch, limits=limits)


def _dream_rows(
    world: "World",
    actor: Acting,
    openings: Openings,
    rows: Rows,
    out: Outcomes,
    late: int,
    eyes: Eyes | None,
    limits: NDArray[np.int64],
    film: Film | None,
) -> None:
    """Dream some episodes to their ends and write them into `out`."""
    model, first = world.model, rows[0]
    arrays = openings.frames[rows], openings.actions[rows], openings.dreams[rows]
    frames, actions, seeds = (torch.from_numpy(x).to(model.device) for x in arrays)
    memory = model.start(frames, actions, seeds=seeds)
    seen = [Seen(openings.state[rows], openings.frames[rows, -1])]
    decode = actor.needs_frames or eyes is not None or film is not None
    threshold = model.config.heads.end_threshold
    n = 0
    while len(rows):
        chunks = actor.act(rows, n, seen[0])
        memory, prediction = model.step(
            memory, torch.from_numpy(chunks).to(model.device), decode=decode
        )
        view, ended = view_of([prediction], threshold)
        out.reward[rows, n], out.chunks[rows, n] = view.rewards.sum(1), chunks
        out.uncertainty[rows, n], out.ended[rows] = view.uncertainty, ended
        if film is not None and view.frames is not None:
            for row, pictures in zip(rows, view.frames, strict=True):
                film[row - first] += list(pictures)
        n += 1
        pictures = None if view.frames is None else view.frames[:, -1]
        state = view.state if eyes is None or pictures is None else eyes(view.state, pictures)
        seen = [*seen, Seen(state, pictures)][-1 - late :]
        still = np.flatnonzero(~ended & (n < limits[rows]))
        if len(still) < len(rows):
            rows, seen = rows[still], [one.some(still) for one in seen]
            memory = memory.index(torch.from_numpy(still).to(model.device))


def _seen(state: NDArray[np.float32], frame: NDArray[np.uint8]) -> Seen:
    return Seen(np.asarray(state, np.float32)[None], frame[None])


def _solved(before: np.float32, info: dict[str, Any]) -> float:
    """Whether the task was solved at any step so far; NaN where the task does not say."""
    if "success" not in info:
        return float(before)
    return float(info["success"] or before == 1)
