"""Batches for the stages: frames for the tokenizer, latent clips for the dynamics.

Batch n of a stage is a function of (data, seed, stage, n), so a resumed run sees what an
uninterrupted one would have seen, and every process of a distributed run sees the same batch and
takes its own rows.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kairos_env.agents.data.cache import FrameStore, TrainingCache, open_cache
from kairos_env.agents.data.clips import Batch, ClipConfig, Clips, select_episodes
from kairos_env.agents.data.dataset import Dataset
from kairos_env.agents.data.readers import join_datasets, open_dataset
from kairos_env.agents.data.views import FilmDataset
from kairos_env.agents.training.config import StageConfig, TrainConfig
from kairos_env.world_model.state import DreamState
from kairos_env.world_model.text import TextEncoder
from kairos_env.world_model.world_model import AnyTokenizer, WorldModel

ENCODE_BATCH = 256  # frames encoded at once


class TrainingData:
    """The datasets of a run, or of one of its stages, decoded once into a cache."""

    def __init__(self, config: TrainConfig, stage: StageConfig | None = None) -> None:
        self.dataset = open_data(config, stage)
        plain = stage is None and len(config.data) == 1
        self.cache: TrainingCache = open_cache(
            self.dataset, None if plain else config.folder / "cache"
        )
        self.spec = self.cache.spec
        self.config = config

    def of(self, stage: StageConfig) -> "TrainingData":
        """The data of a stage: these, unless it names others or another frame size."""
        if not stage.films and stage.frame_size is None:
            return self
        return TrainingData(self.config, stage)

    @property
    def frames_per_chunk(self) -> int:
        """F: frames that the recorded environment gave per step."""
        environment = self.spec.provenance.get("environment") or {}
        return int(environment.get("frames_per_chunk", 1))

    def train_episodes(self) -> list[int]:
        """Numbers of the episodes that are trained on."""
        config = ClipConfig(validation_share=self.config.validation_share)
        return [int(e) for e in select_episodes(self.cache.identities, config)]

    def words(self, encoder: TextEncoder, batch: Batch) -> Tensor:
        """What the clips of a batch are told, tokenized."""
        return encoder.tokenize([self.cache.texts[episode] for episode in batch["episode"]])

    def holds_out(self) -> bool:
        """Whether there is any episode to validate with."""
        return len(self.train_episodes()) < len(self.cache.identities)

    def train_rows(self) -> NDArray[np.int64]:
        """Row numbers of all their frames."""
        offsets = self.cache.offsets
        return np.concatenate(
            [np.arange(offsets[e], offsets[e + 1]) for e in self.train_episodes()]
        )

    def start_snapshot(self, episode: int) -> Mapping[str, NDArray[Any]]:
        """The simulator's state at an episode's first frame; empty where none was recorded."""
        return self.dataset.start(episode)

    def some_frames(self, count: int, *, together: int = 1) -> Tensor:
        """An even sample of training frames and the ones that follow each, (N, H, W, 3) uint8."""
        rows = self.train_rows()
        chosen = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]
        return torch.from_numpy(self.cache.frames(self.followed(chosen, together).reshape(-1)))

    def followed(self, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """Each row with the rows after it in its episode, whose last one repeats: (..., count)."""
        episode = np.searchsorted(self.cache.offsets, rows, side="right") - 1
        last = self.cache.offsets[episode + 1] - 1
        return np.minimum(rows[..., None] + np.arange(count), last[..., None])

    def clips(
        self,
        stage: StageConfig,
        seed: int,
        *,
        frames: int,
        latents: FrameStore | None = None,
        split: str = "train",
        beginnings: bool = False,
    ) -> Clips:
        """Clips as a stage draws them; or of the beginnings of episodes alone."""
        shares = {"at_end": stage.at_end}
        if beginnings:
            shares = {"at_start": 1.0, "at_end": 0.0, "in_motion": 0.0}
        config = ClipConfig(
            batch=stage.batch,
            length=frames,
            seed=seed,
            split="train" if split == "train" else "validation",
            validation_share=self.config.validation_share,
            overhang=max(0, min(4, frames - 2)),
            **shares,
        )
        stores = None if latents is None else {"latents": latents}
        return Clips(self.cache, config, stores=stores, with_frames=latents is None)

    def latents(self, tokenizer: AnyTokenizer) -> FrameStore:
        """Every frame encoded, kept beside the frames under the encoder's own name.

        Where several frames are coded together: every frame with those that follow it.
        """
        name = f"latents-{encoder_fingerprint(tokenizer)}"
        if self.cache.has(name):
            return self.cache.store(name)
        config = tokenizer.config
        shape = (config.latent_channels, *config.latent_size)
        return self.cache.add(name, self._encoded(tokenizer), row_shape=shape)

    def _encoded(self, tokenizer: AnyTokenizer) -> Iterator[NDArray[np.float16]]:
        count = int(self.cache.offsets[-1])
        for first in range(0, count, ENCODE_BATCH):
            rows = np.arange(first, min(first + ENCODE_BATCH, count))
            rows = self.followed(rows, tokenizer.config.temporal).reshape(1, -1)
            frames = torch.from_numpy(self.cache.frames(rows)).to(tokenizer.background.device)
            with torch.no_grad():
                yield tokenizer.encode(frames)[0].half().cpu().numpy()


def open_data(config: TrainConfig, stage: StageConfig | None) -> Dataset:
    """The run's datasets as one; those of a stage, where one is named."""
    size = None if stage is None else stage.frame_size
    own = [open_dataset(path, frame_size=size) for path in config.data]
    if stage is None:
        return join_datasets(own)
    like = own[0].spec
    films = [
        FilmDataset(open_dataset(path, frame_size=like.frame_size), like) for path in stage.films
    ]
    return join_datasets([*(own if stage.own else ()), *films])


def batch_number(clips: Clips, number: int) -> Batch:
    """Batch `number` of an endless stream of clips."""
    clips.load_state_dict({"seed": clips.config.seed, "batches": number})
    return next(clips)


def as_tensors(batch: Batch, device: str, rows: slice = slice(None)) -> dict[str, Tensor]:
    """What the loss reads, as tensors on a device."""
    names = ("frames", "latents", "actions", "rewards", "terminated", "state", "valid")
    return {
        name: torch.from_numpy(np.ascontiguousarray(batch[name][rows])).to(device)
        for name in names
        if name in batch
    }


def begin_dreams(
    world: WorldModel, data: TrainingData, batch: Batch
) -> tuple[dict[str, Tensor], DreamState]:
    """Clips as tensors, and dreams of them that stand where the world's own begin."""
    clips, real = as_tensors(batch, str(world.device)), world.config.history_frames
    words = None if world.text is None else data.words(world.text, batch)
    text, mask = world.tell(words, len(clips["valid"]))
    history = clips["frames"][:, :real]
    seeds = torch.arange(len(history), device=history.device)
    state = world.start(
        history, clips["actions"][:, : real - 1], seeds=seeds, text=text, text_mask=mask
    )
    return clips, state


def encoder_fingerprint(tokenizer: AnyTokenizer) -> str:
    """A name for all that latents depend on: they stay when the decoder learns on."""
    weights = tokenizer.state_dict()
    return _fingerprint({n: x for n, x in weights.items() if not n.startswith("decoder.")})


def fingerprint(module: nn.Module) -> str:
    """A name for these weights, so that those of two networks are never mixed up."""
    return _fingerprint(module.state_dict())


def _fingerprint(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
