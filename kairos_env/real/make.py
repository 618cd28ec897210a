"""`make_real`: find a ground-truth environment by name, or the one a world was learned from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from kairos_env import catalogue
from kairos_env.real.errors import UnknownEnvironmentError, suggest
from kairos_env.real.real_env import RealEnv
from kairos_env.real.render import load_mujoco
from kairos_env.real.simulator import Env, MujocoSimulator, Simulator, is_mujoco

if TYPE_CHECKING:
    from kairos_env.worlds import World

# The keys of a world's "environment" that make_real takes as they are.
_WORLD_OPTIONS = ("chunk", "frames_per_chunk", "frame_size", "horizon")
_EXAMPLES = ("metaworld/reach-v3", "robosuite/Lift")
_UNLIMITED = -1  # how gymnasium.make spells "no time limit"


def make_real(
    name_or_world: "str | Path | World",
    *,
    chunk: int | None = None,
    frames_per_chunk: int | None = None,
    frame_size: int | None = None,
    horizon: int | None = None,
    render_mode: str | None = "rgb_array",
    camera: str | int | Mapping[str, Any] | None = None,
    draw: bool = True,
    **env_kwargs: Any,
) -> RealEnv:
    """Make the ground truth, with the same spaces, chunking and reward accounting as a dream of it.

    Args:
        name_or_world: A Gymnasium id ("KairosPush-v0", "HalfCheetah-v5"), "metaworld/TASK",
            "robosuite/TASK", or a world: loaded, its folder, or a bundled world's name. A world
            fixes what is left at None below.
        chunk: K, low-level actions per step (4).
        frames_per_chunk: F, frames per step; divides K (1).
        frame_size: Side of the square frame in pixels (64).
        horizon: Steps (chunks) until truncation; it replaces the environment's own time limit,
            which holds when this is None.
        render_mode: None or "rgb_array".
        camera: For MuJoCo: a camera's name or number, or free-camera settings such as
            `{"distance": 1.0, "elevation": -90}`; None takes the environment's own view.
        draw: False shows black frames, several times faster: for policies that see the state.
        **env_kwargs: For the low-level environment's constructor.

    Raises:
        UnknownEnvironmentError: With suggestions.
        ImportError: A simulator is not installed; the message names the extra.
    """
    options = {
        "chunk": chunk,
        "frames_per_chunk": frames_per_chunk,
        "frame_size": frame_size,
        "horizon": horizon,
    }
    recipe = find_recipe(name_or_world)
    name = str(name_or_world) if recipe is None else recipe["id"]
    if recipe is not None:
        options = {k: recipe.get(k) if v is None else v for k, v in options.items()}
        env_kwargs = {**recipe.get("kwargs", {}), **env_kwargs}
    if camera is None:
        camera = env_kwargs.pop("camera", None)
    chunk, frames_per_chunk = options["chunk"] or 4, options["frames_per_chunk"] or 1
    spec_kwargs = {"name_or_world": name, "camera": camera, "draw": draw, **options, **env_kwargs}
    simulator = open_simulator(
        name,
        frame_size=options["frame_size"] or 64,
        unlimited=options["horizon"] is not None,
        camera=camera,
        **env_kwargs,
    )
    return RealEnv(
        simulator,
        name=name,
        chunk=chunk,
        frames_per_chunk=frames_per_chunk,
        horizon=options["horizon"],
        render_mode=render_mode,
        draw=draw,
        spec=_spec(spec_kwargs),
    )


def open_simulator(
    name: str,
    *,
    frame_size: int = 64,
    unlimited: bool = False,
    camera: str | int | Mapping[str, Any] | None = None,
    **env_kwargs: Any,
) -> Simulator:
    """The low-level environment of a name, with frames and snapshots.

    Args:
        name: As for `make_real`, but not a world.
        frame_size: Side of the square frame.
        unlimited: Leave out the environment's own time limit.
        camera: As for `make_real`.
        **env_kwargs: For the environment's constructor.
    """
    family, _, task = name.partition("/")
    if family == "metaworld":
        from kairos_env.real.metaworld import make_metaworld

        env: Env = make_metaworld(task, unlimited=unlimited, **env_kwargs)
    elif family == "robosuite":
        from kairos_env.real.robosuite import make_robosuite

        env = make_robosuite(task, unlimited=unlimited, **env_kwargs)
    else:
        env = _make_gymnasium(name, unlimited=unlimited, **env_kwargs)
    if is_mujoco(env):
        return MujocoSimulator(env, frame_size=frame_size, camera=camera)
    if camera is not None:
        raise ValueError(f"{name} is not a MuJoCo environment: it has no camera to choose")
    return Simulator(env, frame_size=frame_size)


def find_recipe(name_or_world: object) -> dict[str, Any] | None:
    """What a world says about the environment it was learned from; None for an environment's name.

    Args:
        name_or_world: As for `make_real`.
    """
    manifest = getattr(name_or_world, "manifest", None)
    if manifest is not None:
        return _recipe_of(manifest.environment)
    text = str(name_or_world)
    if catalogue.is_world(Path(text).expanduser()):
        return read_recipe(Path(text).expanduser())
    if text in catalogue.bundled_worlds():
        return read_recipe(catalogue.find_world(text))
    if text == catalogue.UNTRAINED:
        from kairos_env.worlds import load_world

        return _recipe_of(load_world(text).manifest.environment)
    return None


def _recipe_of(environment: Any) -> dict[str, Any]:
    return {name: getattr(environment, name) for name in ("id", "kwargs", *_WORLD_OPTIONS)}


def read_recipe(world: Path) -> dict[str, Any]:
    """What a world's `world.json` says about the environment it was learned from."""
    path = world / "world.json"
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))["environment"]
        if not isinstance(recipe["id"], str) or not isinstance(recipe.get("kwargs", {}), dict):
            raise TypeError("'id' must be a text and 'kwargs' an object")
        wrong = [k for k in _WORLD_OPTIONS if not isinstance(recipe.get(k), int | None)]
        if wrong:
            raise TypeError(f"{wrong} must be whole numbers")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path}: expected {{"environment": {{"id": ..., "kwargs": {{...}}, "chunk": ...}}}}, '
            f"got {type(error).__name__}: {error}"
        ) from error
    return dict(recipe)


def _make_gymnasium(name: str, *, unlimited: bool, **env_kwargs: Any) -> Env:
    load_mujoco()  # before Gymnasium imports it, so that it can render without a display
    limit = {"max_episode_steps": _UNLIMITED} if unlimited else {}
    if name not in gymnasium.registry and ":" not in name:
        raise UnknownEnvironmentError(_unknown(name))
    try:
        # Another project's style is not ours to warn about: the checker stays off.
        return gymnasium.make(
            name, render_mode="rgb_array", disable_env_checker=True, **limit, **env_kwargs
        )
    except gymnasium.error.UnregisteredEnv as error:
        raise UnknownEnvironmentError(_unknown(name)) from error


def _unknown(name: str) -> str:
    folder = (
        "the folder of that name holds no world.json" if Path(name).is_dir() else "no such folder"
    )
    return (
        f"{name!r} is neither registered with Gymnasium nor a world ({folder})."
        + suggest(name, [*gymnasium.registry, *catalogue.bundled_worlds(), *_EXAMPLES])
        + " Names from a package that must be imported first are written 'package:Name-v0'."
    )


def _spec(kwargs: dict[str, Any]) -> EnvSpec:
    """Lets Gymnasium make the environment again (its checker and vector environments do)."""
    return EnvSpec(
        id="kairos_env/Real-v0",
        entry_point="kairos_env.real:make_real",
        order_enforce=False,
        disable_env_checker=True,
        kwargs={k: v for k, v in kwargs.items() if v is not None},
    )
