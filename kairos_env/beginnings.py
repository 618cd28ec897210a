"""What `reset` is asked to begin with: a bundled start, the caller's frames, or a twin's state.

Everything is checked here, before a dream is touched.

Shapes: B dreams, n of them that begin, T frames of history, H W pixels, A low-level actions per
frame, D numbers per action, S state size.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kairos_env.actions import checked_chunk
from kairos_env.errors import ActionError, OptionError
from kairos_env.spaces import chunk_space, encode_actions
from kairos_env.worlds import World

# Text features are cut or filled up to this length, so that dreams can stand in one batch.
TEXT_TOKENS = 64
NOT_BUNDLED = -1

OPTIONS = ("frames", "actions", "state", "start_index", "text", "snapshot", "reset_mask")


@dataclasses.dataclass(frozen=True, eq=False)
class Beginning:
    """The histories of n dreams that begin."""

    frames: NDArray[np.uint8]
    """(n, T, H, W, 3)."""
    actions: NDArray[np.float32] | None
    """(n, T - 1, A, D) as the network sees them; None where they are not known."""
    state: NDArray[np.float32]
    """(n, S) after the last frame; NaN where it is not known."""
    start_index: NDArray[np.int64]
    """(n,): which bundled start, or -1."""


@dataclasses.dataclass(frozen=True, eq=False)
class Told:
    """Text features of n dreams."""

    features: NDArray[np.float32]
    """(n, tokens, width)."""
    mask: NDArray[np.bool_]
    """(n, tokens): which tokens there are."""


def check_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of the options; OptionError for one that does not exist or for two that contradict."""
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise OptionError(f"reset's options must be a dict, got {type(options).__name__}")
    for name in options:
        if name not in OPTIONS:
            close = difflib.get_close_matches(str(name), OPTIONS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise OptionError(f"reset has no option {name!r}; it has {', '.join(OPTIONS)}.{hint}")
    named = {name: value for name, value in options.items() if value is not None}
    sources = [name for name in ("frames", "start_index", "snapshot") if name in named]
    if len(sources) + is_twin_state(named.get("state")) > 1:
        raise OptionError(f"a dream begins in one way, got the options {', '.join(named)}")
    if "state" in named and "frames" not in named and not is_twin_state(named["state"]):
        raise OptionError(
            "a state's numbers alone show no picture: give 'frames' too, or what "
            "make_real(world).snapshot() returns"
        )
    if "actions" in named and "frames" not in named:
        raise OptionError("the option 'actions' says what was done between 'frames': give both")
    return named


def is_twin_state(value: Any) -> bool:
    """Whether the option "state" is what a real twin's `snapshot()` gives, or a list of these."""
    one = value[0] if isinstance(value, list | tuple) and value else value
    return isinstance(one, Mapping)


def bundled(world: World, index: NDArray[np.int64]) -> Beginning:
    """Some of the world's own starts."""
    starts = world.starts
    return Beginning(starts.frames[index], starts.actions[index], starts.state[index], index)


def checked_index(world: World, value: Any, B: int, where: NDArray[np.int64]) -> NDArray[np.int64]:
    """The option "start_index": one number for all, or one per dream; (n,)."""
    index = _array("start_index", value)
    if index.dtype.kind not in "iu" or index.shape not in ((), (B,)):
        raise OptionError(f"start_index must be a whole number or {B} of them, got {value!r}")
    if (index < 0).any() or (index >= len(world.starts)).any():
        raise OptionError(
            f"world {world.name!r} has starts 0 to {len(world.starts) - 1}, got {value!r}"
        )
    chosen: NDArray[np.int64] = np.broadcast_to(index, B)[where].astype(np.int64)
    return chosen


def from_frames(
    world: World, options: Mapping[str, Any], B: int, where: NDArray[np.int64]
) -> Beginning:
    """The caller's own history, the same for all dreams or one per dream."""
    size = world.manifest.environment.frame_size
    frames = _array("frames", options["frames"])
    if frames.ndim not in (4, 5) or frames.shape[-3:] != (size, size, 3):
        raise OptionError(
            f"frames must have shape (T, {size}, {size}, 3), or a leading {B} for one history per "
            f"dream, got {frames.shape}"
        )
    if frames.dtype != np.uint8:
        raise OptionError(f"frames must be uint8 (0 to 255), got {frames.dtype}")
    frames = _per_dream("frames", frames, 4, B)[where]
    n, T = frames.shape[:2]
    if T < 1:
        raise OptionError("a history needs at least one frame, got none")
    coded = world.manifest.model.tokenizer.temporal
    if T % coded:
        raise OptionError(
            f"world {world.name!r} codes {coded} frames together: a history needs a multiple of "
            f"{coded} frames, got {T}"
        )
    actions = None
    if "actions" in options:
        actions = _encoded_actions(world, options["actions"], T, B)[where]
    return Beginning(
        frames, actions, _given_state(world, options, B)[where], np.full(n, NOT_BUNDLED)
    )


def from_twin(
    world: World, twin: Any, snapshots: Any, B: int, where: NDArray[np.int64]
) -> Beginning:
    """The picture and state of a real twin's snapshot, the same for all dreams or one per dream."""
    each = list(snapshots) if isinstance(snapshots, list | tuple) else [snapshots] * B
    if len(each) != B or not all(isinstance(snapshot, Mapping) for snapshot in each):
        raise OptionError(
            f"the option 'state' must be what make_real(world).snapshot() gives, or a list of {B}"
        )
    frames, states = [], []
    for dream in where:
        frame, info = twin.restore(dict(each[dream]))
        frames.append(frame[None])
        states.append(np.asarray(info["state"], np.float32))
    return Beginning(np.stack(frames), None, np.stack(states), np.full(len(where), NOT_BUNDLED))


def checked_text(world: World, text: Any, B: int, where: NDArray[np.int64]) -> Told | None:
    """The option "text": what the dreams are told, for a world that reads text."""
    if world.manifest.model.text is not None:
        return _read_words(world, text, B, where)
    width = world.manifest.model.transformer.text_dim
    if width is None:
        if text is None:
            return None
        raise OptionError(f"world {world.name!r} reads no text; leave the option 'text' out")
    n = len(where)
    features = np.zeros((n, TEXT_TOKENS, width), np.float32)
    mask = np.zeros((n, TEXT_TOKENS), bool)
    mask[:, 0] = True  # something must be read: without text a token of zeros
    if text is not None:
        given = _array("text", text)
        if given.ndim not in (2, 3) or given.shape[-1] != width or given.dtype.kind != "f":
            raise OptionError(
                f"text must be features of shape (tokens, {width}) from the world's text encoder, "
                f"or a leading {B} for one text per dream, got {given.dtype} {given.shape}"
            )
        given = _per_dream("text", given, 2, B)[where][:, :TEXT_TOKENS]
        features[:, : given.shape[1]] = given
        mask[:, : given.shape[1]] = True
    return Told(features, mask)


def _read_words(world: World, text: Any, B: int, where: NDArray[np.int64]) -> Told:
    """Texts in words, read by the world's own encoder; no text is the empty one."""
    texts = [text or ""] * B if text is None or isinstance(text, str) else text
    if (
        not isinstance(texts, list | tuple)
        or len(texts) != B
        or not all(isinstance(one, str) for one in texts)
    ):
        raise OptionError(
            f"text must be words, such as 'push the block', or a list of {B} texts, one per dream, "
            f"got {text!r}"
        )
    encoder = world.model.text
    assert encoder is not None
    features, mask = encoder.encode([texts[dream] for dream in where])
    return Told(features.cpu().numpy(), mask.cpu().numpy())


def checked_mask(value: Any, B: int) -> NDArray[np.int64]:
    """The option "reset_mask": which dreams begin."""
    mask = _array("reset_mask", value)
    if mask.shape != (B,) or mask.dtype != np.bool_:
        raise OptionError(
            f"reset_mask must be a bool array of shape ({B},), got {mask.dtype} {mask.shape}"
        )
    if not mask.any():
        raise OptionError("reset_mask names no dream: at least one entry must be True")
    return np.flatnonzero(mask)


def choices(world: World, start: int | Sequence[int] | None) -> NDArray[np.int64]:
    """The starts that a reset draws from, out of the environment's argument `start`."""
    if start is None:
        return np.arange(len(world.starts))
    index = _array("start", start)
    if index.dtype.kind not in "iu" or index.ndim > 1 or index.size == 0:
        raise OptionError(f"start must be a start's number or a list of them, got {start!r}")
    if (index < 0).any() or (index >= len(world.starts)).any():
        raise OptionError(
            f"world {world.name!r} has starts 0 to {len(world.starts) - 1}, got start={start!r}"
        )
    starts: NDArray[np.int64] = np.atleast_1d(index).astype(np.int64)
    return starts


def _encoded_actions(world: World, value: Any, T: int, B: int) -> NDArray[np.float32]:
    """Low-level actions between T frames, in the environment's units, as the network sees them."""
    e, A = world.manifest.environment, world.manifest.model.actions_per_frame
    one = chunk_space(e.space, A)  # the actions that lead to one frame
    given = _array("actions", value)
    expected = (T - 1, *one.shape)
    if given.shape not in (expected, (B, *expected)):
        raise OptionError(
            f"{T} frames are joined by actions of shape {expected}, or a leading {B} for one "
            f"history per dream, got {given.shape}"
        )
    count = math.prod(given.shape[: -len(one.shape)])
    try:
        checked = checked_chunk(one, given.reshape(count, *one.shape), count)
    except ActionError as error:
        raise OptionError(f"the option 'actions': {error}") from error
    encoded = encode_actions(one, checked)  # (count, A, D)
    shaped = encoded.reshape(*given.shape[: -len(one.shape)], *encoded.shape[1:])
    return _per_dream("actions", shaped, 3, B)


def _given_state(world: World, options: Mapping[str, Any], B: int) -> NDArray[np.float32]:
    """The option "state" that goes with frames, (B, S); NaN where nothing was said."""
    S = world.manifest.model.heads.state_size
    if "state" not in options:
        return np.full((B, S), np.nan, np.float32)
    state = _array("state", options["state"])
    if state.ndim not in (1, 2) or state.shape[-1] != S or state.dtype.kind not in "fiu":
        raise OptionError(
            f"state must be {S} numbers, or a leading {B} for one per dream, got {state.shape}"
        )
    if not np.isfinite(state).all():
        raise OptionError("state must be finite numbers, got NaN or infinity")
    return _per_dream("state", state, 1, B).astype(np.float32)


def _per_dream(name: str, array: NDArray[Any], ndim: int, B: int) -> NDArray[Any]:
    """With a leading axis of B: what was given for all counts for each."""
    if array.ndim == ndim:
        return np.broadcast_to(array, (B, *array.shape))
    if len(array) != B:
        raise OptionError(f"{name} was given for {len(array)} dreams, there are {B}")
    return array


def _array(name: str, value: Any) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise OptionError(
            f"{name} must be an array, got {type(value).__name__}: {error}"
        ) from error
