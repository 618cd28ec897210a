"""One low-level environment with what the twin needs beyond Gymnasium: frames, state, snapshots.

`Simulator` serves any Gymnasium environment that renders to an array; `MujocoSimulator` those that
hold a MuJoCo model, with our own renderer and snapshots of the integrator's state.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium
import numpy as np
from numpy.typing import NDArray

from kairos_env.real import snapshots
from kairos_env.real.render import FrameRenderer, RenderError, load_mujoco
from kairos_env.real.snapshots import ForeignSnapshotError, Snapshot, SnapshotError

Env = gymnasium.Env[Any, Any]

# Stock tasks whose own view shows the target as a pixel or two, by the name of their class: from
# above, near enough to see arm, object and target.
_CLOSER_VIEWS: dict[str, dict[str, Any]] = {
    "ReacherEnv": {
        "camera": {"lookat": (0, 0, 0), "distance": 0.62, "azimuth": 90, "elevation": -90},
        "samples": 4,
    },
    "PusherEnv": {
        "camera": {"lookat": (0.35, -0.35, -0.1), "distance": 1.6, "azimuth": 180, "elevation": -55}
    },
}


class Simulator:
    """Any Gymnasium environment with `rgb_array` pictures.

    A snapshot is possible where the environment documents its state as a plain attribute: `state`
    (Gymnasium's classic control) or `s` (its toy text).

    Args:
        env: The low-level environment, made with `render_mode="rgb_array"`.
        frame_size: Side of the square frame; the environment's picture is shrunk to it.
    """

    documented_state: ClassVar[tuple[str, ...]] = ("state", "s")

    def __init__(self, env: Env, *, frame_size: int) -> None:
        self.env = env
        self.frame_size = frame_size
        self.state: NDArray[np.float32] = np.zeros(_state_size(env.observation_space), np.float32)

    @property
    def control_hz(self) -> float:
        """Low-level actions a second."""
        seconds = getattr(self.env.unwrapped, "dt", None)
        if seconds is not None:
            return 1.0 / float(seconds)
        return float(self.env.metadata.get("render_fps", 30))

    @property
    def time_limit(self) -> int | None:
        """Low-level actions until the environment truncates an episode by itself."""
        spec = self.env.spec
        limit = None if spec is None else spec.max_episode_steps
        return limit or getattr(self.env.unwrapped, "max_episode_steps", None)

    def reset(self, *, seed: int | None, options: dict[str, Any] | None) -> dict[str, Any]:
        """A new episode; returns the environment's info."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._observe(observation)
        return info

    def step(self, action: Any) -> tuple[float, bool, bool, dict[str, Any]]:
        """One low-level action: reward, terminated, truncated, info."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._observe(observation)
        return float(reward), bool(terminated), bool(truncated), info

    def frame(self) -> NDArray[np.uint8]:
        """A new picture (H, W, 3) of the present."""
        picture = self.env.render()
        if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] != 3:
            raise RenderError(
                f"expected a picture (H, W, 3) from {self.env}, got {type(picture).__name__}: "
                "the environment must support render_mode='rgb_array'"
            )
        return shrink(picture, self.frame_size)

    def snapshot(self) -> Snapshot:
        """Everything an exact replay needs; raises SnapshotError where that is out of reach."""
        self._require_documented_state()
        layers = snapshots.env_layers(self.env)
        values = [snapshots.plain_values(layer) for layer in layers]
        random = [snapshots.random_state(layer) for layer in layers]
        packed = snapshots.pack({"values": values, "random": random})
        return {"state": self.state.copy(), **{f"env/{k}": v for k, v in packed.items()}}

    def restore(self, snapshot: Snapshot) -> None:
        """Put back what `snapshot` took, in this instance or a new one."""
        packed = {k[4:]: v for k, v in snapshot.items() if k.startswith("env/")}
        try:
            kept = snapshots.unpack(packed)
            all_values, all_random = kept["values"], kept["random"]
        except (KeyError, ValueError) as error:
            raise ForeignSnapshotError(f"not a snapshot of this kind: {error!r}") from error
        layers = snapshots.env_layers(self.env)
        if len(all_values) != len(layers):
            raise ForeignSnapshotError(
                f"expected the values of {len(layers)} layers (wrappers and environments), got "
                f"{len(all_values)}: the snapshot is of an environment wrapped in another way"
            )
        for layer, values, random in zip(layers, all_values, all_random, strict=True):
            snapshots.put_back(layer, values)
            snapshots.set_random_state(layer, random)
        self.state = snapshot["state"].copy()

    def close(self) -> None:
        """Free what the environment holds."""
        self.env.close()

    def _observe(self, observation: Any) -> None:
        if self.state.size:
            flat = gymnasium.spaces.flatten(self.env.observation_space, observation)
            self.state = np.asarray(flat, np.float32)

    def _require_documented_state(self) -> None:
        inner = self.env.unwrapped
        if not any(hasattr(inner, name) for name in self.documented_state):
            raise SnapshotError(
                f"{type(inner).__name__} cannot be put back into an earlier state: it is neither a "
                f"MuJoCo simulation nor documents its state as an attribute {self.documented_state}"
                ". Everything but snapshot and restore works."
            )


class MujocoSimulator(Simulator):
    """An environment that holds a MuJoCo `model` and `data`, restored to the bit.

    Its class may have a `view`: arguments of `FrameRenderer` that show the task well, and a method
    `snapshot_parts()` that names further objects whose plain values belong to the episode.

    Args:
        env: The low-level environment.
        frame_size: Side of the square frame.
        camera: See `FrameRenderer`; None takes the environment's own view.
    """

    def __init__(
        self, env: Env, *, frame_size: int, camera: str | int | Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(env, frame_size=frame_size)
        self._mujoco = load_mujoco()
        self._frame_options = _view_of(env)
        if camera is not None:
            self._frame_options["camera"] = camera
        self._renderer: FrameRenderer | None = None
        self._compiled_model: Any = None
        self._baseline: dict[str, NDArray[Any]] = {}
        self._follow_model()

    def reset(self, *, seed: int | None, options: dict[str, Any] | None) -> dict[str, Any]:
        """A new episode; returns the environment's info."""
        info = super().reset(seed=seed, options=options)
        self._follow_model()
        return info

    def frame(self) -> NDArray[np.uint8]:
        """A new picture (H, W, 3) of the present; the simulation is not changed."""
        if self._renderer is None:
            self._renderer = FrameRenderer(
                self._model, frame_size=self.frame_size, **self._frame_options
            )
        return self._renderer.render(self._data)

    def snapshot(self) -> Snapshot:
        """Everything an exact replay needs."""
        state = snapshots.integration_state(self._mujoco, self._model, self._data)
        parts = [snapshots.plain_values(part) for part in self._parts()]
        kept = {f"parts/{k}": v for k, v in snapshots.pack(parts).items()}
        for name, array in snapshots.computed_arrays(self._data).items():
            kept[f"data/{name}"] = array.copy()
        for name, array in snapshots.model_arrays(self._model).items():
            if array.tobytes() != self._baseline[name].tobytes():
                kept[f"model/{name}"] = array.copy()
        return {"mujoco": state, **kept, **super().snapshot()}

    def restore(self, snapshot: Snapshot) -> None:
        """Put back what `snapshot` took, in this instance or a new one."""
        if "mujoco" not in snapshot:
            raise ForeignSnapshotError("not a snapshot of a MuJoCo simulation")
        for name, array in snapshots.model_arrays(self._model).items():
            values = snapshot.get(f"model/{name}", self._baseline[name])
            if array.tobytes() != values.tobytes():
                _fill(array, values, name)
        self._set_mujoco_state(snapshot["mujoco"])
        # mj_forward finds the contacts, which are not kept. Poses and the like then belong to the
        # state, but in a running simulation they lag it by a physics step: put those back.
        self._mujoco.mj_forward(self._model, self._data)
        for name, array in snapshots.computed_arrays(self._data).items():
            if f"data/{name}" in snapshot:
                _fill(array, snapshot[f"data/{name}"], name)
        super().restore(snapshot)
        packed = {k[6:]: v for k, v in snapshot.items() if k.startswith("parts/")}
        for part, values in zip(self._parts(), snapshots.unpack(packed), strict=True):
            snapshots.put_back(part, values)

    def close(self) -> None:
        """Free the renderer and what the environment holds."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        super().close()

    @property
    def _model(self) -> Any:
        return self.env.unwrapped.model  # type: ignore[attr-defined]  # checked by is_mujoco

    @property
    def _data(self) -> Any:
        return self.env.unwrapped.data  # type: ignore[attr-defined]  # checked by is_mujoco

    def _parts(self) -> list[object]:
        parts = getattr(self.env.unwrapped, "snapshot_parts", None)
        return [] if parts is None else parts()

    def _follow_model(self) -> None:
        """Some environments compile a new model when they reset: start anew from it."""
        if self._model is self._compiled_model:
            return
        self._compiled_model = self._model
        arrays = snapshots.model_arrays(self._model)
        self._baseline = {name: array.copy() for name, array in arrays.items()}
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _set_mujoco_state(self, state: NDArray[np.float64]) -> None:
        snapshots.set_integration_state(self._mujoco, self._model, self._data, state)

    def _require_documented_state(self) -> None:
        """MuJoCo documents its own."""


def is_mujoco(env: Env) -> bool:
    """Whether the environment holds a MuJoCo model and data."""
    inner = env.unwrapped
    kinds = [type(getattr(inner, name, None)).__name__ for name in ("model", "data")]
    return kinds == ["MjModel", "MjData"]


def shrink(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize to (size, size, 3): each new pixel is the mean of the area it covers."""
    if picture.shape[:2] == (size, size):
        return picture.astype(np.uint8, copy=True)
    rows, columns = (_area_weights(old, size) for old in picture.shape[:2])
    # (S, H) (H, W, 3) -> (S, W, 3); (S, W) applied along W -> (S, S, 3)
    tall = np.tensordot(rows, picture.astype(np.float32), axes=1)
    square = np.einsum("cw,rwk->rck", columns, tall)
    resized: NDArray[np.uint8] = np.clip(np.rint(square), 0, 255).astype(np.uint8)
    return resized


def _area_weights(old: int, new: int) -> NDArray[np.float32]:
    """(new, old): how much of each old pixel lies in each new one, rows summing to 1."""
    edges = np.arange(new + 1) * (old / new)
    left, right = edges[:-1, None], edges[1:, None]
    pixels = np.arange(old)[None]
    overlap = np.clip(np.minimum(right, pixels + 1) - np.maximum(left, pixels), 0, None)
    weights: NDArray[np.float32] = (overlap / overlap.sum(1, keepdims=True)).astype(np.float32)
    return weights


def _state_size(space: gymnasium.Space[Any]) -> int:
    """How long the flat state is; 0 when the observation is itself a picture."""
    if isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 3:
        return 0
    return int(gymnasium.spaces.flatdim(space))


def _view_of(env: Env) -> dict[str, Any]:
    """The view a MuJoCo environment shows by itself."""
    inner: Any = env.unwrapped
    if hasattr(inner, "view"):
        return dict(inner.view)
    own = getattr(inner, "mujoco_renderer", None)
    if own is None:
        return {}
    for asked_for in (getattr(inner, "camera_name", None), getattr(inner, "camera_id", None)):
        if asked_for is not None:
            return {"camera": asked_for}
    if type(inner).__name__ in _CLOSER_VIEWS:
        return dict(_CLOSER_VIEWS[type(inner).__name__])
    # A robot that walks out of the picture helps nobody: follow it where the model can.
    names = [inner.model.camera(i).name for i in range(inner.model.ncam)]
    return {"camera": "track" if "track" in names else own.default_cam_config}


def _fill(array: NDArray[Any], values: NDArray[Any], name: str) -> None:
    if array.shape != values.shape:
        raise ForeignSnapshotError(
            f"expected {name} of shape {array.shape}, got {values.shape}: the snapshot is of "
            "another model"
        )
    array[...] = values
