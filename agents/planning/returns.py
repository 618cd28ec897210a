"""What a future is worth: dream it, add up its rewards, stop counting where the episode ends.

Shapes: B dreams, F frames per step, K low-level actions per step, D numbers per action.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kairos_env.world_model.state import DreamState
from kairos_env.world_model.world_model import Prediction, WorldModel

ChunkAt = Callable[[int, DreamState], Tensor]
FrameReward = Callable[[Prediction], Tensor]
EndValue = Callable[[Prediction], Tensor]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is wanted of a future."""

    reward: FrameReward | None = None
    """Reward of each predicted frame, (B, F), from anything that is predicted: state, latents,
    frames. None takes the world's own reward head."""
    value: EndValue | None = None
    """What comes after the horizon, (B,), judged by the last step. None: nothing."""
    discount: float = 0.99
    """Per step."""
    uncertainty_penalty: float = 0.0
    """What a step costs for each deviation of error that the world expects of itself."""
    needs_frames: bool = False
    """Whether reward or value look at `prediction.frames`; decoding costs time."""

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount must lie in (0, 1], got {self.discount}")
        if not self.uncertainty_penalty >= 0:
            raise ValueError(
                f"uncertainty_penalty must not be negative, got {self.uncertainty_penalty}"
            )


@torch.no_grad()
def dreamed_returns(
    model: WorldModel,
    dreams: DreamState,
    chunk_at: ChunkAt,
    *,
    horizon: int,
    objective: Objective,
    denoise_steps: int | None = None,
) -> Tensor:
    """Expected discounted return of B futures: (B,).

    A reward counts as far as the episode is still expected to run, so an end that is half certain
    halves what comes after it.

    Args:
        model: Dreams.
        dreams: B of them; they stay as they are.
        chunk_at: What to do in step t of dreams in their present state: (B, K, D), encoded.
        horizon: Steps.
        objective: What is wanted.
        denoise_steps: Passes per predicted frame; None takes the world's own number.
    """
    total = torch.zeros(len(dreams), device=model.device)
    running = torch.ones_like(total)
    for t in range(horizon):
        dreams, prediction = model.step(
            dreams,
            chunk_at(t, dreams),
            denoise_steps=denoise_steps,
            decode=objective.needs_frames,
        )
        gain, ending = _gain(objective, prediction)
        total += objective.discount**t * running * gain
        running = running * ending
    if objective.value is not None:
        after = _shaped("value", objective.value(prediction), total.shape)
        total += objective.discount**horizon * running * after
    return total


def _gain(objective: Objective, prediction: Prediction) -> tuple[Tensor, Tensor]:
    """What a running step gives, and the chance that it does not end: (B,) each."""
    own = prediction.reward
    reward = own
    if objective.reward is not None:
        reward = _shaped("reward", objective.reward(prediction), own.shape)
    running = (1 - prediction.end_probability).cumprod(1)
    before = torch.cat([torch.ones_like(running[:, :1]), running[:, :-1]], dim=1)
    gain = (before * reward).sum(1) - objective.uncertainty_penalty * prediction.uncertainty
    return gain, running[:, -1]


def _shaped(name: str, numbers: Tensor, shape: torch.Size) -> Tensor:
    if not isinstance(numbers, Tensor) or numbers.shape != shape:
        told = tuple(numbers.shape) if isinstance(numbers, Tensor) else type(numbers).__name__
        meaning = "(dreams, frames per step)" if name == "reward" else "(dreams,)"
        raise ValueError(
            f"the {name} function must give a tensor {meaning}, here {tuple(shape)}, got {told}"
        )
    return numbers
