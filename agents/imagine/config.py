"""What a run of `kairos imagine` is: which world, which algorithm, how long, watched how."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

Algorithm = Literal["ppo", "sac"]
Seen = Literal["state", "latent", "pixels"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImagineConfig:
    """One policy that learns in one world."""

    world: Annotated[str, tyro.conf.Positional]
    """A bundled world's name, a folder, or OWNER/NAME on the hub."""
    algo: Algorithm = "ppo"
    observation: Seen = "state"
    """What the policy sees. State and latent need no decoded frames: two to three times faster.
    In the real twin the state is the simulator's, the latent the tokenizer's of the real frame."""
    minutes: float | None = None
    """Wall-clock budget, examinations included; 5 when no number of steps is given either."""
    steps: int | None = None
    """Dreamed steps (chunks) instead: the same policy on every machine of the same kind."""
    envs: int = 64
    """Dreams in one batch."""
    dreamers: int | None = None
    """So many Ray actors (extra ray) dream a batch each; PPO learns from all of them."""
    horizon: int = 16
    """Dreamed steps after which an episode is cut off and its future estimated (bootstrapped)."""
    hold: bool = True
    """Repeat one action over the chunk; otherwise the policy chooses every action of it."""
    data: tuple[Path, ...] = ()
    """Datasets whose episodes dreams begin from, at any moment; the world's own starts without."""
    starts: int = 2000
    """How many moments are drawn from the data."""
    imitate: int = 0
    """Updates in which the policy first learns to do what was done in the episodes of --data that
    solved the task, above all where that went better than expected. 0: practice begins with a
    policy that knows nothing."""
    rollout: int = 512
    """Steps of all dreams together between two updates of PPO. 8192 for tasks of several parts:
    push is hardly learned with 512, in reality neither."""
    round_steps: int = 4096
    """Steps between two examinations; progress is kept after each."""
    exam_episodes: int = 20
    """Episodes of an examination, dreamed and real, from the same fresh start states."""
    test_episodes: int = 100
    """Real episodes that the finished policy is measured on."""
    max_uncertainty: float | None = None
    """Cut a dream off where the world is less sure than this."""
    guard: bool = True
    """Stop when the dreamed return rises without the real one."""
    gamma: float = 0.95
    """Discount a step."""
    learning_rate: float = 1e-3
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Refuse numbers that no run can have."""
        for name in (
            "envs",
            "horizon",
            "starts",
            "rollout",
            "round_steps",
            "exam_episodes",
            "test_episodes",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.dreamers is not None and (self.dreamers < 1 or self.algo != "ppo"):
            raise ValueError(
                f"--dreamers must be at least 1 and needs --algo ppo, got {self.dreamers} and "
                f"{self.algo}: SAC learns after every step, there is nothing to gather"
            )
        for name in ("minutes", "steps"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"--{name} must be a positive number, got {value}")
        if self.minutes is not None and self.steps is not None:
            raise ValueError("give --minutes or --steps, not both")
        for name in ("seed", "imitate"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"--{name} must not be negative, got {value}")
        if self.imitate and (self.algo != "ppo" or not self.data):
            raise ValueError(
                f"--imitate needs --algo ppo and episodes to imitate (--data), got {self.algo} and "
                f"{len(self.data)} datasets"
            )
        if not 0 < self.gamma < 1:
            raise ValueError(f"--gamma must lie between 0 and 1, got {self.gamma}")

    @property
    def seconds(self) -> float:
        """The wall-clock budget."""
        if self.steps is not None:
            return math.inf
        return 60.0 * (5.0 if self.minutes is None else self.minutes)

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        return plain


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Train a policy in a world's dream, and see beside it what it is worth in the real twin.

    The same command goes on with a stopped run. The policy with the best real return is written to
    OUT/policy.zip, all numbers to OUT/results.json.
    """

    run: Annotated[ImagineConfig, tyro.conf.arg(name="")]
    out: Path
    """Folder of the run."""
    seeds: int = 1
    """Policies for each method."""
    baseline_seeds: int | None = None
    """Policies for each baseline; as many as seeds when not given."""
    baselines: bool = False
    """Also train and test, at the same price in real steps: the same algorithm in reality alone,
    cloning, a memoryless ensemble; and in reality until it converges, the 1 of the scale."""
    longest: int = 400_000
    """Steps after which the converging baseline is stopped in any case."""
    cluster: str = "local"
    """The Ray cluster that dreamers live on: auto for the one that this machine has joined,
    HOST:PORT, or local for this machine alone."""
    dreamer_gpus: float = 1.0
    """GPUs of each dreamer where --device is cuda; 0.5 lets two share one."""
    threads: int = 1
    """CPU threads, of each dreamer too. On a shared machine one is far faster than several that
    wait for each other."""

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if not (math.isfinite(self.dreamer_gpus) and self.dreamer_gpus >= 0):
            raise ValueError(f"--dreamer-gpus must not be negative, got {self.dreamer_gpus}")
        for name in ("seeds", "baseline_seeds", "longest", "threads"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name} must be at least 1, got {value}")
        if self.baseline_seeds is not None and self.baseline_seeds > self.seeds:
            raise ValueError(
                f"--baseline-seeds must be at most --seeds, {self.seeds}, got {self.baseline_seeds}"
            )

    def runs(self, *, baseline: bool) -> Iterator[tuple[int, ImagineConfig]]:
        """The run of each seed."""
        count = (self.baseline_seeds if baseline else None) or self.seeds
        for seed in range(self.run.seed, self.run.seed + count):
            yield seed, dataclasses.replace(self.run, seed=seed)
