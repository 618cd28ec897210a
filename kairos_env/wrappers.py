"""Wrappers that a dream needs and a real environment does not."""

from typing import Any, SupportsFloat

import gymnasium
from gymnasium.utils import RecordConstructorArgs


class PessimisticDream(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Do not let a policy learn from what the world does not know.

    A policy trained in a dream looks for places where the dream is wrong in its favour. Steps whose
    `info["uncertainty"]` is above the threshold end the episode, cost reward, or both.
    `info["too_uncertain"]` tells which. For vector environments `DreamVectorEnv` takes
    `max_uncertainty`.

    Args:
        env: A dream.
        threshold: The largest uncertainty that is trusted, in deviations of the world's data.
        penalty: Subtracted from the reward of a step beyond the threshold.
        truncate: End the episode at such a step.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        threshold: float,
        *,
        penalty: float = 0.0,
        truncate: bool = True,
    ) -> None:
        if not threshold > 0:
            raise ValueError(f"the threshold must be a positive number, got {threshold!r}")
        if not penalty >= 0:
            raise ValueError(f"the penalty is subtracted and must not be negative, got {penalty!r}")
        RecordConstructorArgs.__init__(
            self, threshold=threshold, penalty=penalty, truncate=truncate
        )
        gymnasium.Wrapper.__init__(self, env)
        self.threshold = threshold
        self.penalty = penalty
        self.truncate = truncate

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, and look at the uncertainty."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if "uncertainty" not in info:
            raise KeyError(
                f"{self.env} tells no uncertainty in its info: PessimisticDream is for dreams"
            )
        beyond = bool(info["uncertainty"] > self.threshold)
        if beyond:
            reward = float(reward) - self.penalty
            truncated = truncated or self.truncate
        return observation, reward, terminated, truncated, {**info, "too_uncertain": beyond}
