"""One stage at work: a module, its optimizer, the slow average of its weights, and one update.

Everything random in update n comes from (seed, stage, n), so stopping and resuming changes nothing.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kairos_env.agents.data.cache import FrameStore
from kairos_env.agents.data.clips import Clips
from kairos_env.agents.training import processes
from kairos_env.agents.training.clips import TrainingData, as_tensors, batch_number
from kairos_env.agents.training.config import StageConfig, TrainConfig
from kairos_env.world_model.heads import Heads, Reading
from kairos_env.world_model.history import coded, cut
from kairos_env.world_model.objective import read_dream, read_truth
from kairos_env.world_model.state import DreamState
from kairos_env.world_model.tokenizer import Tokenizer
from kairos_env.world_model.world_model import WorldModel

Metrics = dict[str, float]
LossOfRows = Callable[[slice], tuple[Tensor, dict[str, Tensor]]]
# Updates whose histories are dreamed together.
ROLLOUT_GROUP = 4
# Batches of clips that are gathered for so many updates of the heads, the transitions that each of
# them draws for every clip of a batch, and the most batches that are kept in memory.
POOL, READINGS, DRAWN, MOST_POOLED = 24, 48, 12, 400
# The share of these that are drawn from the last transitions before an end, so many of them. They
# are few, and a reward is decided there.
AT_ENDS, BEFORE_END = 0.5, 5
# Keeps the draws of unrolled batches, and of those that heads read, apart from those of the others.
UNROLL, READ = 1, 2


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


class Objective(Protocol):
    """What a stage minimises: prepare a batch once, then the loss of some of its rows."""

    planned: int | None

    @property
    def group(self) -> int:
        """Updates that belong together: a run is only stopped and saved between groups."""

    def prepare(self, step: int) -> LossOfRows:
        """The batch of update `step`; returns the loss of its rows, for accumulation."""


@dataclasses.dataclass
class Learner:
    """The state of one stage."""

    config: TrainConfig
    stage: StageConfig
    world: WorldModel
    """The world as the stage sees it."""
    data: TrainingData
    """What the stage learns from."""
    target: nn.Module
    """The part of the world that the stage changes."""
    module: nn.Module
    """What is trained: the target itself, or with several processes a sharded copy of it."""
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
        self.average = {name: x.detach().clone() for name, x in self.module.state_dict().items()}

    def update(self) -> Metrics:
        """One optimizer step on the next batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.stage.learning_rate * self.rate()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.planned = self.planned
        metrics = self._backward(self.objective.prepare(self.step))
        limit = self.stage.clip_norm
        norm = float(processes.whole(nn.utils.clip_grad_norm_(self.parameters.values(), limit)))
        self._require_finite(metrics["loss"], norm)
        self.optimizer.step()
        self.step += 1
        self._follow()
        return metrics | {"grad_norm": norm}

    def rate(self) -> float:
        """Learning rate of this update, as a part of the full one: a ramp, then a cosine."""
        ramp = min(1.0, (self.step + 1) / max(1, self.stage.warmup))
        done = self.step / self.planned if self.planned else 0.0
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, done))
        return ramp * (self.stage.final_rate + (1.0 - self.stage.final_rate) * cosine)

    @property
    def between_groups(self) -> bool:
        """Whether the run may be stopped here and resumed exactly."""
        return self.step % self.objective.group == 0

    def gather(self) -> None:
        """Bring the trained weights of all processes into the target."""
        if self.module is not self.target:
            weights = self.module.state_dict()
            self.target.load_state_dict({n: processes.whole(x) for n, x in weights.items()})

    def whole_average(self) -> dict[str, Tensor]:
        """The slow average, of all processes."""
        return {name: processes.whole(x) for name, x in self.average.items()}

    def _backward(self, loss_of: LossOfRows) -> Metrics:
        mine = processes.my_rows(self.stage.batch)
        size = self.stage.micro_batch or self.stage.batch
        total: Metrics = {}
        for first in range(mine.start, mine.stop, size):
            rows = slice(first, min(first + size, mine.stop))
            part = (rows.stop - rows.start) / self.stage.batch
            with torch.autocast(self.config.device, torch.bfloat16, self.config.rounds):
                loss, metrics = loss_of(rows)
            # Gradients are averaged over the processes; their sum is wanted.
            (loss * (part * processes.count())).backward()
            for name, value in metrics.items():
                total[name] = total.get(name, 0.0) + part * float(value)
        return processes.summed(total)

    def _follow(self) -> None:
        """Move the slow average; faster at first, when old weights are worth little."""
        decay = min(self.stage.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                self.average[name].lerp_(parameter, 1.0 - decay)

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

    tokenizer: Tokenizer
    clips: Clips
    stage: StageConfig
    seed: int
    device: str
    planned: int | None = None

    @property
    def group(self) -> int:
        """Every update stands for itself."""
        return 1

    def prepare(self, step: int) -> LossOfRows:
        """Frames, each clip a row."""
        frames = as_tensors(batch_number(self.clips, step), self.device)["frames"]
        config = self.tokenizer.config
        count = frames.shape[1] // config.temporal
        noise = torch.randn(
            (len(frames), count, config.latent_channels, *config.latent_size),
            generator=generator_for(self.seed, step, self.device),
            device=self.device,
        )

        def loss_of(rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
            total, metrics = self.tokenizer.loss(frames[rows], noise[rows].flatten(0, 1))
            return total, {"loss": total.detach()} | metrics

        return loss_of


@dataclasses.dataclass
class DynamicsObjective:
    """Predict what comes next, from true history or from the model's own.

    Dreaming histories is sequential, and twice as fast per clip for many clips at once; so updates
    come in groups, and the first of a group dreams the histories of all of them. Dreams are short
    at first: a dream that has fallen apart teaches nothing.
    """

    config: TrainConfig
    stage: StageConfig
    world: WorldModel
    data: TrainingData
    latents: FrameStore
    seed: int
    planned: int | None = None
    """Updates of the stage, once known."""
    _dreamed: dict[int, dict[str, Tensor]] = dataclasses.field(default_factory=dict)
    _clips: dict[tuple[int, bool], Clips] = dataclasses.field(default_factory=dict)
    """By their frames, and whether they are the beginnings of episodes."""
    _left: dict[int, DreamState] = dataclasses.field(default_factory=dict)
    """Where the last leg left the dreams, by the first of the rows that were worked on at once."""

    @property
    def group(self) -> int:
        """Updates that share a dream; between groups nothing is pending."""
        shared = ROLLOUT_GROUP if self.stage.rollout else 1
        return math.lcm(shared, self.stage.legs if self.stage.unroll else 1)

    def prepare(self, step: int) -> LossOfRows:
        """A batch of clips with everything random about it."""
        first = step - step % self.stage.legs
        random = np.random.default_rng([self.seed, first, UNROLL])
        if random.random() < self.stage.unroll:
            return self._unrolled(step, first, random)
        if step % self.group == 0:
            self._dreamed = self._dream_group(step)
        clips = self._dreamed.pop(step, None) or self._batch(step, self.stage.frames)
        draws = self.world.draw(clips, generator_for(self.seed, step, self.config.device))

        def loss_of(rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
            part = {name: value[rows] for name, value in clips.items()}
            return self.world.loss(part, draws.rows(rows))

        return loss_of

    def _unrolled(self, step: int, first: int, random: np.random.Generator) -> LossOfRows:
        """A batch whose gradients flow through the dreamed steps.

        Args:
            step: The update.
            first: The update in which its dreams began.
            random: Of that update.
        """
        legs, chunk = self.stage.legs, self.world.config.latents_per_chunk
        lead = int(random.integers(*self.stage.lead, endpoint=True))
        length = max(1, self.longest_dream(first, self.stage.unroll_frames) // legs)
        clips = self._chunks(first, lead + legs * length)
        seeds = torch.from_numpy(random.integers(0, 2**62, self.stage.batch)).to(self.config.device)
        # A leg's clips begin with the frames before it: the true ones, or the last one it left at.
        leg, real = step - first, lead * chunk if step == first else 1
        end = (lead + (leg + 1) * length) * chunk
        clips = cut(clips, end - length * chunk - real, end)

        def loss_of(rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
            part = {name: value[rows] for name, value in clips.items()}
            state = self._left.pop(rows.start) if leg else None
            total, metrics, after = self.world.unrolled_loss(
                part, real=real, seeds=seeds[rows], state=state
            )
            if leg + 1 < legs:
                self._left[rows.start] = after.detach()
            return total, metrics

        return loss_of

    def longest_dream(self, step: int, frames: int) -> int:
        """Chunks that a dream may have by now: from one up to what fits clips of `frames`.

        All of it while updates are timed, so that the plan knows what the longest cost.
        """
        chunk = self.world.config.frames_per_chunk
        most = max(1, frames // chunk - self.stage.lead[1])
        if self.planned is None or not self.stage.growth:
            return most
        grown = min(1.0, step / self.planned / self.stage.growth)
        return 1 + round((most - 1) * grown)

    def _dream_group(self, first: int) -> dict[int, dict[str, Tensor]]:
        """Clips with dreamed histories, by update; empty where the group learns from the truth."""
        random = np.random.default_rng([self.seed, first])
        if random.random() >= self.stage.rollout:
            return {}
        longest = self.longest_dream(first, self.stage.rollout_frames)
        dreamed = int(random.integers(max(1, longest // 2), longest + 1))
        real = int(random.integers(*self.stage.lead, endpoint=True))
        batches = [self._chunks(first + i, real + dreamed) for i in range(self.group)]
        real *= self.world.config.latents_per_chunk
        mine = processes.my_rows(self.stage.batch)
        clips = {name: torch.stack([batch[name] for batch in batches]) for name in batches[0]}
        latents = clips["latents"].float()
        clips["seeds"] = torch.from_numpy(random.integers(0, 2**62, latents.shape[:2]))
        part = {name: x[:, mine].flatten(0, 1).to(latents.device) for name, x in clips.items()}
        history = self.world.rollout(
            part["latents"].float(),
            part["actions"],
            real=real,
            seeds=part["seeds"],
            words=part.get("words"),
        )
        latents[:, mine] = history.unflatten(0, (self.group, -1))
        return {
            first + i: batch | {"history": part}
            for i, (batch, part) in enumerate(zip(batches, latents, strict=True))
        }

    def reading(self, number: int, *, dreamed: bool) -> Reading:
        """What heads learn from of a batch of clips, true or dreamed.

        Dreams begin as those that are asked for: with an episode, after as many true frames as the
        world looks at. Who has not seen what goes under a roof dreams of nothing, or of another
        place; heads that learn from such dreams learn to believe none of what they see.
        """
        random = np.random.default_rng([self.seed, number, READ])
        clips = self._batch(number, self.stage.frames, beginnings=dreamed)
        device, look = self.config.device, self.world.config.history
        if not dreamed:
            draws = self.world.draw(clips, generator_for(self.seed, number, device))
            return read_truth(self.world, clips, draws)
        F = self.world.config.frames_per_chunk
        real = min(int(random.integers(look, 2 * look, endpoint=True)), self.stage.frames - F)
        real = -(-real // F) * self.world.config.latents_per_chunk
        seeds = torch.from_numpy(random.integers(0, 2**62, self.stage.batch)).to(device)
        return read_dream(self.world, clips, real=real, seeds=seeds)

    def _chunks(self, step: int, count: int) -> dict[str, Tensor]:
        """A batch of clips of so many chunks."""
        return self._batch(step, count * self.world.config.frames_per_chunk)

    def _batch(self, step: int, frames: int, *, beginnings: bool = False) -> dict[str, Tensor]:
        kind = frames, beginnings
        if kind not in self._clips:
            self._clips[kind] = self.data.clips(
                self.stage, self.seed, frames=frames, latents=self.latents, beginnings=beginnings
            )
        batch = batch_number(self._clips[kind], step)
        clips = as_tensors(batch, self.config.device)
        if self.world.text is not None:
            clips["words"] = self.data.words(self.world.text, batch).to(self.config.device)
        return coded(clips, self.world.config.tokenizer.temporal)


@dataclasses.dataclass(frozen=True)
class Pool:
    """Transitions that heads read, each a clip of its own."""

    reading: Reading
    late: NDArray[np.bool_]
    """(N,): one of the last before an end."""

    @classmethod
    def of(cls, readings: Sequence[Reading]) -> "Pool":
        """Those that exist."""
        late = [shortly_before(r.ended & r.valid, BEFORE_END)[r.valid] for r in readings]
        joined = Reading.joined([r.existing() for r in readings])
        return cls(joined, torch.cat(late).cpu().numpy())

    def joined(self, other: "Pool") -> "Pool":
        """Those of both."""
        late = np.concatenate([self.late, other.late])
        return Pool(Reading.joined([self.reading, other.reading]), late)

    def draw(self, random: np.random.Generator, batch: int) -> tuple[Tensor, Tensor]:
        """Which transitions each clip of a batch stands for, and what each counts: (B, DRAWN).

        Those before an end are drawn more often and count less in proportion, so that on average a
        batch says the same as one that is drawn evenly.
        """
        device, shape = self.reading.valid.device, (batch, DRAWN)
        drawn, counts = random.integers(len(self.late), size=shape), np.ones(shape, np.float32)
        groups, share = (np.flatnonzero(~self.late), np.flatnonzero(self.late)), self.late.mean()
        if 0 < share < 1:
            chosen = np.arange(DRAWN) < round(DRAWN * AT_ENDS)  # (DRAWN,)
            fine = random.random(shape)
            for group, mine in zip(groups, (~chosen, chosen), strict=True):
                drawn[:, mine] = group[(fine[:, mine] * len(group)).astype(np.int64)]
            worth = np.where(chosen, share / chosen.mean(), (1 - share) / (1 - chosen.mean()))
            counts = np.broadcast_to(worth / worth.max(), shape).astype(np.float32)
        return torch.from_numpy(drawn).to(device), torch.from_numpy(counts).to(device)


def shortly_before(ended: Tensor, transitions: int) -> Tensor:
    """The last transitions, so many of them, up to each that ends an episode: (B, T) bool."""
    late = ended.clone()
    for _ in range(transitions - 1):
        late[:, :-1] = late[:, :-1] | late[:, 1:]
    return late


@dataclasses.dataclass
class HeadsObjective:
    """Read reward, end and state off frames, true and dreamed ones; all else is fixed.

    To dream a frame takes far longer than to read it, so many updates draw their transitions from
    the same dreams: all from all of them, once it is known how many updates there are. From one
    small pool after the other, heads learn the few ends of each by heart, and forget them with the
    next.
    """

    heads: Heads
    frames: DynamicsObjective
    """Whose clips and dreams are read."""
    planned: int | None = None
    _pool: Pool | None = None
    _batches: int = 0
    """In the pool."""

    @property
    def group(self) -> int:
        """Updates of the first pool, from which it is learned how long they take."""
        return READINGS

    def prepare(self, step: int) -> LossOfRows:
        """Some transitions of the pool."""
        pool = self._filled(self.batches_at(step))
        world, stage = self.frames.world, self.frames.stage
        random = np.random.default_rng([self.frames.seed, step])
        drawn, counts = pool.draw(random, stage.batch)

        def loss_of(rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
            chosen = drawn[rows].flatten()
            reading = pool.reading.each(lambda x: x[chosen])
            reading = reading._replace(valid=counts[rows].flatten()[:, None])
            total, metrics = self.heads.loss(reading, world.sketch_pairs(reading.frames))
            return total, {"loss": total.detach()} | metrics

        return loss_of

    def batches_at(self, step: int) -> int:
        """Batches of clips in the pool of an update: it is filled after the first group."""
        if step < READINGS or self.planned is None:
            return POOL
        return min(MOST_POOLED, POOL * -(-self.planned // READINGS))

    def _filled(self, batches: int) -> Pool:
        """The pool with so many batches of clips: every other one is true, the others dreamed."""
        missing = range(self._batches, batches)
        if missing:
            more = Pool.of([self.frames.reading(i, dreamed=bool(i % 2)) for i in missing])
            self._pool = more if self._pool is None else self._pool.joined(more)
            self._batches = batches
        assert self._pool is not None, "a pool begins with some batches"
        return self._pool


def make_learner(
    config: TrainConfig, number: int, world: WorldModel, data: TrainingData
) -> Learner:
    """The learner of a run's stage, with what it learns set free and everything else fixed."""
    stage = config.stages[number]
    seed = seed_of(config.seed, stage.name)
    with processes.first_goes_ahead():
        data = data.of(stage)
    world = world.variant(frame_size=data.spec.frame_size, loss=stage.loss)
    world.requires_grad_(False)
    if stage.draws:
        if not isinstance(world.tokenizer, Tokenizer):
            raise ValueError(
                f"stage {stage.name}: an imported tokenizer stays as it is; leave this stage out"
            )
        drawing = stage.learns == "decoder"
        (world.tokenizer.decoder if drawing else world.tokenizer).requires_grad_(True)
        clips = data.clips(stage, seed, frames=stage.frames)
        tokenizer = processes.sharded(world.tokenizer, ("loss",))
        reconstruct = TokenizerObjective(tokenizer, clips, stage, seed, config.device)
        return Learner(config, stage, world, data, world.tokenizer, tokenizer, reconstruct)
    with processes.first_goes_ahead():
        latents = data.latents(world.tokenizer)
    if stage.learns == "heads":
        world.heads.requires_grad_(True)
        heads = processes.sharded(world.heads, ("loss",))
        read = HeadsObjective(heads, DynamicsObjective(config, stage, world, data, latents, seed))
        return Learner(config, stage, world, data, world.heads, heads, read)
    for part in (world.mixture, world.heads, world.text):
        if part is not None:
            part.requires_grad_(True)
    trained = processes.sharded(world, ("loss", "unrolled_loss", "rollout"))
    predict = DynamicsObjective(config, stage, trained, data, latents, seed)
    return Learner(config, stage, world, data, world, trained, predict)


def seed_of(seed: int, name: str) -> int:
    """A stage's own seed, so that adding a stage changes no other."""
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")


def generator_for(seed: int, step: int, device: str) -> torch.Generator:
    """The random stream of one update."""
    digest = hashlib.blake2b(f"{seed} {step}".encode(), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big"))
