"""What must be kept of a running environment so that it can be put back to the bit.

Three parts: the plain Python values of its objects (time limits, counters, goals), the state of its
random generator, and for a MuJoCo simulation the integrator's state with what was computed from it.
A snapshot is a flat dict of arrays, so it goes into an `.npz` without pickle.
"""

import functools
import json
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import gymnasium
    import mujoco

Snapshot = dict[str, NDArray[Any]]

# What MuJoCo computes from the state and rewards, controllers or pictures read. It lags the state
# by one physics step, so it cannot be computed again. The solver's own work space is left out:
# every step makes it anew.
_COMPUTED = (
    *("xpos", "xquat", "xmat", "xipos", "ximat", "xanchor", "xaxis", "geom_x", "site_x", "cam_x"),
    *("light_x", "subtree_", "cinert", "crb", "cdof", "cvel", "cacc", "cfrc_", "qacc", "qfrc_"),
    *("actuator_force", "actuator_length", "actuator_velocity", "qM", "M", "ten_length"),
    *("ten_velocity", "sensordata", "energy"),
)
# What environments change in a compiled model: poses, sizes, colours, masses, friction, limits.
_MODEL_PARTS = (
    "body_",
    "geom_",
    "site_",
    "jnt_",
    "dof_",
    "cam_",
    "light_",
    "mat_rgba",
    "actuator_",
)


class SnapshotError(NotImplementedError):
    """This environment cannot be put back into an earlier state."""


class ForeignSnapshotError(ValueError):
    """The snapshot was taken of something else."""


# -- plain Python values --------------------------------------------------------------------------


def plain_values(owner: object) -> dict[str, Any]:
    """The attributes of an object that are numbers, strings, arrays, or containers of these."""
    return {name: value for name, value in vars(owner).items() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    if value is None or isinstance(value, bool | int | float | str | np.generic):
        return True
    if isinstance(value, np.ndarray):
        return bool(value.dtype.kind != "O")
    if isinstance(value, list | tuple):
        return type(value) in (list, tuple) and all(map(_is_plain, value))
    if isinstance(value, dict):
        return type(value) is dict and all(
            isinstance(k, str) and _is_plain(v) for k, v in value.items()
        )
    return False


def pack(values: Any) -> Snapshot:
    """Nested plain values as a flat dict of arrays: one JSON text, and the arrays it points to."""
    arrays: Snapshot = {}

    def encode(value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic):
            key = f"array_{len(arrays)}"
            arrays[key] = np.array(value)
            return {"scalar" if isinstance(value, np.generic) else "array": key}
        if isinstance(value, tuple):
            return {"tuple": [encode(v) for v in value]}
        if isinstance(value, list):
            return [encode(v) for v in value]
        if isinstance(value, dict):
            return {"dict": {k: encode(v) for k, v in value.items()}}
        return value

    text = json.dumps(encode(values))
    return {"json": np.frombuffer(text.encode(), np.uint8).copy(), **arrays}


def unpack(packed: Snapshot) -> Any:
    """The inverse of `pack`."""

    def decode(value: Any) -> Any:
        if isinstance(value, list):
            return [decode(v) for v in value]
        if not isinstance(value, dict):
            return value
        [(kind, content)] = value.items()
        if kind == "tuple":
            return tuple(decode(v) for v in content)
        if kind == "dict":
            return {k: decode(v) for k, v in content.items()}
        array = packed[content].copy()
        return array[()] if kind == "scalar" else array

    return decode(json.loads(packed["json"].tobytes().decode()))


def put_back(owner: object, values: dict[str, Any]) -> None:
    """Set attributes taken by `plain_values`."""
    for name, value in values.items():
        current = vars(owner).get(name)
        if isinstance(current, np.ndarray) and _looks_into_simulator(current):
            current[...] = value
        else:
            setattr(owner, name, value)


def _looks_into_simulator(array: NDArray[Any]) -> bool:
    """Whether the array is a window on memory that is not NumPy's, such as MuJoCo's `qpos`."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base is not None and array.flags.writeable


# -- wrappers and random generators ---------------------------------------------------------------


def env_layers(env: "gymnasium.Env[Any, Any]") -> list[object]:
    """The wrappers from the outside in, the environment, and environments that these hold."""
    from gymnasium import Env

    layers: list[object] = []
    waiting: list[object] = [env]
    while waiting:
        layer = waiting.pop(0)
        if not any(layer is known for known in layers):
            layers.append(layer)
            waiting += [value for value in vars(layer).values() if isinstance(value, Env)]
    return layers


def random_state(layer: object) -> str:
    """The state of a layer's own generator, as text; empty where it has none yet."""
    generator = vars(layer).get("_np_random")
    return "" if generator is None else json.dumps(generator.bit_generator.state)


def set_random_state(layer: object, text: str) -> None:
    """Put a layer's own generator back."""
    generator = vars(layer).get("_np_random")
    if text and generator is not None:
        generator.bit_generator.state = json.loads(text)
    elif text:
        generator = np.random.Generator(np.random.PCG64())
        generator.bit_generator.state = json.loads(text)
        vars(layer)["_np_random"] = generator
    elif generator is not None:
        vars(layer)["_np_random"] = None


# -- MuJoCo ---------------------------------------------------------------------------------------


def _mujoco_arrays(owner: object, starting: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """Numeric arrays of a model or data by the start of their names, as windows on its memory."""
    kind: Any = type(owner)
    arrays = {name: getattr(owner, name) for name in _names(kind, starting)}
    return {
        name: array
        for name, array in arrays.items()
        if isinstance(array, np.ndarray) and array.size and array.dtype.kind in "fiu"
    }


@functools.cache
def _names(kind: Any, starting: tuple[str, ...]) -> list[str]:
    return [name for name in dir(kind) if name.startswith(starting)]


def computed_arrays(data: "mujoco.MjData") -> dict[str, NDArray[Any]]:
    """Everything of MuJoCo's data that a reward or a picture may read."""
    return _mujoco_arrays(data, _COMPUTED)


def model_arrays(model: "mujoco.MjModel") -> dict[str, NDArray[Any]]:
    """Everything of a compiled model that environments are known to change."""
    return _mujoco_arrays(model, _MODEL_PARTS)


def integration_state(
    mujoco: ModuleType, model: "mujoco.MjModel", data: "mujoco.MjData"
) -> NDArray[np.float64]:
    """All that the next `mj_step` depends on."""
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, state, kind)
    return state


def set_integration_state(
    mujoco: ModuleType, model: "mujoco.MjModel", data: "mujoco.MjData", state: NDArray[Any]
) -> None:
    """Put back what `integration_state` gave."""
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    size = mujoco.mj_stateSize(model, kind)
    if state.shape != (size,):
        raise ForeignSnapshotError(
            f"expected {size} numbers of simulator state, got shape {state.shape}: the snapshot is "
            "of another model"
        )
    mujoco.mj_setState(model, data, np.asarray(state, np.float64), kind)
