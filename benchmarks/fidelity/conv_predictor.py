"""The third baseline: a convolutional network without memory, trained on the spot.

It sees the last two frames (one frame does not show which way things move) and the actions, and
says the next frame as the last one plus a residual. It works on the latents of the world's own
tokenizer, so it differs from the dream in its dynamics alone. Like the dream it is trained for one
step and then on its own rollouts, and reads reward, end and state off the frame it predicts.

Legend: b episodes, M rows (frames of a dataset), U frames of a rollout, C h w a latent frame,
A actions per frame, D action size, S state size.
"""

import copy
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from kairos_env.agents.data.dataset import Dataset
from kairos_env.agents.data.files import read_json, write_json
from kairos_env.benchmarks.fidelity.episodes import Truth
from kairos_env.benchmarks.fidelity.predictors import Guess, Rows
from kairos_env.world_model.conv_stem import ResidualBlock
from kairos_env.world_model.tensor_files import TensorFiles, write_tensors
from kairos_env.world_model.world_model import AnyTokenizer

END_WEIGHT = 20.0  # terminal transitions are one in a hundred
CHANGE_WEIGHT = 4.0  # how much more a latent counts that changes
ENCODE_BATCH = 256
FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvConfig:
    """Sizes and training of the baseline."""

    steps: int = 2000
    """Updates: neither a busy machine nor a slow one makes a weaker baseline."""
    channels: int = 96
    blocks: int = 3
    hidden: int = 128
    frames: int = 2
    """Frames that it sees."""
    batch: int = 64
    rollout: int = 8
    """Frames of its own rollouts in the second half of the training."""
    learning_rate: float = 1.5e-3
    ema: float = 0.998
    at_end: float = 0.15
    """Share of clips that show a termination."""
    seed: int = 0


class Spoken(NamedTuple):
    """What the network says of the next frame, in normalised numbers."""

    latent: Tensor  # (b, C, h, w)
    end: Tensor  # (b,) logit
    values: Tensor  # (b, 1 + S): reward, state


class ConvPredictor(nn.Module):
    """The network.

    Args:
        config: Its sizes.
        latent_shape: (C, h, w).
        action_numbers: A * D.
        state_size: S.
    """

    values_mean: Tensor
    values_scale: Tensor

    def __init__(
        self,
        config: ConvConfig,
        latent_shape: tuple[int, int, int],
        action_numbers: int,
        state_size: int,
    ) -> None:
        super().__init__()
        C, h, w = latent_shape
        width = config.channels
        self.seen = config.frames
        self.actions = nn.Sequential(nn.Linear(action_numbers, width), nn.SiLU())
        self.stem = nn.Conv2d(config.frames * C, width, 3, padding=1)
        self.blocks = nn.ModuleList(ResidualBlock(width, width) for _ in range(config.blocks))
        self.head = nn.Conv2d(width, C, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)
        self.reader = nn.Sequential(
            nn.Conv2d(2 * C, 32, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
        )
        features = 32 * ((h + 1) // 2) * ((w + 1) // 2) + action_numbers
        self.mlp = nn.Sequential(
            nn.Linear(features, config.hidden), nn.SiLU(), nn.Linear(config.hidden, 2 + state_size)
        )
        self.register_buffer("values_mean", torch.zeros(1 + state_size))
        self.register_buffer("values_scale", torch.ones(1 + state_size))

    def forward(self, previous: Tensor, actions: Tensor) -> Spoken:
        """From previous (b, frames, C, h, w), oldest first, and actions (b, A * D)."""
        told = self.actions(actions)
        x = self.stem(previous.flatten(1, 2))
        for block in self.blocks:
            x = block(x, told)
        latent = previous[:, -1] + self.head(F.silu(x))
        # The reader explains what was predicted; it must not bend it.
        pair = torch.cat([previous[:, -1], latent], 1).detach()
        read = self.mlp(torch.cat([self.reader(pair), actions], -1))
        return Spoken(latent, read[:, 0], read[:, 1:])


@dataclasses.dataclass(frozen=True, eq=False)
class Rollable:
    """A dataset as the network is trained on it; transition m leads from row m to row m + 1."""

    latents: Tensor
    """(M, C, h, w)."""
    actions: Tensor
    """(M, A * D)."""
    values: Tensor
    """(M, 1 + S): reward of the transition from this row, state after it."""
    ended: Tensor
    """(M,): whether that transition terminated."""
    last: NDArray[np.int64]
    """(M,): the last row of each row's episode."""

    @property
    def transitions(self) -> NDArray[np.int64]:
        """Rows that something follows."""
        rows = np.arange(len(self.last))
        return rows[rows < self.last]


@torch.no_grad()
def read_dataset(
    dataset: Dataset, tokenizer: AnyTokenizer, on_progress: Callable[[float], None] | None = None
) -> Rollable:
    """Encode a dataset, episode by episode."""
    latents: list[Tensor] = []
    actions: list[NDArray[Any]] = []
    values: list[NDArray[Any]] = []
    ended: list[NDArray[Any]] = []
    last: list[NDArray[np.int64]] = []
    row = 0
    for number in range(len(dataset)):
        episode = dataset.episode(number)
        frames = torch.from_numpy(episode.frames).to(tokenizer.background.device)
        latents += [tokenizer.encode(part[None])[0].cpu() for part in frames.split(ENCODE_BATCH)]
        after = np.concatenate([episode.rewards[:, None], episode.state[1:]], 1)
        for rows, into in (
            (episode.actions, actions),
            (after, values),
            (episode.terminated, ended),
        ):
            flat = rows.reshape(len(rows), -1) if rows.ndim > 1 else rows
            into.append(np.concatenate([flat, np.zeros_like(flat[:1])]))
        row += len(frames)
        last.append(np.full(len(frames), row - 1))
        if on_progress is not None:
            on_progress((number + 1) / len(dataset))
    return Rollable(
        latents=torch.cat(latents),
        actions=torch.from_numpy(np.concatenate(actions)).float(),
        values=torch.from_numpy(np.concatenate(values)).float(),
        ended=torch.from_numpy(np.concatenate(ended)),
        last=np.concatenate(last),
    )


def train(
    data: Rollable, config: ConvConfig, on_progress: Callable[[float], None] | None = None
) -> tuple[ConvPredictor, dict[str, Any]]:
    """Train the network; returns its slow average and what it took."""
    network = _new_network(data, config)
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=0.01)
    generator = np.random.default_rng([config.seed, 1])
    started = time.process_time()
    for updates in range(config.steps):
        done = updates / config.steps
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _rate(done, updates)
        length = 1 if done < 0.5 else config.rollout
        loss = _loss(network, data, _draw(data, config, generator), length)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        _follow(average, network, min(config.ema, (updates + 1) / (updates + 11)))
        if on_progress is not None:
            on_progress((updates + 1) / config.steps)
    return average.eval(), {
        "parameters": sum(p.numel() for p in network.parameters()),
        "updates": config.steps,
        "cpu_seconds": round(time.process_time() - started, 1),
        "training_frames": len(data.last),
        "frames_seen": config.frames,
    }


class ConvBaseline:
    """The trained network as a predictor."""

    def __init__(
        self, network: ConvPredictor, tokenizer: AnyTokenizer, frames_per_step: int
    ) -> None:
        self._network, self._tokenizer = network, tokenizer
        self._frames_per_step = frames_per_step

    @torch.no_grad()
    def start(self, truth: Truth) -> Tensor:
        """The last frames: (b, frames, C, h, w)."""
        seen = self._network.seen
        frames = torch.from_numpy(truth.history[:, -seen:]).to(self._tokenizer.background.device)
        latents = self._tokenizer.encode(frames)
        missing = seen - latents.shape[1]
        return torch.cat([latents[:, :1].expand(-1, missing, -1, -1, -1), latents], 1)

    @torch.no_grad()
    def step(self, memory: Tensor, chunk: NDArray[np.float32]) -> tuple[Tensor, Guess]:
        """Frame by frame, each with its share of the actions."""
        b = len(chunk)
        actions = torch.from_numpy(chunk).to(memory).reshape(b, self._frames_per_step, -1)
        said = []
        for frame in range(self._frames_per_step):
            said.append(self._network(memory, actions[:, frame]))
            memory = torch.cat([memory[:, 1:], said[-1].latent[:, None]], 1)
        latents, end, values = (torch.stack(parts, 1) for parts in zip(*said, strict=True))
        values = values * self._network.values_scale + self._network.values_mean
        return memory, Guess(
            frames=self._tokenizer.decode(latents).cpu().numpy(),
            state=values[..., 1:].cpu().numpy(),
            reward=values[..., 0].cpu().numpy(),
            ended=(end > 0).cpu().numpy(),
        )

    def keep(self, memory: Tensor, rows: Rows) -> Tensor:
        """Some of them."""
        return memory[torch.from_numpy(rows)]


def cached(
    folder: Path,
    name: str,
    config: ConvConfig,
    make: Callable[[], tuple[ConvPredictor, dict[str, Any]]],
    shape: tuple[tuple[int, int, int], int, int],
) -> tuple[ConvPredictor, dict[str, Any]]:
    """A network trained earlier for the same world, data and config, or a new one.

    Args:
        folder: Where networks are kept.
        name: What it depends on: the tokenizer and the data.
        config: How it is trained.
        make: Trains it.
        shape: The network's other arguments.
    """
    text = json.dumps([FORMAT, name, dataclasses.asdict(config), shape])
    path = folder / f"conv-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
    try:
        network = ConvPredictor(config, *shape)
        network.load_state_dict(dict(TensorFiles(path)))
        return network.eval(), dict(read_json(path.with_suffix(".json")))
    except (OSError, ValueError, RuntimeError):
        pass  # not there, or damaged: it is only a cache
    network, facts = make()
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(network.state_dict(), path)
    write_json(path.with_suffix(".json"), facts)
    return network, facts


def _new_network(data: Rollable, config: ConvConfig) -> ConvPredictor:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        C, h, w = data.latents.shape[1:]
        network = ConvPredictor(config, (C, h, w), data.actions.shape[1], data.values.shape[1] - 1)
    rows = torch.from_numpy(data.transitions)
    values = data.values[rows]
    network.values_mean.copy_(values.mean(0))
    spread = values.std(0)
    network.values_scale.copy_(torch.where(spread < 1e-4, torch.ones_like(spread), spread))
    return network


def _draw(data: Rollable, config: ConvConfig, generator: np.random.Generator) -> NDArray[np.int64]:
    """Rows at which clips begin: evenly, some of them just before an end."""
    rows = generator.choice(data.transitions, config.batch)
    ends = np.flatnonzero(data.ended.numpy())
    if len(ends):
        chosen = generator.random(config.batch) < config.at_end
        back = generator.integers(0, config.rollout, config.batch)
        near = generator.choice(ends, config.batch)
        first = np.searchsorted(data.last, data.last[near])  # of the same episode
        rows = np.where(chosen, np.maximum(near - back, first), rows)
    return np.asarray(rows, np.int64)


def _loss(network: ConvPredictor, data: Rollable, rows: NDArray[np.int64], length: int) -> Tensor:
    """Mean loss of rollouts of `length` frames that begin with the true frames up to `rows`."""
    first = np.searchsorted(data.last, data.last[rows])
    back = np.arange(1 - network.seen, 1)
    history = np.maximum(rows[:, None] + back, first[:, None])
    memory = data.latents[torch.from_numpy(history)]
    total, count = memory.new_zeros(()), memory.new_zeros(())
    for ahead in range(length):
        row = rows + ahead
        exist = torch.from_numpy(row < data.last[rows])
        at = torch.from_numpy(np.minimum(row, data.last[rows] - 1))
        said = network(memory, data.actions[at])
        losses = _losses(network, said, data, at, memory[:, -1])
        total = total + (losses * exist).sum()
        count = count + exist.sum()
        memory = torch.cat([memory[:, 1:], said.latent[:, None]], 1)
    return total / count


def _losses(
    network: ConvPredictor, said: Spoken, data: Rollable, at: Tensor, before: Tensor
) -> Tensor:
    """(b,): weighted squared error of the frame, and what was read off it."""
    truth = data.latents[at + 1]
    weight = 1.0 + CHANGE_WEIGHT * ((truth - before).detach().abs().amax(1, keepdim=True) > 0.3)
    picture = (weight * (said.latent - truth).square()).mean((1, 2, 3))
    target = (data.values[at] - network.values_mean) / network.values_scale
    values = (said.values - target).square().mean(1)
    ended = data.ended[at]
    cross = F.binary_cross_entropy_with_logits(said.end, ended.float(), reduction="none")
    return picture + 0.1 * values + 0.1 * cross * torch.where(ended, END_WEIGHT, 1.0)


def _rate(done: float, updates: int) -> float:
    """Warm up over 50 updates, then fall as a cosine over the budget."""
    return min(1.0, (updates + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * done))))


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, keep: float) -> None:
    for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
        slow.lerp_(fast, 1 - keep)
