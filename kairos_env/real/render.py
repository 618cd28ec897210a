"""Pictures of a MuJoCo simulation: fast, without a display, and safe beside other renderers.

MuJoCo's own `Renderer` frees its OpenGL objects after it has let go of its context, so closing one
deletes the objects of whichever context is current: the next frames of another renderer are black.
This one makes its own context current before every OpenGL call, the closing ones too.
"""

import atexit
import ctypes
import importlib
import os
import sys
import weakref
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import mujoco

INSTALL_HINT = (
    "On Debian or Ubuntu: apt-get install --no-install-recommends libegl1 libgl1 libgl1-mesa-dri. "
    "Then set MUJOCO_GL=egl (or leave it unset) before mujoco is first imported."
)


class RenderError(RuntimeError):
    """No picture can be rendered on this machine; the message says what to install."""


def load_mujoco() -> ModuleType:
    """Import MuJoCo so that it can render without a display where the machine can.

    MuJoCo reads MUJOCO_GL once, when it is first imported. Without libEGL that import itself fails,
    so rendering is then switched off and the physics still runs.

    Raises:
        RenderError: MUJOCO_GL asks for a library that is not there.
    """
    if "mujoco" not in sys.modules and sys.platform.startswith("linux"):
        os.environ.setdefault("MUJOCO_GL", "egl" if _can_load("libEGL.so.1") else "disable")
    try:
        return importlib.import_module("mujoco")
    except AttributeError as error:  # what its OpenGL binding raises when the library is missing
        raise RenderError(
            f"MuJoCo cannot be imported with MUJOCO_GL={os.environ.get('MUJOCO_GL')}: its OpenGL "
            f"library is missing or broken ({error}). {INSTALL_HINT}"
        ) from error


def _can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


class FrameRenderer:
    """Square frames of one model with the cheap flags: no shadows, reflections, sky or haze.

    Args:
        model: The model; its own quality settings are left as they were.
        frame_size: Height and width in pixels.
        camera: Name or number of a camera of the model, a mapping of free-camera settings
            (`distance`, `azimuth`, `elevation`, `lookat`, `trackbodyid`), or None for the model's
            free camera.
        samples: Colour samples a pixel for smooth edges; 0 is cheapest.
        hidden_groups: Geom groups to leave out, for example collision shapes.
    """

    def __init__(
        self,
        model: "mujoco.MjModel",
        *,
        frame_size: int = 64,
        camera: str | int | Mapping[str, Any] | None = None,
        samples: int = 0,
        hidden_groups: tuple[int, ...] = (),
    ) -> None:
        self._mujoco = load_mujoco()
        self._model = model
        self._rect = self._mujoco.MjrRect(0, 0, frame_size, frame_size)
        self._frame_size = frame_size
        self._camera = _make_camera(self._mujoco, model, camera)
        self._options = self._mujoco.MjvOption()
        for group in hidden_groups:
            self._options.geomgroup[group] = 0
        self._scene = self._mujoco.MjvScene(model, 10_000)
        for flag in ("SHADOW", "REFLECTION", "SKYBOX", "HAZE"):
            self._scene.flags[getattr(self._mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
        self._gl: Any
        self._context: Any
        self._gl, self._context = _make_contexts(self._mujoco, model, frame_size, samples)
        _LIVE.add(self)

    def render(self, data: "mujoco.MjData") -> NDArray[np.uint8]:
        """A new (H, W, 3) frame of the simulation as it stands; the simulation is not changed."""
        if self._context is None:
            raise RenderError("this renderer is closed; make a new one")
        if self._camera.trackbodyid >= 0:
            # MuJoCo's tracking camera glides after the body, so its picture would depend on the
            # frames before; ours looks at the body.
            self._camera.lookat[:] = data.subtree_com[self._camera.trackbodyid]
        mujoco = self._mujoco
        mujoco.mjv_updateScene(
            self._model,
            data,
            self._options,
            None,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        self._gl.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        mujoco.mjr_render(self._rect, self._scene, self._context)
        frame = np.empty((self._frame_size, self._frame_size, 3), np.uint8)
        mujoco.mjr_readPixels(frame, None, self._rect, self._context)
        return np.ascontiguousarray(frame[::-1])  # OpenGL counts rows from the bottom

    def close(self) -> None:
        """Free the OpenGL objects; safe to call twice."""
        if self._context is None:
            return
        self._gl.make_current()  # else MuJoCo deletes the objects of another renderer
        self._context.free()
        self._context = None
        self._gl.free()
        self._gl = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_context", None) is not None and not sys.is_finalizing():
            self.close()


_LIVE: "weakref.WeakSet[FrameRenderer]" = weakref.WeakSet()


def _close_all() -> None:
    for renderer in list(_LIVE):
        renderer.close()


def _make_contexts(
    mujoco: ModuleType, model: "mujoco.MjModel", frame_size: int, samples: int
) -> tuple[Any, Any]:
    """OpenGL's context and MuJoCo's in it, or a RenderError that says what is missing."""
    try:
        context = _context_class(mujoco)(frame_size, frame_size)
        context.make_current()
        renderer = _make_cheap_context(mujoco, model, frame_size, samples)
    except Exception as error:  # each backend fails in its own way
        raise RenderError(
            f"MuJoCo cannot render here (MUJOCO_GL is {os.environ.get('MUJOCO_GL', 'unset')}): "
            f"{error}. {INSTALL_HINT}"
        ) from error
    if not _LIVE:
        # MuJoCo registers the end of its display when it makes a context. Exit handlers run last
        # in, first out: ours must be registered after it to free the contexts while the display
        # still stands.
        atexit.unregister(_close_all)
        atexit.register(_close_all)
    return context, renderer


def _context_class(mujoco: ModuleType) -> Any:
    """The kind of OpenGL context that MUJOCO_GL asked for when MuJoCo was imported."""
    if "MUJOCO_GL" not in os.environ and sys.platform.startswith("linux"):
        # Somebody else imported MuJoCo, which then expects a display; EGL needs none.
        return importlib.import_module("mujoco.egl").GLContext
    if not hasattr(mujoco, "GLContext"):
        raise RenderError("it was loaded without a renderer")
    return mujoco.GLContext


def _make_cheap_context(
    mujoco: ModuleType, model: "mujoco.MjModel", frame_size: int, samples: int
) -> Any:
    """A context of the frame's size without a shadow map; the model's settings are put back."""
    quality, screen = model.vis.quality, model.vis.global_
    kept = quality.shadowsize, quality.offsamples, screen.offwidth, screen.offheight
    quality.shadowsize, quality.offsamples = 0, samples
    screen.offwidth, screen.offheight = frame_size, frame_size
    try:
        return mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
    finally:
        quality.shadowsize, quality.offsamples, screen.offwidth, screen.offheight = kept


def _make_camera(
    mujoco: ModuleType, model: "mujoco.MjModel", camera: str | int | Mapping[str, Any] | None
) -> "mujoco.MjvCamera":
    """MuJoCo's camera object for a name, a number, free-camera settings or None."""
    view = mujoco.MjvCamera()
    mujoco.mjv_defaultFreeCamera(model, view)
    if isinstance(camera, str | int):
        names = [model.camera(i).name for i in range(model.ncam)]
        number = names.index(camera) if camera in names else camera
        if not isinstance(number, int) or not 0 <= number < model.ncam:
            raise ValueError(f"no camera {camera!r} in this model; it has {names}")
        view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, number
        return view
    for key, value in (camera or {}).items():
        if not hasattr(view, key):
            raise ValueError(
                f"no camera setting {key!r}; known: distance, azimuth, elevation, lookat, "
                "trackbodyid"
            )
        if key == "lookat":
            view.lookat[:] = value
        else:
            setattr(view, key, value)
    return view
