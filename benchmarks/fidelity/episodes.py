"""True episodes that no training has seen, and forks of them.

Held-out seeds: `kairos collect` resets every episode with a seed below 2^31 (collect.py). Here all
resets use seeds from 2^31 on. The two sets never meet, whatever seeds either command is given.

A dream is compared from the end of a short true history on. Episodes that end early have fewer
frames; everything beyond their length is padding. So that late frames have truth to be compared
with, a share of the episodes is kept from terminating: time is turned back a few steps, and noise
acts instead of the policy until the danger is over.

Legend: B episodes, T frames after the history, N steps, h frames of history, K low-level actions
per step, F frames per step, A = K / F, D action size, S state size, R rows of a tape.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kairos_env.agents.policies import (
    Policy,
    PolicySpec,
    SmoothPolicy,
    Step,
    choose_policy,
    make_policy,
)
from kairos_env.benchmarks.fidelity.config import FidelityConfig
from kairos_env.real import RealEnv, SnapshotError, make_real
from kairos_env.spaces import encode_actions

if TYPE_CHECKING:
    from kairos_env.manifest import EnvironmentSpec

HELD_OUT_FROM = 2**31
# Streams of random numbers: what each is for. collect.py uses 0, 1 and 2 of the same seed.
RESETS, ACTING, FORKS, DREAMS = 11, 12, 13, 14

WITH_EXPERT = ("expert:0.35", "expert@0.3:0.3", "smooth:0.35")
WITHOUT_EXPERT = ("smooth:0.7", "random:0.3")
# A lasting episode that terminates goes back BACK steps, and smooth noise acts for the next DETOUR.
# After TRIES times without getting any further it is left to end.
BACK, DETOUR, TRIES = 3, 8, 10
# At least about this share of the episodes must outlast their history.
LEAST_USABLE = 0.1


class EpisodesError(RuntimeError):
    """No episodes could be recorded that a dream can be compared with."""


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
    """B true episodes, cut at the moment from which they are dreamed."""

    history: NDArray[np.uint8]
    """(B, h, H, W, 3)."""
    history_actions: NDArray[np.float32]
    """(B, h - 1, A, D)."""
    history_state: NDArray[np.float32]
    """(B, S): the true state at the last frame of the history."""
    chunks: NDArray[np.float32]
    """(B, N, K, D), encoded; the last one repeats beyond the end."""
    frames: NDArray[np.uint8]
    """(B, T, H, W, 3); the last one repeats beyond the end."""
    state: NDArray[np.float32]
    """(B, T, S): NaN beyond the end, and inside a step of several frames, where nobody tells it."""
    reward: NDArray[np.float32]
    """(B, T): NaN beyond the end."""
    ended: NDArray[np.bool_]
    """(B, T): the frame with which the episode terminated."""
    length: NDArray[np.int64]
    """(B,): frames that exist."""
    seeds: NDArray[np.int64]
    """(B,): of the dreams."""

    def __len__(self) -> int:
        return len(self.length)

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(B, T): frames that exist."""
        return np.asarray(np.arange(self.frames.shape[1]) < self.length[:, None])

    @property
    def frames_per_step(self) -> int:
        """F."""
        return self.frames.shape[1] // self.chunks.shape[1]


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Held-out episodes that are held in memory together."""

    truth: Truth
    labels: tuple[str, ...]
    """Who acted, by episode."""
    forks: tuple[Truth, Truth] | None
    """Moments of these episodes, twice: what the episode did next, and what other actions did."""
    skipped: int
    """Episodes that ended within their history and were left out."""


class Tape:
    """Rows of one episode as they happen: one per frame, as datasets have them."""

    def __init__(self, env: RealEnv, frame: NDArray[np.uint8], state: NDArray[np.float32]) -> None:
        self._env = env
        self.frames, self.states = [frame], [state]
        self.actions: list[NDArray[np.float32]] = []
        self.rewards: list[float] = []
        self.ended: list[bool] = []

    @property
    def steps(self) -> int:
        """Env steps so far, a last one that was cut short included."""
        return -(-len(self.actions) // self._env.frames_per_chunk)

    def add(self, step: Step) -> None:
        """Take down one env step; fewer than F rows when the episode ended inside it."""
        env, info = self._env, step.info
        F, A = env.frames_per_chunk, env.chunk // env.frames_per_chunk
        rows = -(-info["executed"] // A)
        encoded = encode_actions(env.action_space, step.chunk)
        silent = np.full_like(self.states[0], np.nan)
        for row in range(rows):
            self.frames.append(info["frames"][row])
            self.states.append(info["state"] if row == rows - 1 else silent)
            self.actions.append(encoded.reshape(F, A, -1)[row])
            self.rewards.append(float(info["rewards"].reshape(F, A)[row].sum()))
            self.ended.append(step.terminated and row == rows - 1)

    def fork(self, step: int) -> "Tape":
        """The same episode until after `step` steps."""
        row = step * self._env.frames_per_chunk
        fork = Tape(self._env, self.frames[0], self.states[0])
        fork.frames, fork.states = self.frames[: row + 1], self.states[: row + 1]
        fork.actions, fork.rewards = self.actions[:row], self.rewards[:row]
        fork.ended = self.ended[:row]
        return fork


class Recorded(NamedTuple):
    """One episode, and what else could have happened in it."""

    number: int
    tape: Tape
    label: str
    """Who acted."""
    fork: tuple[int, Tape] | None
    """A step of it, and the episode until there with another future; None for a short one."""


class HeldOut:
    """Records held-out episodes of a world's true twin, group by group.

    Args:
        environment: The world's own description of its environment.
        history: Frames that a dream of it is started with.
        config: What to record.
    """

    def __init__(
        self, environment: "EnvironmentSpec", history: int, config: FidelityConfig
    ) -> None:
        self.config, F = config, environment.frames_per_chunk
        self.history = F * -(-history // F)
        self.warm_steps = -(-(self.history - 1) // F)  # until the history is whole
        self.steps = -(-config.horizon // F)
        self.env = real_twin(environment, horizon=self.warm_steps + self.steps)
        self.specs = policy_specs(config.policies, self.env)
        self._policies = {spec.label: make_policy(spec, self.env) for spec in self.specs}
        self.can_go_back = _has_snapshots(self.env)

    def __iter__(self) -> Iterator[Group]:
        number = 0
        for first in range(0, self.config.episodes, self.config.batch):
            wanted = min(self.config.batch, self.config.episodes - first)
            usable: list[Recorded] = []
            skipped = 0
            while len(usable) < wanted:
                recorded = self._record(number)
                number += 1
                if recorded.tape.steps > self.warm_steps:
                    usable.append(recorded)
                    continue
                skipped += 1
                if skipped > 10 + len(usable) / LEAST_USABLE:
                    raise EpisodesError(
                        f"{skipped} episodes of {self.env.name} ended within the {self.history} "
                        f"frames that a dream is started with, {len(usable)} went on; give other "
                        "policies"
                    )
            yield self._group(usable, skipped)

    def close(self) -> None:
        """Free the simulator."""
        self.env.close()

    def _group(self, episodes: Sequence[Recorded], skipped: int) -> Group:
        truth = self._cut([(e.number, e.tape, self.warm_steps) for e in episodes], self.steps)
        labels = tuple(e.label for e in episodes)
        forked = [(e.number, e.tape, e.fork) for e in episodes if e.fork is not None]
        if not forked:
            return Group(truth, labels, None, skipped)
        steps = max(self.config.fork_steps)
        went = self._cut([(number, tape, fork[0]) for number, tape, fork in forked], steps)
        other = self._cut([(number, fork[1], fork[0]) for number, _, fork in forked], steps)
        return Group(truth, labels, (went, other), skipped)

    def _record(self, number: int) -> Recorded:
        """Episode `number`: a function of the config and this number."""
        seed = self.config.seed
        spec = choose_policy(self.specs, number, seed=seed)
        lasting = self.can_go_back and _is_lasting(number, self.config.lasting)
        frame, info = self.env.reset(seed=held_out_seed(seed, number))
        tape = Tape(self.env, frame, info["state"])
        generator = np.random.default_rng([seed, ACTING, number])
        tape, snapshots = self._play(tape, self._policies[spec.label], generator, lasting=lasting)
        label = f"{spec.label}, lasting" if lasting else spec.label
        return Recorded(number, tape, label, self._fork(tape, snapshots, number))

    def _play(
        self, tape: Tape, policy: Policy, generator: np.random.Generator, *, lasting: bool
    ) -> tuple[Tape, list[Any]]:
        """Fill the tape to the episode's end; also returns a snapshot before each step."""
        env, noise = self.env, SmoothPolicy()
        policy.begin(env, generator)
        snapshots: list[Any] = []
        detour = furthest = tries = 0
        over = False
        while not over:
            snapshots.append(env.snapshot() if self.can_go_back else None)
            step = (noise if detour > 0 else policy).step(env, tape.frames[-1])
            tape.add(step)
            over, detour = step.terminated or step.truncated, detour - 1
            if tape.steps > furthest:
                furthest, tries = tape.steps, 0
            if step.terminated and lasting and tries < TRIES:
                back = max(tape.steps - 1 - BACK, 0)
                env.restore(snapshots[back])
                tape, snapshots = tape.fork(back), snapshots[:back]
                noise.begin(env, generator)
                over, detour, tries = False, DETOUR, tries + 1
        return tape, snapshots

    def _fork(self, tape: Tape, snapshots: list[Any], number: int) -> tuple[int, Tape] | None:
        """Go back to a moment of the episode and act otherwise; None when it is too short."""
        steps = max(self.config.fork_steps)
        latest = tape.steps - steps
        if not self.can_go_back or latest < self.warm_steps:
            return None
        generator = np.random.default_rng([self.config.seed, FORKS, number])
        at = int(generator.integers(self.warm_steps, latest + 1))
        frame, _ = self.env.restore(snapshots[at])
        fork, noise = tape.fork(at), SmoothPolicy()
        noise.begin(self.env, generator)
        for _ in range(steps):
            step = noise.step(self.env, frame)
            fork.add(step)
            frame = step.frame
            if step.terminated or step.truncated:
                break
        return at, fork

    def _cut(self, episodes: Sequence[tuple[int, Tape, int]], steps: int) -> Truth:
        """Episodes (number, tape, step) from that step on, with the history before it."""
        F = self.env.frames_per_chunk
        cuts = [
            _cut_one(tape, row=step * F, history=self.history, frames=steps * F)
            for _, tape, step in episodes
        ]
        joined = {name: np.stack([cut[name] for cut in cuts]) for name in cuts[0]}
        # A chunk's actions stand row by row on a tape: (B, T, A, D) to (B, N, K, D).
        actions = joined.pop("actions")
        chunks = actions.reshape(len(cuts), steps, -1, actions.shape[-1])
        seeds = [dream_seed(self.config.seed, number) for number, _, _ in episodes]
        return Truth(chunks=chunks, seeds=np.array(seeds, np.int64), **joined)


def held_out_seed(seed: int, number: int) -> int:
    """The reset seed of a held-out episode: never one that `kairos collect` uses."""
    generator = np.random.default_rng([seed, RESETS, number])
    return HELD_OUT_FROM + int(generator.integers(2**31))


def dream_seed(seed: int, number: int) -> int:
    """The dream's own random stream."""
    return int(np.random.default_rng([seed, DREAMS, number]).integers(2**31))


def real_twin(environment: "EnvironmentSpec", *, horizon: int, draw: bool = True) -> RealEnv:
    """The environment that a world was learned from, cut off after `horizon` steps."""
    return make_real(
        environment.id,
        chunk=environment.chunk,
        frames_per_chunk=environment.frames_per_chunk,
        frame_size=environment.frame_size,
        horizon=horizon,
        draw=draw,
        **dict(environment.kwargs),
    )


def policy_specs(texts: Sequence[str], env: RealEnv) -> tuple[PolicySpec, ...]:
    """The mixture that was asked for, or the usual one of this environment."""
    if not texts:
        try:
            make_policy(PolicySpec(name="expert"), env)
        except ValueError:
            texts = WITHOUT_EXPERT
        else:
            texts = WITH_EXPERT
    return tuple(PolicySpec.parse(text) for text in texts)


def _has_snapshots(env: RealEnv) -> bool:
    env.reset(seed=HELD_OUT_FROM)
    try:
        env.restore(env.snapshot())
    except SnapshotError:
        return False
    return True


def _is_lasting(number: int, share: float) -> bool:
    """Every beginning of the episodes has the share asked for."""
    return int((number + 1) * share) > int(number * share)


def _cut_one(tape: Tape, *, row: int, history: int, frames: int) -> dict[str, Any]:
    """One episode's arrays from frame `row` on, padded to `frames`."""
    length = min(len(tape.actions) - row, frames)
    stop, first = row + length, row + 1 - history
    return {
        "history": np.stack(tape.frames[first : row + 1]),
        "history_actions": np.stack(tape.actions)[first:row],
        "history_state": np.asarray(tape.states[row], np.float32),
        "actions": _padded(np.stack(tape.actions[row:stop]), frames),
        "frames": _padded(np.stack(tape.frames[row + 1 : stop + 1]), frames),
        "state": _padded(np.stack(tape.states[row + 1 : stop + 1]), frames, np.nan),
        "reward": _padded(np.array(tape.rewards[row:stop], np.float32), frames, np.nan),
        "ended": _padded(np.array(tape.ended[row:stop], bool), frames, False),
        "length": np.int64(length),
    }


def _padded(rows: NDArray[Any], count: int, value: float | None = None) -> NDArray[Any]:
    """Rows up to `count`, the rest filled with `value` or with the last row."""
    missing = (count - len(rows), *rows.shape[1:])
    filler = rows[-1] if value is None else rows.dtype.type(value)
    return np.concatenate([rows, np.broadcast_to(filler, missing)])
