"""`DreamEnv`: one dream behind Gymnasium's interface, a thin view of a `DreamVectorEnv` of one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from kairos_env.actions import checked_chunk
from kairos_env.dreams import Precision
from kairos_env.snapshot import DreamSnapshot
from kairos_env.vector_env import DreamVectorEnv
from kairos_env.view import Observation, ObservationKind, one_dream
from kairos_env.worlds import World


class DreamEnv(gymnasium.Env[Any, NDArray[Any]]):
    """One dream.

    `step` takes a chunk of K low-level actions and returns the last predicted frame. The reward is
    the sum over the chunk. `terminated` says that the world's end head passed its threshold,
    `truncated` that the horizon is reached. `info` holds `frames` uint8 (F, H, W, 3), `rewards`
    (F,), `state` (S,), `uncertainty`, `end_probability`, `time` in simulated seconds and
    `start_index`.

    The arguments are those of `DreamVectorEnv`.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's own form)
        "render_modes": ["rgb_array", "rgb_array_list"],
        "render_fps": 25,
    }

    def __init__(
        self,
        *,
        world: str | Path | World | None = None,
        device: str = "cpu",
        denoise_steps: int | None = None,
        observation: ObservationKind = "pixels",
        horizon: int | None = None,
        start: int | Sequence[int] | None = None,
        frames_per_chunk: int | None = None,
        max_uncertainty: float | None = None,
        window: int | None = None,
        precision: Precision = "float32",
        compile: bool = False,
        all_frames: bool = False,
        decode: bool = True,
        render_mode: str | None = None,
    ) -> None:
        self._dreams = DreamVectorEnv(
            1,
            world=world,
            device=device,
            denoise_steps=denoise_steps,
            observation=observation,
            horizon=horizon,
            start=start,
            frames_per_chunk=frames_per_chunk,
            max_uncertainty=max_uncertainty,
            window=window,
            precision=precision,
            compile=compile,
            all_frames=all_frames,
            decode=decode,
            render_mode=render_mode,
            autoreset_mode=AutoresetMode.DISABLED,
        )
        self.world = self._dreams.world
        self.render_mode = render_mode
        self.observation_space = self._dreams.single_observation_space
        self.action_space = self._dreams.single_action_space
        self.metadata = {
            name: value for name, value in self._dreams.metadata.items() if name != "autoreset_mode"
        }

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin a new episode; seed and options are those of `DreamVectorEnv.reset`."""
        observations, infos = self._dreams.reset(
            seed=None if seed is None else [seed], options=options
        )
        self._share_generator()
        return one_dream(observations, 0), one_dream(infos, 0)

    def step(self, action: NDArray[Any]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Advance by one action chunk.

        Args:
            action: (K, D), or (K,) for choices.

        Raises:
            ActionError: Wrong shape or type, out of bounds, NaN. Nothing was stepped.
            ResetNeeded: Before the first reset, or after the episode has ended.
        """
        chunk = checked_chunk(self._dreams.chunk_space, action)
        observations, rewards, terminated, truncated, infos = self._dreams.step(chunk[None])
        observation, info = one_dream(observations, 0), one_dream(infos, 0)
        return observation, float(rewards[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> Any:
        """The last frame, or the list of frames since the last call, as `render_mode` asks."""
        rendered = self._dreams.render()
        return None if rendered is None else rendered[0]

    def close(self) -> None:
        """Free the dream; safe to call twice."""
        self._dreams.close()

    def snapshot(self) -> DreamSnapshot:
        """The dream as it stands: memory, randomness, bookkeeping; no weights."""
        return self._dreams.snapshot()

    def restore(self, snapshot: DreamSnapshot | str | Path) -> tuple[Observation, dict[str, Any]]:
        """Continue from a snapshot, or from the file of one; returns what `reset` returns."""
        observations, infos = self._dreams.restore(snapshot)
        self._share_generator()
        return one_dream(observations, 0), one_dream(infos, 0)

    def fork(self, n: int) -> DreamVectorEnv:
        """A vector environment of n dreams that all continue this one."""
        return self._dreams.fork(n)

    def __str__(self) -> str:
        """Says which world, and whether it was trained."""
        return f"<{type(self).__name__} {self.world.title}>"

    def _share_generator(self) -> None:
        """`np_random` is the generator that the dream draws from."""
        self._np_random = self._dreams.np_random[0]
        self._np_random_seed = self._dreams.np_random_seed[0]
