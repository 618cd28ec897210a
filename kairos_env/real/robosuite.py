"""robosuite tasks as ordinary environments: seeded by `reset`, silent, restored to the bit.

robosuite's own `reset` draws from generators made in the constructor, loads a new model each time,
and its controllers keep goals outside the simulator. This adapter shares one generator, keeps the
model, and names every object whose values belong to an episode. It needs the extra:
pip install "kairos-env[robosuite]".
"""

import contextlib
import importlib
import logging
import os
from collections.abc import Iterator
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

# Objects of these modules keep values from one step to the next (goals, filters, samplers).
_STATEFUL = (
    *("robosuite.environments", "robosuite.robots", "robosuite.controllers"),
    *("robosuite.utils.buffers", "robosuite.utils.observables", "robosuite.models.grippers"),
)
# Over the table's corner: gripper and cubes in sight in every phase. The model's own cameras show a
# cube about as large but cut off the gripper.
_TABLE_VIEW = {
    "lookat": (-0.05, 0.0, 0.93),
    "distance": 0.6,
    "azimuth": 135,
    "elevation": -25,
}
# Where a Panda's Lift says what its expert asks for.
LIFT_HAND, LIFT_CUBE = slice(35, 38), slice(50, 53)
LIFT_FINGERS, LIFT_FINGER_SPEEDS = slice(46, 48), slice(48, 50)
_COLLISION_SHAPES = 0  # robosuite's geom group of shapes that are not meant to be seen


class RobosuiteEnv(gymnasium.Env[Observation, NDArray[np.float32]]):
    """One robosuite task, its proprioception and objects as one vector.

    Actions are the controller's, in [-1, 1]; for one Panda 7 numbers: hand motion along x, y, z,
    its rotation, and the gripper, 20 times a second. The reward is robosuite's shaped one, at most
    1 an action. Sizes and textures are drawn once, with the model; `reset` draws poses.

    Args:
        task: For example "Lift".
        max_episode_steps: Truncates after so many actions; None for never.
        terminate_on_success: End the episode when the task is solved. robosuite goes on.
        render_mode: None or "rgb_array".
        **kwargs: For `robosuite.make`: robots, controller_configs, control_freq, reward_shaping ...
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (Gymnasium's own form)
    views: ClassVar[dict[str, Any]] = {"Lift": _TABLE_VIEW, "Stack": _TABLE_VIEW}

    def __init__(
        self,
        task: str,
        *,
        max_episode_steps: int | None = 500,
        terminate_on_success: bool = False,
        render_mode: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.render_mode = render_mode
        self.max_episode_steps = max_episode_steps
        self._terminate_on_success = terminate_on_success
        self._steps = 0
        self._inner: Any = _make_inner(task, kwargs)
        # Everything that draws in a reset (placement, arenas) is to draw from our own generator.
        reachable: list[Any] = _reachable(self._inner, ("robosuite.",))
        self._drawing = [
            o for o in reachable if isinstance(vars(o).get("rng"), np.random.Generator)
        ]
        self.view = {
            "camera": self.views.get(task, "agentview"),
            "hidden_groups": (_COLLISION_SHAPES,),
        }
        low, high = self._inner.action_spec
        self.action_space = gymnasium.spaces.Box(
            low.astype(np.float32), high.astype(np.float32), dtype=np.float32
        )
        size = self._read(self._inner.reset()).size
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (size,), np.float64)

    @property
    def model(self) -> Any:
        """MuJoCo's model, without robosuite's wrapper."""
        return self._inner.sim.model._model

    @property
    def data(self) -> Any:
        """MuJoCo's data, without robosuite's wrapper."""
        return self._inner.sim.data._data

    @property
    def dt(self) -> float:
        """Seconds per action."""
        return 1.0 / float(self._inner.control_freq)

    def snapshot_parts(self) -> list[object]:
        """Further objects whose plain values belong to the episode."""
        return _reachable(self._inner, _STATEFUL)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """New poses from `self.np_random`; there are no options."""
        super().reset(seed=seed)
        for owner in self._drawing:
            owner.rng = self.np_random
        self._steps = 0
        return self._read(self._inner.reset()), {"success": False}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """One control step."""
        observations, reward, _, info = self._inner.step(np.asarray(action, np.float64))
        self._steps += 1
        success = bool(self._inner._check_success())
        return (
            self._read(observations),
            float(reward),
            success and self._terminate_on_success,
            self.max_episode_steps is not None and self._steps >= self.max_episode_steps,
            {**info, "success": success},
        )

    def close(self) -> None:
        """Free robosuite's simulation."""
        self._inner.close()

    def _read(self, observations: dict[str, Any]) -> Observation:
        parts = [np.ravel(x) for name, x in observations.items() if name.endswith("-state")]
        seen: Observation = np.concatenate(parts, dtype=np.float64)
        self.observation = seen.copy()  # experts read it
        return seen


def make_robosuite(task: str, *, unlimited: bool = False, **kwargs: Any) -> RobosuiteEnv:
    """A robosuite task for `make_real`."""
    if unlimited:
        kwargs["max_episode_steps"] = None
    return RobosuiteEnv(task, render_mode="rgb_array", **kwargs)


def robosuite_expert(task: str) -> "Expert":
    """The scripted policy of a task; there is one for Lift."""
    if task != "Lift":
        raise KeyError(f"no scripted expert for robosuite/{task}; there is one for robosuite/Lift")
    return lift_expert


def lift_expert(env: "gymnasium.Env[Any, Any]", rng: np.random.Generator) -> NDArray[np.float32]:
    """Hover over the cube, go down, close the gripper, lift."""
    del rng  # deterministic
    seen = simulated(env).observation
    offset = seen[LIFT_CUBE] - seen[LIFT_HAND]
    opening = float(seen[LIFT_FINGERS][0] - seen[LIFT_FINGERS][1])
    aside = float(np.linalg.norm(offset[:2]))
    around = aside < 0.02 and abs(offset[2]) < 0.015
    action = np.zeros(7, np.float32)
    action[6] = 1.0 if around else -1.0
    stopped = float(np.abs(seen[LIFT_FINGER_SPEEDS]).max()) < 0.02
    if around and stopped and opening < 0.07:  # the fingers hold the cube, 0.04 to 0.06 wide
        offset = np.array([0.0, 0.0, 0.1])
    elif aside > 0.02:
        offset = offset + np.array([0.0, 0.0, 0.06])
    # A full action moves the hand by 0.05 m.
    action[:3] = np.clip(offset / 0.05, -1.0, 1.0)
    return action


def _make_inner(task: str, kwargs: dict[str, Any]) -> Any:
    with _silence():
        robosuite = _load()
        tasks = sorted(robosuite.ALL_ENVIRONMENTS)
        if task not in tasks:
            raise UnknownEnvironmentError(
                f"robosuite has no task {task!r}.{suggest(task, tasks)} Tasks: {', '.join(tasks)}"
            )
        robots = ["Panda", "Panda"] if task.startswith("TwoArm") else "Panda"
        ours = {
            "has_renderer": False,
            "has_offscreen_renderer": False,
            "use_camera_obs": False,
            "ignore_done": True,
            "hard_reset": False,  # a new model for each episode could not be restored from arrays
            "seed": 0,  # sizes and textures are the same in every instance
        }
        clash = sorted(ours.keys() & kwargs.keys())
        if clash:
            raise TypeError(
                f"{', '.join(clash)}: set by this adapter; seed by reset(seed=...), choose a view "
                "by make_real(camera=...)"
            )
        return robosuite.make(task, **{"robots": robots, "reward_shaping": True, **kwargs, **ours})


def _load() -> ModuleType:
    load_mujoco()
    backend = os.environ.get("MUJOCO_GL")
    try:
        return importlib.import_module("robosuite")
    except ImportError as error:
        raise ImportError(
            f'robosuite could not be imported ({error}): pip install "kairos-env[robosuite]"'
        ) from error
    finally:
        # robosuite asks for EGL whether or not the machine has it, and children would inherit that.
        if backend is not None:
            os.environ["MUJOCO_GL"] = backend


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Drop what robosuite tells about its installation while it is imported and made."""
    logger = logging.getLogger("robosuite_logs")

    def only_errors(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger.addFilter(only_errors)
    try:
        yield
    finally:
        logger.removeFilter(only_errors)


def _reachable(root: object, modules: tuple[str, ...]) -> list[object]:
    """The object and those it reaches whose classes are in these modules, in a fixed order."""
    found: dict[int, object] = {}
    waiting = [root]
    while waiting:
        candidate = waiting.pop(0)
        if isinstance(candidate, dict):
            waiting += list(candidate.values())
        elif isinstance(candidate, list | tuple):
            waiting += list(candidate)
        elif id(candidate) not in found and _is_from(candidate, modules):
            found[id(candidate)] = candidate
            waiting += list(vars(candidate).values())
    return list(found.values())


def _is_from(candidate: object, modules: tuple[str, ...]) -> bool:
    return type(candidate).__module__.startswith(modules) and hasattr(candidate, "__dict__")
