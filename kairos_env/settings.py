"""The arguments that `DreamEnv` and `DreamVectorEnv` share, checked against a world."""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

from gymnasium.vector import AutoresetMode

from kairos_env.errors import OptionError
from kairos_env.manifest import Manifest
from kairos_env.view import OBSERVATIONS
from kairos_env.world_model.quantise import WEIGHTS

LONG = 2**62
LARGEST = 10_000
CHOICES: dict[str, tuple[str | None, ...]] = {
    "observation": OBSERVATIONS,
    "precision": ("float32", "bfloat16", *WEIGHTS),
    "render_mode": (None, "rgb_array", "rgb_array_list"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How dreams run; `DreamVectorEnv` says what each means."""

    observation: Any = "pixels"
    denoise_steps: int | None = None
    horizon: int | None = None
    start: int | Sequence[int] | None = None
    frames_per_chunk: int | None = None
    window: int | None = None
    precision: Any = "float32"
    compile: bool = False
    max_uncertainty: float | None = None
    all_frames: bool = False
    decode: bool = True
    render_mode: str | None = None

    def __post_init__(self) -> None:
        """Refuse values that no world can have."""
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if not (value is None or isinstance(value, str)) or value not in known:
                raise OptionError(_unknown(name, value, known))
        for name in ("denoise_steps", "horizon", "frames_per_chunk", "window"):
            value = getattr(self, name)
            if value is not None and not is_positive(value):
                raise OptionError(f"{name} must be a positive whole number, got {value!r}")

            if value is not None and name != "horizon" and value > LARGEST:
                raise OptionError(f"{name} must be at most {LARGEST}, got {value!r}")
        limit = self.max_uncertainty
        if limit is not None and not (isinstance(limit, int | float) and limit > 0):
            raise OptionError(f"max_uncertainty must be a positive number, got {limit!r}")

    def chunks_per_step(self, manifest: Manifest) -> int:
        """Chunks of the model that one step of the environment takes."""
        F = manifest.environment.frames_per_chunk
        wanted = self.frames_per_chunk or F
        if wanted % F:
            raise OptionError(
                f"world {manifest.name!r} predicts {F} frames together, so frames_per_chunk must "
                f"be a multiple of {F}, got {wanted}"
            )
        return wanted // F

    def limit(self, worlds_own: int, max_episode_steps: Any) -> int:
        """Steps after which an episode is truncated."""
        if max_episode_steps is not None and not is_positive(max_episode_steps):
            raise OptionError(
                f"max_episode_steps must be a positive whole number, got {max_episode_steps!r}"
            )
        return min(self.horizon or worlds_own, max_episode_steps or LONG)

    def check_state(self, manifest: Manifest) -> None:
        """Refuse to observe a state that the world does not have."""
        if self.observation == "state" and manifest.model.heads.state_size == 0:
            raise OptionError(
                f"world {manifest.name!r} was learned from pictures without a state; "
                'use observation="pixels" or "latent"'
            )


def autoreset_mode_of(value: AutoresetMode | str) -> AutoresetMode:
    """Gymnasium's enum for its member or for its value as text."""
    modes = {mode.value: mode for mode in AutoresetMode}
    if isinstance(value, AutoresetMode):
        return value
    if isinstance(value, str) and value in modes:
        return modes[value]
    raise OptionError(_unknown("autoreset_mode", value, list(modes)))


def is_positive(value: object) -> bool:
    """Whether a value is a whole number of at least 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _unknown(name: str, value: object, known: Sequence[object]) -> str:
    close = difflib.get_close_matches(str(value), [str(k) for k in known], n=1)
    hint = f". Did you mean {close[0]!r}?" if close else ""
    return f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}{hint}"
