"""One stage at work: a module, its optimizer, the slow average of its weights, and one update.

Everything random in update n comes from (seed, stage, n), so stopping and resuming changes nothing.
"""

import copy
import dataclasses
import hashlib
import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kairos_env.agents.data.clips import Clips
from kairos_env.agents.training.clips import TrainingData, as_tensors, batch_number
from kairos_env.agents.training.config import StageConfig, TrainConfig
from kairos_env.world_model.world_model import WorldModel

Metrics = dict[str, float]


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


class Objective(Protocol):
    """What a stage minimises: prepare a batch once, then the loss of some of its rows."""

    def prepare(self, step: int) -> Callable[[slice], tuple[Tensor, dict[str, Tensor]]]:
        """The batch of update `step`; returns the loss of its rows, for accumulation."""


@dataclasses.dataclass
class Learner:
    """The state of one stage."""

    config: TrainConfig
    stage: StageConfig
    module: nn.Module
    objective: Objective
    step: int = 0
    planned: int | None = None
    """Updates in all, once it is known how many fit the budget."""

    def __post_init__(self) -> None:
        """Make the optimizer and the slow average."""
        self.parameters = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=self.stage.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=self.stage.weight_decay,
        )
        self.average = copy.deepcopy(self.module)
        self.average.requires_grad_(False)

    def update(self) -> Metrics:
        """One optimizer step on the next batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.stage.learning_rate * self.rate()
        self.optimizer.zero_grad(set_to_none=True)
        metrics = self._backward(self.objective.prepare(self.step))
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.stage.clip_norm)
        self._require_finite(metrics["loss"], float(norm))
        self.optimizer.step()
        self.step += 1
        self._follow()
        return metrics | {"grad_norm": float(norm)}

    def rate(self) -> float:
        """Learning rate of this update, as a part of the full one: a ramp, then a cosine."""
        ramp = min(1.0, (self.step + 1) / max(1, self.stage.warmup))
        done = self.step / self.planned if self.planned else 0.0
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, done))
        return ramp * (self.stage.final_rate + (1.0 - self.stage.final_rate) * cosine)

    def _backward(self, loss_of: Callable[[slice], tuple[Tensor, dict[str, Tensor]]]) -> Metrics:
        size = self.stage.micro_batch or self.stage.batch
        total: Metrics = {}
        for first in range(0, self.stage.batch, size):
            rows = slice(first, min(first + size, self.stage.batch))
            part = (rows.stop - rows.start) / self.stage.batch
            with torch.autocast(self.config.device, torch.bfloat16, self.config.bfloat16):
                loss, metrics = loss_of(rows)
            (loss * part).backward()  # type: ignore[no-untyped-call]
            for name, value in metrics.items():
                total[name] = total.get(name, 0.0) + part * float(value)
        return total

    def _follow(self) -> None:
        """Move the slow average; faster at first, when old weights are worth little."""
        decay = min(self.stage.ema, (1 + self.step) / (10 + self.step))
        mine = dict(self.module.named_parameters())
        with torch.no_grad():
            for name, slow in self.average.named_parameters():
                slow.lerp_(mine[name], 1.0 - decay)
            for slow, fast in zip(self.average.buffers(), self.module.buffers(), strict=True):
                slow.copy_(fast)

    def _require_finite(self, loss: float, norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(
                f"stage {self.stage.name}: loss {loss} with gradient norm {norm} at update "
                f"{self.step}. The last checkpoint is kept in {self.config.folder}; try a lower "
                "learning_rate, or look for broken values with 'kairos data check'"
            )


@dataclasses.dataclass
class TokenizerObjective:
    """Reconstruct frames."""

    world: WorldModel
    clips: Clips
    stage: StageConfig
    seed: int
    device: str

    def prepare(self, step: int) -> Callable[[slice], tuple[Tensor, dict[str, Tensor]]]:
        """Frames, each clip a row."""
        frames = as_tensors(batch_number(self.clips, step), self.device)["frames"]
        C, (h, w) = (
            self.world.config.tokenizer.latent_channels,
            self.world.config.tokenizer.latent_size,
        )
        count = frames.shape[1] // self.world.config.tokenizer.temporal
        noise = torch.randn(
            (len(frames), count, C, h, w),
            generator=generator_for(self.seed, step, self.device),
            device=self.device,
        )

        def loss_of(rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
            total, metrics = self.world.tokenizer.loss(frames[rows], noise[rows].flatten(0, 1))
            return total, {"loss": total.detach()} | metrics

        return loss_of


@dataclasses.dataclass
class DynamicsObjective:
    """Predict what comes next, from true history or from the model's own."""

    world: WorldModel
    clips: Clips
    rollout_clips: Clips | None
    stage: StageConfig
    seed: int
    device: str
    bfloat16: bool

    def prepare(self, step: int) -> Callable[[slice], tuple[Tensor, dict[str, Tensor]]]:
        """A batch of clips with everything random about it."""
        random = np.random.default_rng([self.seed, step])
        dreamed = self.rollout_clips is not None and random.random() < self.stage.rollout
        source = self.rollout_clips if dreamed and self.rollout_clips else self.clips
        clips = as_tensors(batch_number(source, step), self.device)
        generator = generator_for(self.seed, step, self.device)
        if dreamed:
            clips["history"] = self._dream(clips, random)
        draws = self.world.draw(clips, generator)

        def loss_of(rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
            part = {name: value[rows] for name, value in clips.items()}
            return self.world.loss(part, draws.rows(rows))

        return loss_of

    def _dream(self, clips: dict[str, Tensor], random: np.random.Generator) -> Tensor:
        """The clips as the model would remember them after a few true frames."""
        B, T = clips["valid"].shape
        chunk = self.world.config.frames_per_chunk
        real = chunk * int(random.integers(1, 1 + max(1, min(4, T // chunk - 1))))
        seeds = torch.from_numpy(random.integers(0, 2**62, B)).to(self.device)
        with torch.autocast(self.device, torch.bfloat16, self.bfloat16):
            history = self.world.rollout(
                clips["latents"].float(), clips["actions"], real=real, seeds=seeds
            )
        return history.float()


def make_learner(
    config: TrainConfig, number: int, world: WorldModel, data: TrainingData
) -> Learner:
    """The learner of a run's stage, with what it learns set free and everything else fixed."""
    stage = config.stages[number]
    seed = seed_of(config.seed, stage.name)
    world.requires_grad_(False)
    if stage.learns == "tokenizer":
        world.tokenizer.requires_grad_(True)
        clips = data.clips(stage, seed, frames=stage.frames)
        return Learner(
            config,
            stage,
            world.tokenizer,
            TokenizerObjective(world, clips, stage, seed, config.device),
        )
    world.mixture.requires_grad_(True)
    world.heads.requires_grad_(True)
    latents = data.latents(world.tokenizer)
    clips = data.clips(stage, seed, frames=stage.frames, latents=latents)
    longer = (
        data.clips(stage, seed, frames=stage.rollout_frames, latents=latents)
        if stage.rollout
        else None
    )
    objective = DynamicsObjective(world, clips, longer, stage, seed, config.device, config.bfloat16)
    return Learner(config, stage, world, objective)


def seed_of(seed: int, name: str) -> int:
    """A stage's own seed, so that adding a stage changes no other."""
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")


def generator_for(seed: int, step: int, device: str) -> torch.Generator:
    """The random stream of one update."""
    digest = hashlib.blake2b(f"{seed} {step}".encode(), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big"))
