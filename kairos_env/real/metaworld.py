"""Meta-World tasks as ordinary environments: seeded by `reset`, goal in sight, scripted experts.

Its own environments ignore the seed given to `reset`, hide the goal from the observation until a
task object is set, and raise in the step after their time limit. This adapter needs the extra:
pip install "kairos-env[metaworld]" (docs/reality.md says how beside a newer MuJoCo).
"""

import importlib
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from kairos_env.real.errors import UnknownEnvironmentError, suggest
from kairos_env.real.experts import simulated
from kairos_env.real.render import load_mujoco

if TYPE_CHECKING:
    from kairos_env.real.experts import Expert

Observation = NDArray[np.float64]
_NEVER = 2**31


class MetaWorldEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """One Meta-World task with randomised objects and goal, both in the observation.

    Actions (4,) move the hand along x, y, z and close the gripper, 80 times a second. The reward is
    Meta-World's own, 0 to 10 an action.

    Args:
        task: For example "reach-v3".
        max_episode_steps: Truncates after so many actions; None for never. 500 is Meta-World's.
        terminate_on_success: End the episode when the task is solved. Meta-World goes on.
        render_mode: None or "rgb_array".
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 80}  # noqa: RUF012 (Gymnasium's own form)
    # From beyond the far right corner of the table: hand, objects and goals of all tasks in sight.
    # The cameras of the model show them a pixel or two large, sideways, or behind the arm.
    view: ClassVar[dict[str, Any]] = {
        "camera": {"lookat": (0.0, 0.7, 0.1), "distance": 0.95, "azimuth": -120, "elevation": -45},
        "samples": 4,
    }

    def __init__(
        self,
        task: str,
        *,
        max_episode_steps: int | None = 500,
        terminate_on_success: bool = False,
        render_mode: str | None = None,
    ) -> None:
        classes = _load().ALL_V3_ENVIRONMENTS
        if task not in classes:
            raise UnknownEnvironmentError(
                f"Meta-World has no task {task!r}.{suggest(task, classes)} Tasks: "
                + ", ".join(classes)
            )
        self.render_mode = render_mode
        self._inner = classes[task]()
        self._terminate_on_success = terminate_on_success
        self._show_goal()
        # The limit is this object's business: Meta-World's own raises one step too late.
        self._inner.max_path_length = _NEVER
        self.max_episode_steps = max_episode_steps
        self._steps = 0
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.observation_space = self._inner.sawyer_observation_space
        self._low: Observation = self._inner.sawyer_observation_space.low
        self._high: Observation = self._inner.sawyer_observation_space.high
        # Experts read it.
        self.observation: Observation = np.zeros(self._low.shape)

    @property
    def model(self) -> Any:
        """MuJoCo's model."""
        return self._inner.model

    @property
    def data(self) -> Any:
        """MuJoCo's data."""
        return self._inner.data

    @property
    def dt(self) -> float:
        """Seconds per action."""
        return float(self._inner.dt)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """A new layout from `self.np_random`; there are no options."""
        super().reset(seed=seed)
        self._inner.np_random = self.np_random
        self._inner._did_see_sim_exception = False
        self._steps = 0
        self._inner.reset()
        self.observation = self._within_bounds(self._first_observation())
        return self.observation.copy(), {"success": False}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One of Meta-World's steps; its numbers are passed on in `info`."""
        observation, reward, _, _, info = self._inner.step(np.asarray(action, np.float32))
        self._steps += 1
        self.observation = self._within_bounds(observation)
        success = bool(info["success"])
        terminated = success and self._terminate_on_success
        truncated = self.max_episode_steps is not None and self._steps >= self.max_episode_steps
        return (
            self.observation.copy(),
            float(reward),
            terminated,
            truncated,
            {**info, "success": success},
        )

    def close(self) -> None:
        """Free Meta-World's own viewer, if any."""
        self._inner.close()

    def _show_goal(self) -> None:
        """Randomise the layout in every reset, from our generator, and put the goal in sight."""
        inner = self._inner
        inner._partially_observable = False
        del inner.sawyer_observation_space  # it was computed with the goal hidden
        inner._freeze_rand_vec = False
        inner.seeded_rand_vec = True
        inner._set_task_called = True

    def _first_observation(self) -> Observation:
        """What a reset should show.

        Meta-World moves goals and furniture in the model without telling the simulation: picture
        and observation would show their old places until the first step.
        """
        load_mujoco().mj_forward(self.model, self.data)
        observation: Observation = self._inner._get_obs()
        half = len(self._inner._prev_obs)
        observation[half : 2 * half] = observation[:half]  # no past yet: the present twice
        return observation

    def _within_bounds(self, observation: Observation) -> Observation:
        return np.clip(observation, self._low, self._high)


def make_metaworld(task: str, *, unlimited: bool = False, **kwargs: Any) -> MetaWorldEnv:
    """A Meta-World task for `make_real`."""
    if unlimited:
        kwargs["max_episode_steps"] = None
    return MetaWorldEnv(task, render_mode="rgb_array", **kwargs)


def metaworld_expert(task: str) -> "Expert":
    """Meta-World's own scripted policy of a task."""
    _load()
    policies = importlib.import_module("metaworld.policies").ENV_POLICY_MAP
    if task not in policies:
        raise KeyError(f"Meta-World has no policy for {task!r}.{suggest(task, policies)}")
    policy = policies[task]()

    def expert(env: "gymnasium.Env[Any, Any]", rng: np.random.Generator) -> NDArray[np.float32]:
        del rng  # deterministic
        with warnings.catch_warnings():
            # "Constant(s) may be too high": the next line does the clipping it announces.
            warnings.simplefilter("ignore", UserWarning)
            action = policy.get_action(simulated(env).observation)
        return np.clip(np.asarray(action, np.float32), -1.0, 1.0)

    return expert


def _load() -> ModuleType:
    """Meta-World's table of tasks, or an ImportError that names the extra."""
    load_mujoco()
    try:
        return importlib.import_module("metaworld.env_dict")
    except ImportError as error:
        raise ImportError(
            f'Meta-World could not be imported ({error}): pip install "kairos-env[metaworld]"; '
            "beside a newer MuJoCo: pip install --no-deps metaworld && pip install scipy packaging"
        ) from error
