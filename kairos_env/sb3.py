"""Dreams for Stable-Baselines3: its `VecEnv` interface over one `DreamVectorEnv` (extra "sb3").

from kairos_env.sb3 import DreamVecEnv
model = PPO("CnnPolicy", DreamVecEnv("push", 16)).learn(100_000)
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

try:
    from stable_baselines3.common.vec_env import VecEnv
except ImportError as error:
    raise ImportError(
        'kairos_env.sb3 needs Stable-Baselines3: pip install "kairos-env[sb3]"'
    ) from error

from kairos_env.vector_env import DreamVectorEnv
from kairos_env.view import Observation, ObservationKind, one_dream
from kairos_env.worlds import World

Indices = int | Iterable[int] | None


class DreamVecEnv(VecEnv):
    """B dreams as Stable-Baselines3 wants them: ended ones begin anew in the same step.

    The last observation of an episode is in `info["terminal_observation"]`, and
    `info["TimeLimit.truncated"]` says whether it was cut off.

    Args:
        world: As for `DreamVectorEnv`.
        num_envs: B.
        observation: "pixels" for `CnnPolicy`, "state" or "latent" for `MlpPolicy`, "dict" for
            `MultiInputPolicy`.
        seed: For the first reset; dream i gets seed + i.
        **options: Further arguments of `DreamVectorEnv`.
    """

    def __init__(
        self,
        world: str | Path | World | None = None,
        num_envs: int = 1,
        *,
        observation: ObservationKind = "pixels",
        seed: int | None = None,
        **options: Any,
    ) -> None:
        mode = AutoresetMode.SAME_STEP
        self.dreams = DreamVectorEnv(
            num_envs, world=world, observation=observation, autoreset_mode=mode, **options
        )
        self._actions: NDArray[Any] | None = None
        spaces = self.dreams.single_observation_space, self.dreams.single_action_space
        super().__init__(num_envs, *spaces)
        self.metadata = {**self.dreams.metadata}
        if seed is not None:
            self.seed(seed)

    def reset(self) -> Observation:
        """Begin new episodes, with what `seed` and `set_options` asked for."""
        seeded = any(seed is not None for seed in self._seeds)
        options = self._options[0]
        if any(other != options for other in self._options):
            raise ValueError(
                "dreams of one batch are reset together: set_options takes one dict; an array in "
                "it may have a first axis for the dreams"
            )
        observations, infos = self.dreams.reset(
            seed=list(self._seeds) if seeded else None, options=options or None
        )
        self.reset_infos = [one_dream(infos, dream) for dream in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(
        self,
    ) -> tuple[Observation, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Step all dreams: observations, rewards, dones, infos."""
        assert self._actions is not None, "step_async comes first"
        observations, rewards, terminated, truncated, infos = self.dreams.step(self._actions)
        final = infos.pop("final_obs", None), infos.pop("final_info", None)
        told = [one_dream(infos, dream) for dream in range(self.num_envs)]
        dones = terminated | truncated
        for dream in range(self.num_envs):
            if dones[dream]:
                self.reset_infos[dream] = told[dream]
                told[dream] = one_dream(final[1], dream)
                told[dream]["terminal_observation"] = final[0][dream]
            told[dream]["TimeLimit.truncated"] = bool(truncated[dream] and not terminated[dream])
        return observations, rewards.astype(np.float32), dones, told

    def close(self) -> None:
        """Free the dreams."""
        self.dreams.close()

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the next reset; without a number each dream goes on with its own generator."""
        self._seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
        return self._seeds

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """The last frame of each dream, for `render_mode="rgb_array"`."""
        return self.dreams.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """An attribute of the environment, the same for all its dreams."""
        return [getattr(self.dreams, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Indices = None) -> None:
        """Refused: the dreams share one object."""
        raise AttributeError(
            f"dreams are not separate objects, {attr_name!r} cannot be set for some of them; set "
            "it on .dreams"
        )

    def env_method(
        self, method_name: str, *args: Any, indices: Indices = None, **kwargs: Any
    ) -> list[Any]:
        """Refused: the dreams share one object."""
        raise AttributeError(
            f"dreams are not separate objects, {method_name!r} cannot be called for some of them; "
            "call it on .dreams"
        )

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: Indices = None
    ) -> list[bool]:
        """No dream is wrapped one by one."""
        return [False for _ in self._get_indices(indices)]
