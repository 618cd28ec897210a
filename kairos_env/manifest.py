"""What world.json says: which environment was learned, by what model, made how, and how good it is.

Frozen data, checked when it is made, so that a mistake is found where the file is read and not in
the middle of a dream.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from kairos_env import spaces as chunks
from kairos_env.world_model.config import from_json, positive, to_json
from kairos_env.world_model.world_model import WorldConfig

FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvironmentSpec:
    """The environment that a world was learned from, and what its numbers mean."""

    id: str
    """Name that `make_real` takes: a Gymnasium id, "metaworld/..." or "robosuite/..."."""
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further arguments of the environment, JSON values."""
    chunk: int
    """K: low-level actions per step."""
    frames_per_chunk: int = 1
    """F: frames that one step shows."""
    frame_size: int = 64
    """Side of the square frame in pixels."""
    horizon: int
    """Steps after which an episode is cut off (truncated)."""
    fps: float
    """Frames a simulated second."""
    action_space: Mapping[str, Any]
    """The low-level action space, as `space_to_json` writes it."""
    reward: str
    """What the reward means, for a person."""
    termination: str
    """What ends an episode, for a person."""
    state_names: tuple[str, ...] = ()
    """Names of the state's entries; empty when they have none."""

    def __post_init__(self) -> None:
        """Refuse values that no environment can have."""
        for name in ("chunk", "frames_per_chunk", "frame_size", "horizon"):
            positive(self, name)
        for name in ("id", "reward", "termination"):
            _require(self, name, str, "text")
        if not self.id:
            raise ValueError("EnvironmentSpec.id is empty: name the environment of make_real")
        if not _is_number(self.fps) or not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(
                f"EnvironmentSpec.fps must be a positive number, frames a second, got {self.fps!r}"
            )
        _require(self, "kwargs", Mapping, "an object of keyword arguments")
        if not isinstance(self.state_names, tuple) or not all(
            isinstance(name, str) for name in self.state_names
        ):
            raise ValueError(
                f"EnvironmentSpec.state_names must be a list of names, got {self.state_names!r}"
            )
        space_from_json(self.action_space)

    @property
    def space(self) -> spaces.Box | spaces.Discrete:
        """The low-level action space."""
        return space_from_json(self.action_space)

    @property
    def chunk_space(self) -> spaces.Box | spaces.MultiDiscrete:
        """The action space of one step: K low-level actions."""
        return chunks.chunk_space(self.space, self.chunk)

    @property
    def seconds_per_step(self) -> float:
        """Simulated time that one step takes."""
        return self.frames_per_chunk / self.fps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything in world.json."""

    format: int = FORMAT
    name: str
    description: str
    environment: EnvironmentSpec
    model: WorldConfig
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """How the world was made: command, data, steps, seed, machine, time, versions. `"trained":
    false` marks random weights."""
    fidelity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Numbers measured against the truth on held-out starts."""

    def __post_init__(self) -> None:
        """Refuse an environment and a model that do not fit together."""
        if self.format != FORMAT or isinstance(self.format, bool):
            raise ValueError(
                f"world format {self.format!r} is not {FORMAT}, the one that this version of "
                "kairos-env reads; install the version that wrote the world, or train it again"
            )
        for name in ("name", "description"):
            _require(self, name, str, "text")
        for name in ("provenance", "fidelity"):
            _require(self, name, Mapping, "an object")
        _require(self, "environment", EnvironmentSpec, "an object")
        _require(self, "model", WorldConfig, "an object")
        for what, environment, model in self._pairs():
            if environment != model:
                raise ValueError(
                    f"the environment has {what} {environment}, the model {model}; world.json was "
                    "put together from two worlds"
                )

    @property
    def trained(self) -> bool:
        """Whether the weights were learned; False for the built-in placeholder."""
        return self.provenance.get("trained", True) is not False

    @property
    def answers(self) -> bool:
        """Whether the video answers to actions; an imported network's does not until trained on."""
        return self.model.imported is None

    def _pairs(self) -> tuple[tuple[str, Any, Any], ...]:
        """What both sides say."""
        e, m = self.environment, self.model
        names = len(e.state_names) or m.heads.state_size
        return (
            ("chunk", e.chunk, m.chunk),
            ("frames_per_chunk", e.frames_per_chunk, m.frames_per_chunk),
            ("frame size", (e.frame_size, e.frame_size), tuple(m.tokenizer.frame_size)),
            ("action size", chunks.action_size(e.space), m.action_size),
            ("state size", names, m.heads.state_size),
        )


def manifest_to_text(manifest: Manifest) -> str:
    """The text of world.json."""
    return json.dumps(to_json(manifest), indent=2, allow_nan=False) + "\n"


def manifest_from_text(text: str) -> Manifest:
    """The inverse of `manifest_to_text`; ValueError says which field is wrong."""
    data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError(f"expected a JSON object, got {type(data).__name__}")
    if data.get("format") != FORMAT:  # before the fields: another format may have others
        raise ValueError(
            f"world format {data.get('format')!r} is not {FORMAT}, the one that this version of "
            "kairos-env reads; install the version that wrote the world, or train it again"
        )
    try:
        return from_json(Manifest, data)
    except (TypeError, AttributeError, KeyError) as error:  # a value of the wrong JSON type
        raise ValueError(f"a field has a value of the wrong type ({error})") from error


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """A low-level action space as JSON values; an infinite bound is null."""
    if isinstance(space, spaces.Discrete):
        return {"kind": "discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.Box):
        low, high = (
            [float(x) if np.isfinite(x) else None for x in bound.ravel()]
            for bound in (space.low, space.high)
        )
        return {"kind": "box", "low": low, "high": high}
    raise TypeError(f"low-level actions must be a Box or Discrete, got {space}")


def space_from_json(data: Mapping[str, Any]) -> spaces.Box | spaces.Discrete:
    """The inverse of `space_to_json`."""
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if kind == "discrete" and set(data) <= {"kind", "n", "start"}:
        n, start = data.get("n"), data.get("start", 0)
        if (
            isinstance(n, int)
            and isinstance(start, int)
            and n > 0
            and bool not in map(type, (n, start))
        ):
            return spaces.Discrete(n, start=start)
    if kind == "box" and set(data) == {"kind", "low", "high"}:
        low, high = (_bounds(data[name], empty) for name, empty in (("low", -1), ("high", 1)))
        if low is not None and high is not None and len(low) == len(high) and (low < high).all():
            return spaces.Box(low, high, dtype=np.float32)
    raise ValueError(
        'an action space is {"kind": "box", "low": [...], "high": [...]} (null for no bound) or '
        f'{{"kind": "discrete", "n": 5}}, got {data!r}'
    )


def _bounds(values: Any, sign: int) -> Any:
    """A list of numbers and nulls as float32 (D,), or None if it is something else."""
    if not isinstance(values, list | tuple) or not values:
        return None
    if not all(value is None or _is_number(value) for value in values):
        return None
    return np.array([sign * np.inf if v is None else v for v in values], np.float32)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require(config: Any, name: str, kind: type, what: str) -> None:
    value = getattr(config, name)
    if not isinstance(value, kind):
        raise ValueError(f"{type(config).__name__}.{name} must be {what}, got {value!r}")
