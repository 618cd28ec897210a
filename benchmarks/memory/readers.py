"""Four small stacks of equal size, built from the layers that worlds are built from.

| reader | layers | what it can know |
|---|---|---|
| window | SWA SWA SWA SWA | the last frames, as far as four windows reach |
| dilated | SWA SWA DSWA SWA | the same, with one window stretched |
| hybrid | SWA SWA DSWA GLA | everything, through one memory of constant size |
| full | SWA SWA SWA SWA, on one frame that holds the sequence | everything |

The first three read frame by frame, causally. The fourth gets the sequence as the tokens of one
frame, where attention looks both ways: what comes after a frame of the gap is more of the gap, so
it tells nothing.
"""

import dataclasses
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from kairos_env.benchmarks.memory.tasks import Batch, Task
from kairos_env.world_model.config import (
    HYBRID,
    DeltaConfig,
    LayerKind,
    StreamConfig,
    TransformerConfig,
)
from kairos_env.world_model.mixture import FORWARD, Inputs, Mixture


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """One stack and how it is trained."""

    layers: tuple[LayerKind, ...]
    whole: bool = False
    """The sequence is one frame."""
    dim: int = 32
    heads: int = 2
    steps: int = 1200
    batch: int = 32
    learning_rate: float = 1e-2
    warmup: int = 50
    clip_norm: float = 1.0
    average: float = 0.99
    """The weights that are judged are this slow average."""


READERS = {
    "window": ReaderConfig(layers=("SWA",) * 4),
    "dilated": ReaderConfig(layers=("SWA", "SWA", "DSWA", "SWA")),
    # What need not be handed on from window to window is learned in half the time.
    "hybrid": ReaderConfig(layers=HYBRID, steps=600),
    "full": ReaderConfig(layers=("SWA",) * 4, whole=True, steps=600),
}
CHANNELS = 2  # of a frame: value, whether anything is seen


class Reader(nn.Module):
    """Reads frames (B, T, 2) and says a number at each, (B, T)."""

    def __init__(self, config: ReaderConfig, length: int) -> None:
        super().__init__()
        self.whole = config.whole
        head_dim = config.dim // config.heads
        shape = TransformerConfig(
            layers=config.layers,
            heads=config.heads,
            head_dim=head_dim,
            video=StreamConfig(dim=config.dim, ffn_dim=2 * config.dim, channels=CHANNELS),
            action=None,
            delta=DeltaConfig(heads=config.heads, key_dim=head_dim, value_dim=head_dim),
            patch=1,
            freq_dim=config.dim,
        )
        self.mixture = Mixture(shape, frame_tokens=length if config.whole else 1)
        self.window = None if "GLA" in config.layers or config.whole else shape.reach + 1
        """Frames that can matter, the newest included; None for all."""

    @property
    def size(self) -> int:
        """Parameters."""
        return sum(p.numel() for p in self.parameters())

    def forward(self, frames: Tensor) -> Tensor:
        """A frame is a picture of one pixel, or one pixel of the only picture, read clean."""
        B, T, C = frames.shape
        if self.whole:
            latents = frames.transpose(1, 2).reshape(B, 1, C, 1, T)
        else:
            latents = frames[..., None, None]
        inputs = Inputs(
            first_frame=torch.zeros(B, dtype=torch.int64),
            latents=latents,
            video_noise=torch.zeros(latents.shape[:2]),
        )
        said = self.mixture(inputs, FORWARD, chunk_frames=1).video
        assert said is not None
        values: Tensor = said[:, :, 0].reshape(B, T)
        return values


def train(config: ReaderConfig, task: Task, *, seed: int, on_step: Callable[[int], None]) -> Reader:
    """A reader that has learned a task from fresh sequences; a function of its arguments."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = Reader(config, task.length)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=config.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        config.learning_rate,
        total_steps=config.steps,
        pct_start=min(0.5, config.warmup / config.steps),
        cycle_momentum=False,
    )
    averaged = torch.optim.swa_utils.AveragedModel(
        reader, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.average)
    )
    for step in range(config.steps):
        loss = gap_loss(reader, task, task.draw(config.batch, generator))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), config.clip_norm)
        optimizer.step()
        schedule.step()
        averaged.update_parameters(reader)
        on_step(step + 1)
    final = cast(Reader, averaged.module)
    return final.eval().requires_grad_(False)


def gap_loss(reader: Reader, task: Task, batch: Batch) -> Tensor:
    """Mean squared error over all frames of the gap."""
    error = reader(batch.frames) - batch.target
    loss: Tensor = error[:, task.seen :].square().mean()
    return loss
