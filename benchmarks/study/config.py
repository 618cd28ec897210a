"""What a study measures, as one frozen value."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Sizes of a study; all of them are written into its results."""

    policies: int = 16
    """Policies of graded quality."""
    episodes: int = 200
    """Episodes of each policy on each side, all from the same start states."""
    seed: int = 0
    """Decides start states, the policies' noise, the dreams' own randomness and the bootstrap."""
    steps: int | None = None
    """Env steps until an episode is cut off; the world's own horizon when not given."""
    batch: int = 64
    """Episodes that are dreamed at once."""
    resamples: int = 2000
    """Bootstrap draws behind each interval (95 %), ceiling and chance level."""
    drift_episodes: int = 100
    """Held-out episodes whose actions are replayed for the errors by horizon."""
    drift_frames: int = 100
    """Frames of them."""
    films: int = 3
    """Policies shown side by side, from best to worst; as many replayed episodes."""

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        least = {"policies": 4, "episodes": 2, "batch": 1, "resamples": 1, "films": 0}
        least |= {"drift_episodes": 1, "drift_frames": 1, "seed": 0}
        for name, limit in least.items():
            if getattr(self, name) < limit:
                raise ValueError(f"{name} must be at least {limit}, got {getattr(self, name)}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
