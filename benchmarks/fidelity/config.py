"""What a fidelity report measures, as one frozen value."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class FidelityConfig:
    """Sizes and thresholds of a report; all of them are written into it."""

    episodes: int = 100
    """Held-out episodes."""
    seed: int = 0
    """Decides the episodes, the policies' noise, the dreams' own randomness and the bootstrap."""
    horizon: int = 100
    """Frames that are dreamed without looking."""
    horizons: tuple[int, ...] = (1, 10, 50, 100)
    """Frames at which intervals are given, up to the horizon; the curve holds all frames."""
    policies: tuple[str, ...] = ()
    """Who acts, as `kairos collect --policy` spells it. Empty: the scripted expert, a noisy expert
    and smooth noise; smooth and white noise where there is no expert."""
    lasting: float = 0.5
    """Share of episodes that are kept from terminating, so that late frames have truth to be
    compared with."""
    visible_share: float = 0.5
    """An object is judged where the truth shows at least this share of its full area."""
    present_share: float = 0.5
    """It is present where the dream shows at least this share of what the truth shows of it."""
    found_share: float = 0.1
    """Below this share it has no position: it counts as standing in the middle of the picture."""
    reward_frames: int = 20
    """Frames over which rewards are compared."""
    tolerance: int = 1
    """Frames by which a predicted end may miss the true one."""
    fork_steps: tuple[int, ...] = (5, 10)
    """Steps after which two action sequences from one state are compared."""
    quantiles: int = 10
    """Rows of the table of predicted and actual errors."""
    resamples: int = 1000
    """Bootstrap draws behind each interval (95 %)."""
    batch: int = 64
    """Episodes that are held in memory and dreamed at once."""
    shown: int = 6
    """Episodes in the picture: the first ones, not chosen."""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        for name in ("episodes", "horizon", "reward_frames", "quantiles", "resamples", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lasting", "visible_share", "present_share", "found_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("seed", "tolerance", "shown"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if min(self.horizons, default=0) < 1 or not self.marks:
            raise ValueError(
                f"horizons must be frames from 1 on, one of them within the horizon of "
                f"{self.horizon}, got {self.horizons}"
            )
        if not self.fork_steps or min(self.fork_steps) < 1:
            raise ValueError(f"fork_steps must be at least 1, got {self.fork_steps}")

    @property
    def marks(self) -> tuple[int, ...]:
        """The horizons that lie within the horizon."""
        return tuple(h for h in self.horizons if h <= self.horizon)
