"""`RealEnv`: a simulator with the dream's face."""

import math
from collections.abc import Callable
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from kairos_env.actions import checked_chunk
from kairos_env.errors import ActionError
from kairos_env.real.simulator import Simulator
from kairos_env.real.snapshots import ForeignSnapshotError, Snapshot
from kairos_env.spaces import chunk_space

Frame = NDArray[np.uint8]
LowLevelPolicy = Callable[[gymnasium.Env[Any, Any], np.random.Generator], Any]


class RealEnv(gymnasium.Env[Frame, NDArray[Any]]):
    """A ground-truth environment that takes action chunks and shows frames, like the dream.

    One step takes K low-level actions (the chunk) and returns the last frame. Its reward is the
    plain sum of the rewards of the actions that were executed; nothing is discounted inside a
    chunk. When the low-level episode ends inside a chunk, the rest of the chunk is not executed.

    `info` of a step holds `frames` uint8 (F, H, W, 3) after every K/F actions (an early end repeats
    the last), `rewards` float32 (K,) with zeros for what was not executed, `executed`, `state`
    float32 (S,), `success` where the task has one, and what the low-level environment told last.

    Args:
        simulator: The low-level environment.
        name: What `make_real` was asked for; snapshots carry it.
        chunk: K, low-level actions per step.
        frames_per_chunk: F, frames per step; divides K.
        horizon: Steps (chunks) until truncation, or None for the low-level environment's limit.
        render_mode: None or "rgb_array".
        draw: False shows black frames instead of asking the simulator for them.
        spec: How to make it again.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(
        self,
        simulator: Simulator,
        *,
        name: str,
        chunk: int = 4,
        frames_per_chunk: int = 1,
        horizon: int | None = None,
        render_mode: str | None = "rgb_array",
        draw: bool = True,
        spec: EnvSpec | None = None,
    ) -> None:
        _check_chunking(chunk, frames_per_chunk, horizon, render_mode)
        self._simulator = simulator
        self.name = name
        self.chunk = chunk
        self.frames_per_chunk = frames_per_chunk
        self._horizon = horizon
        self.render_mode = render_mode
        self._draw = draw
        self.spec = spec
        size = simulator.frame_size
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self._chunk_space = chunk_space(simulator.env.action_space, chunk)
        self.action_space = self._chunk_space
        self.metadata = {**self.metadata, "render_fps": simulator.control_hz / chunk}
        self._elapsed = 0
        # None until the first reset; "over" once an episode has ended.
        self._phase: str | None = None

    @property
    def low_level(self) -> gymnasium.Env[Any, Any]:
        """The low-level environment, for experts and measurements."""
        return self._simulator.env

    @property
    def fps(self) -> float:
        """Frames a second of simulated time."""
        return self._simulator.control_hz * self.frames_per_chunk / self.chunk

    @property
    def horizon(self) -> int | None:
        """Steps until truncation: as given, else as the low-level time limit has it."""
        if self._horizon is not None or self._simulator.time_limit is None:
            return self._horizon
        return math.ceil(self._simulator.time_limit / self.chunk)

    @property
    def state_size(self) -> int:
        """S, the length of `info["state"]`; 0 when the task shows only pictures."""
        return int(self._simulator.state.size)

    @property
    def state(self) -> NDArray[np.float32]:
        """The present state, as `info["state"]` told it last."""
        return self._simulator.state.copy()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frame, dict[str, Any]]:
        """A new episode; the same seed gives the same one.

        Args:
            seed: Seeds the low-level environment; None continues its random stream.
            options: Passed to the low-level environment.
        """
        super().reset(seed=seed)
        info = self._simulator.reset(seed=seed, options=options)
        self._elapsed = 0
        self._phase = "running"
        return self._frame(), {**info, "state": self._simulator.state.copy()}

    def step(self, action: NDArray[Any]) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Execute a chunk.

        Args:
            action: Values of `action_space`. As in a dream, one that is out of bounds, not finite
                or of another shape raises an ActionError before anything moves.

        Returns:
            The last frame, the summed reward, terminated, truncated, info (see the class).
        """
        self._require_running()
        actions = checked_chunk(self._chunk_space, action)
        return self._execute(lambda index: self._low_level(actions[index]))

    def follow(
        self, policy: LowLevelPolicy, rng: np.random.Generator
    ) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Execute a chunk whose actions a low-level policy, such as an expert, decides one by one.

        Args:
            policy: `policy(env, rng)` gives one low-level action for the present.
            rng: The policy's randomness.

        Returns:
            As `step`; `info["actions"]` is the chunk which, given to `step`, does the same (an
            early end repeats the last action).
        """
        self._require_running()
        actions: list[Any] = []

        def decide(index: int) -> Any:
            del index
            actions.append(self._decided(policy, rng))
            return actions[-1]

        frame, reward, terminated, truncated, info = self._execute(decide)
        info["actions"] = self._as_chunk(actions)
        return frame, reward, terminated, truncated, info

    def plan(self, policy: LowLevelPolicy, rng: np.random.Generator) -> NDArray[Any]:
        """The chunk that `follow` would take, found by playing it through and going back.

        Cheaper than `snapshot` and `restore` around it: nothing is rendered.

        Args:
            policy: `policy(env, rng)` gives one low-level action for the present.
            rng: The policy's randomness.

        Returns:
            K actions; an episode that ends on the way repeats the last.
        """
        self._require_running()
        before = self._simulator.snapshot()
        actions: list[Any] = []
        over = False
        while len(actions) < self.chunk and not over:
            actions.append(self._decided(policy, rng))
            _, terminated, truncated, _ = self._simulator.step(actions[-1])
            over = terminated or truncated
        self._simulator.restore(before)
        return self._as_chunk(actions)

    def render(self) -> Frame | None:
        """The present frame, or None when made without a render mode."""
        if self.render_mode is None:
            return None
        if self._phase is None:
            raise ResetNeeded("call reset before render")
        return self._frame()

    def snapshot(self) -> Snapshot:
        """The present as arrays that go into an `.npz`; `restore` continues from it to the bit.

        Raises:
            SnapshotError: This environment cannot do it; the message says why.
        """
        if self._phase is None:
            raise ResetNeeded("call reset before snapshot: there is no episode yet")
        bookkeeping = np.array([self._elapsed, self._phase == "over"], np.int64)
        return {
            "name": np.array(self.name),
            "episode": bookkeeping,
            **self._simulator.snapshot(),
        }

    def restore(self, snapshot: Snapshot) -> tuple[Frame, dict[str, Any]]:
        """Continue from a snapshot, also one that another instance took.

        Args:
            snapshot: From `snapshot` of an environment made with the same name and options.

        Returns:
            Frame and info, as `reset` gives them.

        Raises:
            ForeignSnapshotError: It was taken of something else.
        """
        if "name" not in snapshot or "episode" not in snapshot:
            raise ForeignSnapshotError(
                f"expected a snapshot from RealEnv.snapshot(), got the keys {sorted(snapshot)[:8]}"
            )
        if str(snapshot["name"]) != self.name:
            raise ForeignSnapshotError(
                f"this is {self.name!r}, the snapshot is of {str(snapshot['name'])!r}"
            )
        if self._phase is None:
            # Some environments make their objects in the first reset.
            self._simulator.reset(seed=0, options=None)
        self._simulator.restore(snapshot)
        self._elapsed = int(snapshot["episode"][0])
        self._phase = "over" if snapshot["episode"][1] else "running"
        return self._frame(), {"state": self._simulator.state.copy()}

    def close(self) -> None:
        """Free the simulator and its renderer."""
        self._simulator.close()

    def _frame(self) -> Frame:
        if self._draw:
            return self._simulator.frame()
        size = self._simulator.frame_size
        return np.zeros((size, size, 3), np.uint8)

    def _execute(
        self, action_at: Callable[[int], Any]
    ) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Up to K low-level actions, with the accounting that the class promises."""
        rewards = np.zeros(self.chunk, np.float32)
        frames: list[Frame] = []
        stride = self.chunk // self.frames_per_chunk
        total, executed, terminated, truncated = 0.0, 0, False, False
        info: dict[str, Any] = {}
        while executed < self.chunk and not (terminated or truncated):
            action = action_at(executed)
            rewards[executed], terminated, truncated, info = self._simulator.step(action)
            total += float(rewards[executed])
            executed += 1
            if executed % stride == 0 or terminated or truncated:
                frames.append(self._frame())
        frames += [frames[-1]] * (self.frames_per_chunk - len(frames))
        self._elapsed += 1
        truncated = truncated or (self._horizon is not None and self._elapsed >= self._horizon)
        self._phase = "over" if terminated or truncated else "running"
        info = self._step_info(info, frames, rewards, executed)
        return frames[-1].copy(), total, terminated, truncated, info

    def _require_running(self) -> None:
        if self._phase is None:
            raise ResetNeeded("call reset before the first step")
        if self._phase == "over":
            raise ResetNeeded("the episode is over (terminated or truncated): call reset")

    def _as_chunk(self, actions: list[Any]) -> NDArray[Any]:
        """Up to K actions as a chunk; the last is repeated."""
        filled = actions + [actions[-1]] * (self.chunk - len(actions))
        chunk: NDArray[Any] = np.stack(filled)
        return chunk.reshape(cast(tuple[int, ...], self.action_space.shape))

    def _low_level(self, action: Any) -> Any:
        """One checked action in the low-level space's shape and type."""
        space = self.low_level.action_space
        if isinstance(space, gymnasium.spaces.Box):
            return np.asarray(action, space.dtype).reshape(space.shape)
        return np.int64(action)

    def _decided(self, policy: LowLevelPolicy, rng: np.random.Generator) -> Any:
        """What a policy does now; it may overshoot the bounds."""
        space = self.low_level.action_space
        action = np.asarray(policy(self, rng))
        if not isinstance(space, gymnasium.spaces.Box):
            return np.int64(action)
        if action.size != np.prod(space.shape) or not np.isfinite(action).all():
            raise ActionError(
                f"expected {np.prod(space.shape)} finite numbers from the policy, got {action}"
            )
        return self._low_level(np.clip(action.reshape(space.shape), space.low, space.high))

    def _step_info(
        self,
        low_level: dict[str, Any],
        frames: list[Frame],
        rewards: NDArray[np.float32],
        executed: int,
    ) -> dict[str, Any]:
        info = {
            **low_level,
            "frames": np.stack(frames),
            "rewards": rewards,
            "executed": executed,
            "state": self._simulator.state.copy(),
        }
        success = low_level.get("success", low_level.get("is_success"))
        if success is not None:
            info["success"] = bool(success)
        return info


def _check_chunking(
    chunk: int, frames_per_chunk: int, horizon: int | None, render_mode: str | None
) -> None:
    if chunk < 1 or frames_per_chunk < 1 or chunk % frames_per_chunk:
        raise ValueError(
            "frames_per_chunk must divide chunk, both at least 1; got "
            f"chunk={chunk}, frames_per_chunk={frames_per_chunk}"
        )
    if horizon is not None and horizon < 1:
        raise ValueError(f"horizon counts steps and must be at least 1, got {horizon}")
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode must be None or 'rgb_array', got {render_mode!r}")
