"""A training run as one frozen value: data, model, stages.

A run is a line of stages. Each stage says what is learned, from what clips, for how long. The file
that a run keeps beside its checkpoints is this value as JSON.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from kairos_env.kernels.dispatch import rounds_fast
from kairos_env.world_model.config import LayerKind
from kairos_env.world_model.objective import LossConfig
from kairos_env.world_model.presets import SIZES

Learned = Literal["tokenizer", "decoder", "dynamics", "heads"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of a run."""

    name: str
    learns: Learned
    share: float = 1.0
    """Of the run's minutes, relative to the other stages."""
    steps: int | None = None
    """Updates; None takes as many as fit the stage's share of the minutes (measured at its start,
    then fixed, so that a resumed run ends where an uninterrupted one does)."""
    batch: int = 16
    """Clips per update (for a tokenizer: frames)."""
    micro_batch: int | None = None
    """Clips worked on at once; gradients add up. None: the whole batch."""
    frames: int = 12
    """Frames per clip."""
    learning_rate: float = 1.5e-3
    warmup: int = 50
    """Updates until the full learning rate; it then falls as a cosine."""
    final_rate: float = 0.02
    """What is left of the learning rate at the end."""
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.998
    """The weights that are kept are this slow average of the trained ones."""
    rollout: float = 0.0
    """Share of updates whose history is the model's own rollout: how drift is stopped."""
    rollout_frames: int = 24
    """Frames of those clips."""
    unroll: float = 0.0
    """Share of updates with gradients through the dreamed steps."""
    unroll_frames: int = 10
    """Frames of those clips."""
    legs: int = 1
    """Updates that such a dream lasts: each but the first goes on where the last one stopped, with
    gradients through its own part alone. Long dreams at the price of short ones."""
    lead: tuple[int, int] = (1, 4)
    """Fewest and most true steps that a dream to learn from begins with, drawn evenly."""
    growth: float = 0.6
    """Part of the stage after which dreams have their full length; a dream that has fallen apart
    teaches nothing, so they begin with one step. 0: full length from the start."""
    at_end: float = 0.2
    """Share of clips that show a termination."""
    films: tuple[Path, ...] = ()
    """Further datasets, of which only frames and texts are used."""
    own: bool = True
    """Whether the run's own data are used too."""
    frame_size: int | None = None
    """Side of the frames in this stage; None: as the world has them."""
    loss: LossConfig | None = None
    """What counts in this stage; None: what the world's own config says."""

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        self._require_numbers()
        if not self.own and not self.films:
            raise ValueError(f"stage {self.name} has no data: name films, or use the run's own")
        if self.draws:
            return
        if self.films and not self.watches:
            raise ValueError(
                f"stage {self.name}: films show no actions, rewards or states; give a loss with "
                "unknown_actions 1, heads_weight 0 and action_weight 0"
            )
        if self.watches and self.dreams:
            raise ValueError(
                f"stage {self.name}: a dream needs actions, which this stage hides; set rollout "
                "and unroll to 0"
            )

    def _require_numbers(self) -> None:
        counts = {"steps": 1 if self.steps is None else self.steps, "legs": self.legs}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"stage {self.name}: {name} must be at least 1, got {count}")
        if self.micro_batch is not None and not 1 <= self.micro_batch <= self.batch:
            raise ValueError(
                f"stage {self.name}: micro_batch must be in 1 .. batch = {self.batch}, "
                f"got {self.micro_batch}"
            )
        if not 1 <= self.lead[0] <= self.lead[1]:
            raise ValueError(
                f"stage {self.name}: lead must be the fewest and the most true steps, the fewest "
                f"at least 1, got {self.lead}"
            )
        for name in ("share", "learning_rate", "clip_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(
                    f"stage {self.name}: {name} must be positive, got {getattr(self, name)}"
                )
        for name in ("rollout", "unroll", "ema", "growth", "at_end"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(
                    f"stage {self.name}: {name} must lie in [0, 1], got {getattr(self, name)}"
                )

    @property
    def draws(self) -> bool:
        """Whether it learns from frames as they are, and nothing of what comes next."""
        return self.learns in ("tokenizer", "decoder")

    @property
    def dreams(self) -> bool:
        """Whether its updates wait for dreams, which grow on the way."""
        return self.rollout > 0 or self.unroll > 0

    @property
    def watches(self) -> bool:
        """Whether the dynamics is learned from frames alone, without anybody's actions."""
        loss = self.loss
        return (
            loss is not None
            and loss.unknown_actions == 1.0
            and not (loss.heads_weight or loss.action_weight)
        )


WORLD_STAGES = (
    StageConfig(
        name="tokenizer",
        learns="tokenizer",
        share=0.10,
        batch=32,
        frames=2,
        learning_rate=2e-3,
        ema=0.99,
    ),
    StageConfig(name="dynamics", learns="dynamics", share=0.13, final_rate=0.5),
    StageConfig(
        name="rollout", learns="dynamics", share=0.17, rollout=0.7, learning_rate=1e-3, ema=0.999
    ),
    StageConfig(
        name="unroll",
        learns="dynamics",
        share=0.60,
        batch=24,
        unroll=0.8,
        unroll_frames=24,
        learning_rate=5e-4,
        warmup=20,
    ),
)


FURTHER_STAGES = tuple(
    dataclasses.replace(stage, learning_rate=min(stage.learning_rate, 5e-4), growth=0.0)
    for stage in WORLD_STAGES
)
"""The same for a world that dreams already: gently, and with dreams of full length at once."""

LEAST_BATCH = 4


RETURNING = LossConfig(robust=1.0, change_weight=12.0, foreground_weight=6.0)
"""What counts where things hide: a small thing that should be back, as much as all else in a frame.
It is not lost for good, so its error counts squared."""


LASTING = LossConfig(standing_weight=2.0)
"""What counts in dreams that are so long that most of what moves has gone astray."""


def dreaming(stage: StageConfig, frames: int, legs: int = 1) -> StageConfig:
    """The stage with dreams in clips of so many frames; its updates cost about the same.

    An unrolled dream may be learned from in several legs, one an update.

    Damage that a dream does to itself shows late: a thing that another has passed over comes out
    a little of the other's colour, and stays so. Who only ever learned from short dreams has never
    seen it, and so has not learned to repair it.

    Raises:
        ValueError: So few frames leave nothing to dream.
    """
    if stage.draws or not stage.dreams:
        return stage
    if frames < stage.lead[1] + legs:
        raise ValueError(
            f"stage {stage.name}: a dream begins with up to {stage.lead[1]} true steps, and each "
            f"leg of it needs one more, so its clips need at least {stage.lead[1] + legs} frames, "
            f"got {frames}"
        )
    longest = stage.rollout_frames if stage.rollout else stage.unroll_frames
    if stage.unroll and legs > 1:
        stage = dataclasses.replace(stage, legs=legs, loss=stage.loss or LASTING)
    batch = max(LEAST_BATCH, round(stage.batch * min(1.0, stage.legs * longest / frames)))
    return dataclasses.replace(stage, batch=batch, rollout_frames=frames, unroll_frames=frames)


def exacting(stage: StageConfig, squared_to: float) -> StageConfig:
    """The stage with dreams whose errors count squared up to here (`LossConfig.robust_place`)."""
    if not stage.unroll:
        return stage
    loss = dataclasses.replace(stage.loss or LossConfig(), robust_place=squared_to)
    return dataclasses.replace(stage, loss=loss)


def remembering(stage: StageConfig, frames: int) -> StageConfig:
    """The stage with clips in which something `frames` frames ago can still matter.

    Memory is only learned from clips that are longer than what is to be remembered. Batches shrink
    as clips grow, so an update costs about the same. Dreams begin after a long look: whoever has
    not seen how fast a thing moves cannot know where it comes back, and learns to show no such
    thing.
    """
    if stage.draws:
        return stage
    fewest, most = max(1, frames // 4), max(1, frames // 2)
    longer = {"frames": 0, "rollout_frames": fewest, "unroll_frames": fewest}
    lengths = {
        name: max(getattr(stage, name), frames + stage.frames + lead)
        for name, lead in longer.items()
    }
    longest = "rollout_frames" if stage.rollout else "unroll_frames" if stage.unroll else "frames"
    batch = round(stage.batch * getattr(stage, longest) / lengths[longest])
    lead = (max(stage.lead[0], fewest), max(stage.lead[1], most))
    return dataclasses.replace(
        stage, batch=max(LEAST_BATCH, batch), lead=lead, loss=stage.loss or RETURNING, **lengths
    )


FINISHING_STAGES = (
    StageConfig(
        name="decoder",
        learns="decoder",
        batch=32,
        frames=2,
        learning_rate=1e-3,
        ema=0.995,
        weight_decay=0.0,
    ),
    StageConfig(
        name="heads",
        learns="heads",
        batch=24,
        frames=24,
        weight_decay=0.0,
    ),
)
"""How the pictures of a world that dreams already grow more exact, and how its heads learn to read
it; all else stays as it is."""

ROBOT_STAGES = (
    StageConfig(name="robot", learns="dynamics", learning_rate=1e-3, warmup=10, ema=0.99),
)
"""How an imported network learns to answer to a robot's actions, from true histories."""

TINY_STAGES = (
    StageConfig(name="tokenizer", learns="tokenizer", steps=10, batch=8, frames=2),
    StageConfig(name="dynamics", learns="dynamics", steps=10, batch=4, frames=6),
    StageConfig(
        name="rollout", learns="dynamics", steps=8, batch=4, frames=6, rollout=0.7, rollout_frames=8
    ),
)
"""A run of seconds, to see that everything works; its world knows nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    data: tuple[Path, ...]
    """Dataset folders; several are joined."""
    out: Path
    """Folder of the finished world. Checkpoints and logs stand beside it in OUT.training."""
    minutes: float = 60.0
    """Wall-clock budget, shared by the stages that name no number of steps."""
    size: str = "small"
    """Size of the model, from `world_model/presets.py`."""
    layers: tuple[LayerKind, ...] | None = None
    """Memory of each layer; None takes the size's own (SWA, SWA, DSWA, GLA) groups."""
    temporal: int = 1
    """Frames that the tokenizer codes as one latent frame; a step's frames are a multiple of it."""
    text: bool = False
    """Whether the world reads what it is told in words: the texts of the episodes."""
    restore: bool = False
    """Whether the world's head restores what stands still (`TransformerConfig.restore`)."""
    reserve: float = 0.0
    """The share below which it restores nothing, in training too (`TransformerConfig.reserve`)."""
    recollect: bool = False
    """Whether the world's head recollects (`TransformerConfig.recollect`)."""
    history: int | None = None
    """Frames that a dream is begun with; None: three, or as the world to begin with has it."""
    start: str | None = None
    """World to begin with, by name or folder: its shape, weights and statistics; `size` is not
    looked at."""
    reshape: bool = False
    """Build the shape that `size`, `layers`, `text`, `temporal`, `restore`, `reserve` and
    `recollect` say instead, and take from the world to begin with every weight that fits."""
    stages: tuple[StageConfig, ...] = WORLD_STAGES
    name: str | None = None
    """Name of the world; the folder's name when not given."""
    description: str = ""
    seed: int = 0
    validation_share: float = 0.05
    """Share of episodes that are never trained on."""
    bfloat16: bool | None = None
    """Compute in bfloat16 where that is safe (weights stay float32). None: on a GPU, and on a CPU
    with instructions for it, where it is 1.4 times faster; without them it is eight times slower.
    """
    threads: int | None = None
    """CPU threads; None leaves torch's choice."""
    device: str = "cpu"
    save_every: float = 3.0
    """Minutes between checkpoints."""
    validate_every: int = 500
    """Updates between validation rollouts."""
    log_every: int = 20

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        if not self.data:
            raise ValueError("TrainConfig.data names no dataset: pass at least one folder")
        if not self.stages:
            raise ValueError("TrainConfig.stages is empty: name at least one stage")
        if self.size not in SIZES:
            raise ValueError(f"no size {self.size!r}; there are {', '.join(SIZES)}")
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages need different names, got {names}")
        if self.reshape and self.start is None:
            raise ValueError("reshape needs a world to take weights from; name it as start")
        if self.restore and self.start is not None and not self.reshape:
            raise ValueError(
                "restore gives a world to begin with another head: add --reshape with its --size, "
                "or leave it out where that world restores already"
            )
        if self.reserve and not self.restore:
            raise ValueError(
                "reserve is the share below which a head that restores does nothing: "
                f"add --restore, or leave it out; got {self.reserve}"
            )
        if not 0 <= self.reserve < 1:
            raise ValueError(
                f"reserve is a share from 0 up to, not including, 1; got {self.reserve}"
            )
        if self.minutes <= 0:
            raise ValueError(f"minutes must be positive, got {self.minutes}")

    @property
    def rounds(self) -> bool:
        """Whether products are computed in bfloat16."""
        if self.bfloat16 is not None:
            return self.bfloat16
        return rounds_fast(self.device)

    @property
    def folder(self) -> Path:
        """Where checkpoints, logs and pictures go."""
        return self.out.with_name(self.out.name + ".training")

    @property
    def first_dynamics(self) -> int:
        """Number of the first stage that learns the dynamics."""
        kinds = [stage.learns for stage in self.stages]
        return kinds.index("dynamics") if "dynamics" in kinds else len(kinds)

    def minutes_of(self, stage: StageConfig) -> float:
        """A stage's part of the budget."""
        shared = sum(other.share for other in self.stages if other.steps is None)
        return self.minutes * stage.share / shared
