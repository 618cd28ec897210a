"""What a run of `kairos evolve` is: how many rounds, and what each of them may spend."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import tyro

from kairos_env.agents.imagine.config import Algorithm
from kairos_env.agents.policies import PolicySpec
from kairos_env.world_model.presets import SIZES

# What may change between two commands that go on with the same run.
FREE = ("out", "rounds", "control", "threads", "device")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvolveConfig:
    """Collect with the present policy, train the world on, practise in it, deploy; round by round.

    The same command goes on with a stopped run; more rounds go on with a finished one. All figures
    are written to OUT/evolve.json.
    """

    env: Annotated[str, tyro.conf.Positional]
    """KairosReach-v0, any Gymnasium id, metaworld/TASK, robosuite/TASK."""
    out: Path
    """Folder of the run."""
    rounds: int = 4
    episodes: int = 50
    """Real episodes collected in a round."""
    policy: tuple[str, ...] = ("random:0.5", "smooth:0.5")
    """Who collects in the first round, as for `kairos collect`."""
    explore: float = 0.3
    """Share of the time in which smooth noise acts instead of the policy, in later rounds."""
    minutes: float = 10.0
    """Wall-clock budget of the world in a round."""
    start: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """A world of this environment that the first round begins with, by name or folder: the stages
    of every round are then those of --further."""
    data: tuple[Path, ...] = ()
    """Episodes that are there already and that every world also learns from: those that --from has
    learned from, so that it forgets nothing."""
    size: str = "small"
    """tiny, compact, wide, small or medium."""
    stages: tuple[str, ...] = ("tokenizer", "dynamics", "rollout", "unroll")
    """What the first world learns, as for `kairos train`."""
    updates: tuple[int, ...] | None = None
    """Updates of each of these stages instead of minutes: the same weights on every machine of the
    same kind."""
    further: tuple[str, ...] = ("unroll",)
    """Stages of later rounds; the world goes on from the one before, on all data so far."""
    further_updates: tuple[int, ...] | None = None
    """Updates of each of those."""
    algo: Algorithm = "ppo"
    imitate: int = 0
    """Updates in which a new policy learns in every round from all episodes that were solved so
    far, before it practises; as for `kairos imagine`."""
    learning_rate: float = 1e-3
    """Of the policy. 3e-4 where it begins with what was imitated."""
    steps: int = 40_960
    """Dreamed steps that the policy practises in a round."""
    envs: int = 64
    """Dreams in one batch."""
    guard: bool = True
    """Practise at a slower pace, or no longer, where the dreamed return rises without the real
    one."""
    horizon: int = 16
    """Dreamed steps after which an episode is cut off and its future estimated."""
    rollout: int = 512
    """Steps of all dreams together between two updates of PPO; 8192 for tasks like push."""
    gamma: float = 0.95
    """Discount a step; 0.97 for tasks like push."""
    round_steps: int = 4096
    """Dreamed steps between two examinations in the real twin."""
    exam_episodes: int = 20
    """Real episodes of an examination; they choose the policy that is kept."""
    test_episodes: int = 100
    """Real episodes that a round's policy is measured on; they choose nothing."""
    fidelity_episodes: int = 16
    """Real episodes, never trained on, that a world's dreams are compared with."""
    control: bool = False
    """Also train a world and a policy once, with the same effort, on as many real steps of the
    first round's collectors: what the feedback is worth."""
    chunk: int | None = None
    """Low-level actions per step; the environment's default when not given."""
    frame_size: int | None = None
    """Side of the picture in pixels."""
    episode_steps: int = 50
    """Steps until a real episode is cut off, in place of the environment's own limit."""
    seed: int = 0
    threads: int = 1
    """CPU threads. On a shared machine one is far faster than several that wait for each other."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse what cannot be run, before anything is collected."""
        for name in (
            "rounds",
            "episodes",
            "steps",
            "rollout",
            "fidelity_episodes",
            "episode_steps",
            "threads",
        ):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if not 0 < self.gamma < 1:
            raise ValueError(f"--gamma must lie between 0 and 1, got {self.gamma}")
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, got {self.seed}")
        if self.size not in SIZES:
            raise ValueError(f"no size {self.size!r}; there are {', '.join(SIZES)}")
        for text in self.policy:
            PolicySpec.parse(text)
        if not 0 <= self.explore <= 1:
            raise ValueError(f"--explore must be in [0, 1], got {self.explore}")
        if not set(self.further) <= set(self.stages):
            raise ValueError(
                f"--further must be among --stages {' '.join(self.stages)}, got "
                f"{' '.join(self.further)}"
            )
        self._refuse_updates()

    @property
    def real_arguments(self) -> dict[str, Any]:
        """What `make_real` gets: only what was asked for."""
        asked = {"chunk": self.chunk, "frame_size": self.frame_size}
        given = {name: value for name, value in asked.items() if value is not None}
        return {**given, "horizon": self.episode_steps}

    @property
    def first_stages(self) -> tuple[str, ...]:
        """What the first world learns."""
        return self.further if self.start else self.stages

    def updates_of(self, turns: int) -> tuple[int, ...] | None:
        """Updates of the first world's stages that are worth so many rounds."""
        if self.further_updates is None:
            return None
        if self.start:
            return tuple(turns * each for each in self.further_updates)
        assert self.updates is not None, "refused without"
        more = dict(zip(self.further, self.further_updates, strict=True))
        pairs = zip(self.stages, self.updates, strict=True)
        return tuple(first + (turns - 1) * more.get(name, 0) for name, first in pairs)

    def _refuse_updates(self) -> None:
        if self.start and self.updates is not None:
            raise ValueError(
                "--updates are of a new world's stages, and --from begins with another"
            )
        if not self.start and (self.updates is None) != (self.further_updates is None):
            raise ValueError("give both --updates and --further-updates, or neither (minutes)")
        for name, stages, given in (
            ("--updates", self.stages, self.updates),
            ("--further-updates", self.further, self.further_updates),
        ):
            if given is not None and (len(given) != len(stages) or min(given, default=0) < 1):
                raise ValueError(
                    f"{name} must be a positive number for each of {' '.join(stages)}, got "
                    f"{' '.join(map(str, given))}"
                )

    def as_json(self) -> dict[str, Any]:
        """What a run is, as JSON values; without what may change on the way."""
        kept = {k: v for k, v in dataclasses.asdict(self).items() if k not in FREE}
        plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
        return plain
