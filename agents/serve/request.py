"""What a client may ask: the fields that the published evaluation clients send, checked.

Shapes: T frames of history, H W pixels, S state size.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_SIDE = 2048
LONGEST_HORIZON = 256
MOST_STEPS = 100
LONGEST_PROMPT = 4000
MOST_FRAMES = 64

# Sent by published clients, and of no use here: the size is the picture's own, no file is written,
# and actions know no guidance.
UNUSED = ("height", "width", "num_frames", "save_path", "save_fps", "cfg_scale", "negative_prompt")


class RequestError(ValueError):
    """A request that cannot be answered; the message says what was expected."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One action chunk, asked for."""

    frames: NDArray[np.uint8]
    """(T, H, W, 3): what the robot has seen, oldest first; one frame where that is all."""
    prompt: str = ""
    state: NDArray[np.float32] | None = None
    """(S,) in the robot's own units."""
    state_mask: NDArray[np.float32] | None = None
    """(S,), 1 where the state is known."""
    horizon: int | None = None
    """Actions; None: as many as the policy has in a chunk."""
    steps: int | None = None
    """Denoising steps; None: the policy's own number."""
    seed: int = 0
    tiled: bool = False

    @property
    def kind(self) -> tuple[Any, ...]:
        """Requests of one kind are answered together."""
        shapes = tuple(None if x is None else x.shape for x in (self.state, self.state_mask))
        return self.frames.shape, shapes, self.horizon, self.steps, self.tiled


def read_request(told: Any) -> Request:
    """A request out of a body.

    Raises:
        RequestError: A field is missing, unknown, too large or of another type.
    """
    if not isinstance(told, Mapping):
        raise RequestError(f"expected an object of fields, got {type(told).__name__}")
    known = {*READERS, *UNUSED, "input_image", "wam_infer_mode"}
    if unknown := sorted(str(name) for name in set(told) - known):
        raise RequestError(f"no field {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    if told.get("wam_infer_mode", "action") != "action":
        raise RequestError(
            f"wam_infer_mode must be 'action', got {told['wam_infer_mode']!r}; videos are made in "
            "Python, see docs/published.md"
        )
    if told.get("input_image") is None:
        raise RequestError("input_image is missing: what the robot sees, uint8 (height, width, 3)")
    read = {
        field: reader(name, told[name])
        for name, (field, reader) in READERS.items()
        if told.get(name) is not None
    }
    return Request(frames=_frames(told["input_image"]), **read)


def _frames(value: Any) -> NDArray[np.uint8]:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list) and all(isinstance(item, np.ndarray) for item in value):
        if len({item.shape for item in value}) != 1:
            raise RequestError("frames of a history must have one size")
        value = np.stack(value)
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8:
        raise RequestError(f"input_image must be an array of uint8, got {_name(value)}")
    frames = value[None] if value.ndim == 3 else value
    if frames.ndim != 4 or frames.shape[-1] != 3 or not 1 <= len(frames) <= MOST_FRAMES:
        raise RequestError(
            "input_image must have shape (height, width, 3), or (frames, height, width, 3) for a "
            f"history of at most {MOST_FRAMES}, got {value.shape}"
        )
    if not 1 <= min(frames.shape[1:3]) <= max(frames.shape[1:3]) <= LARGEST_SIDE:
        raise RequestError(f"a side of input_image has 1 to {LARGEST_SIDE} pixels")
    return frames


def _numbers(name: str, value: Any) -> NDArray[np.float32]:
    try:
        numbers = np.asarray(value, np.float32)
    except (ValueError, TypeError) as error:
        raise RequestError(f"{name} must be numbers ({error})") from error
    numbers = numbers[0] if numbers.ndim == 2 and len(numbers) == 1 else numbers
    if numbers.ndim != 1 or not 1 <= len(numbers) <= LONGEST_HORIZON:
        raise RequestError(f"{name} must be one row of numbers, got shape {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise RequestError(f"{name} must be finite, got NaN or infinity")
    return numbers


def _text(name: str, value: Any) -> str:
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(value, str) or len(value) > LONGEST_PROMPT:
        raise RequestError(f"{name} must be a text of at most {LONGEST_PROMPT} characters")
    return value


def _count(most: int, least: int = 1) -> Callable[[str, Any], int]:
    def read(name: str, value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise RequestError(f"{name} must be a whole number from {least} to {most}")
        return value

    return read


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false, got {_name(value)}")
    return value


def _name(value: Any) -> str:
    return str(value.dtype) if isinstance(value, np.ndarray) else type(value).__name__


# Published name of a field: ours, and how it is read.
READERS: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "prompt": ("prompt", _text),
    "robot_state": ("state", _numbers),
    "robot_state_mask": ("state_mask", _numbers),
    "robot_action_horizon": ("horizon", _count(LONGEST_HORIZON)),
    "num_inference_steps": ("steps", _count(MOST_STEPS)),
    "seed": ("seed", _count(2**62, 0)),
    "tiled": ("tiled", _flag),
}
