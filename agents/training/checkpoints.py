"""Stopping and going on exactly: one safetensors file with everything a run is.

The file is written beside and renamed, so there is always a whole one; randomness needs no saving,
because it is a function of the number of the update.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kairos_env.agents.data.files import write_bytes
from kairos_env.agents.training import processes
from kairos_env.agents.training.config import TrainConfig
from kairos_env.agents.training.learner import Learner
from kairos_env.world_model.config import from_json
from kairos_env.world_model.world_model import WorldModel

FORMAT = 1
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclasses.dataclass
class Progress:
    """How far a run has come."""

    stage: int = 0
    step: int = 0
    planned: int | None = None
    """Updates of the current stage."""
    seconds: float = 0.0
    """Spent in updates so far, over all sessions."""
    cpu_seconds: float = 0.0
    """Processor time of the current stage's updates."""
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Finished stages: name, updates, processor time."""


class BrokenCheckpointError(ValueError):
    """A checkpoint is not whole or belongs to another run."""


def save_checkpoint(
    path: Path, world: WorldModel, learner: Learner | None, progress: Progress, run: dict[str, Any]
) -> None:
    """Write world, optimizer, slow average and progress in one file; process 0 does.

    Args:
        path: Where.
        world: The weights being trained.
        learner: The stage at work; None between stages.
        progress: How far the run has come.
        run: The run's config as JSON, to refuse another run's checkpoint.
    """
    tensors = learner_tensors(learner) if learner is not None else {}
    if processes.number() > 0:
        return
    tensors |= {f"world.{name}": x for name, x in world.state_dict().items()}
    note = {"format": FORMAT, "progress": dataclasses.asdict(progress), "run": run}
    whole = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    write_bytes(path, save(whole, {"kairos_training": json.dumps(note)}), durable=True)


def learner_tensors(learner: Learner) -> dict[str, Tensor]:
    """Slow average and optimizer, whole; the trained weights are brought into their world."""
    learner.gather()
    tensors = {f"average.{name}": x for name, x in learner.whole_average().items()}
    for name, parameter in learner.parameters.items():
        for moment, value in learner.optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{moment}.{name}"] = processes.whole(value)
    return tensors


class Checkpoint:
    """A checkpoint that was read whole."""

    def __init__(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                note = json.loads((file.metadata() or {}).get("kairos_training", "null"))
                self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, json.JSONDecodeError) as error:
            raise BrokenCheckpointError(
                f"{path} cannot be read ({error}). Delete it to start the run again"
            ) from error
        if not isinstance(note, dict) or note.get("format") != FORMAT:
            raise BrokenCheckpointError(
                f"{path} is not a training checkpoint of format {FORMAT}: {str(note)[:80]}"
            )
        self.path = path
        self.run: dict[str, Any] = note["run"]
        self.progress = Progress(**note["progress"])

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors under a prefix, by the rest of their names."""
        return {n[len(prefix) :]: x for n, x in self.tensors.items() if n.startswith(prefix)}

    def restore_world(self, world: WorldModel) -> None:
        """Put the weights back."""
        try:
            world.load_state_dict(self.part("world."))
        except RuntimeError as error:
            raise BrokenCheckpointError(f"{self.path} is of another model: {error}") from error

    def restore_learner(self, learner: Learner) -> None:
        """Put optimizer and slow average back."""
        average = self.part("average.")
        for name, like in learner.average.items():
            learner.average[name] = processes.shared_like(average[name], like)
        learner.step, learner.planned = self.progress.step, self.progress.planned
        moments = {moment: self.part(f"optimizer.{moment}.") for moment in MOMENTS}
        for name, parameter in learner.parameters.items():
            if name in moments["step"]:
                learner.optimizer.state[parameter] = {
                    "step": moments["step"][name].clone(),
                    "exp_avg": processes.shared_like(moments["exp_avg"][name], parameter),
                    "exp_avg_sq": processes.shared_like(moments["exp_avg_sq"][name], parameter),
                }


def same_run(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Fields in which two runs differ and which must not change on the way.

    A run of an older version has the defaults of fields that it did not know.
    """
    free = {"minutes", "threads", "save_every", "validate_every", "log_every", "description", "out"}
    here, there = from_json(TrainConfig, mine), from_json(TrainConfig, theirs)
    names = [field.name for field in dataclasses.fields(TrainConfig) if field.name not in free]
    return [name for name in names if getattr(here, name) != getattr(there, name)]
