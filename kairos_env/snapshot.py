"""Dreams to go back to: memory, randomness and the episode's bookkeeping, never weights."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from kairos_env.real.snapshots import ForeignSnapshotError
from kairos_env.view import View
from kairos_env.world_model.state import DreamState
from kairos_env.world_model.tensor_files import write_tensors

FORMAT = 1
NOTE = "kairos_snapshot"
MEMORY, SHOWN = "memory.", "shown."
BOOKKEEPING = ("elapsed", "over", "start_index")


@dataclasses.dataclass(frozen=True, eq=False)
class DreamSnapshot:
    """Everything that the future of n dreams depends on, beside the world and the actions."""

    world: str
    """Fingerprint of the world that the dreams are of."""
    memory: DreamState
    shown: View
    elapsed: NDArray[np.int64]
    """(n,) steps since the episode began."""
    over: NDArray[np.bool_]
    """(n,) whether the episode has ended."""
    start_index: NDArray[np.int64]
    """(n,) which bundled start it began from, or -1."""
    random: tuple[str, ...]
    """State of each dream's generator of starts and seeds, as JSON."""

    def __len__(self) -> int:
        return len(self.elapsed)

    def index(self, dreams: Sequence[int] | NDArray[np.int64]) -> Self:
        """The chosen dreams, in that order and as often as named."""
        rows = np.asarray(dreams, np.int64)
        return dataclasses.replace(
            self,
            memory=self.memory.index(torch.from_numpy(rows)),
            shown=self.shown.index(rows),
            elapsed=self.elapsed[rows],
            over=self.over[rows],
            start_index=self.start_index[rows],
            random=tuple(self.random[row] for row in rows),
        )

    def nbytes(self) -> int:
        """Bytes that it takes."""
        arrays = self.shown.arrays().values()
        return self.memory.nbytes() + sum(array.nbytes for array in arrays)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, beside and renamed."""
        tensors = {MEMORY + name: tensor for name, tensor in self.memory.tensors().items()}
        arrays = {SHOWN + name: array for name, array in self.shown.arrays().items()}
        arrays |= {name: getattr(self, name) for name in BOOKKEEPING}
        tensors |= {name: torch.from_numpy(array) for name, array in arrays.items()}
        note = {"format": FORMAT, "world": self.world, "random": self.random}
        write_tensors(tensors, path, metadata={NOTE: json.dumps(note)})

    @classmethod
    def load(cls, path: str | Path) -> "DreamSnapshot":
        """Read what `save` wrote.

        Raises:
            ForeignSnapshotError: The file is damaged, or something else.
        """
        note, tensors = _read(Path(path))
        try:
            arrays = {k: v.numpy() for k, v in tensors.items() if not k.startswith(MEMORY)}
            shown: dict[str, Any] = {"frames": None}
            shown |= {k.removeprefix(SHOWN): v for k, v in arrays.items() if k.startswith(SHOWN)}
            memory = {k.removeprefix(MEMORY): v for k, v in tensors.items() if k.startswith(MEMORY)}
            return cls(
                world=note["world"],
                memory=DreamState.from_tensors(memory, str(path)),
                shown=View(**shown),
                random=tuple(note["random"]),
                **{name: arrays[name] for name in BOOKKEEPING},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ForeignSnapshotError(
                f"{path} is not a whole snapshot of dreams: {error}"
            ) from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ForeignSnapshotError(f"{path} is no file; save a snapshot with snapshot.save(path)")
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {}).get(NOTE, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise ForeignSnapshotError(f"{path} is not a whole safetensors file: {error}") from error
    if not isinstance(note, dict) or note.get("format") != FORMAT:
        raise ForeignSnapshotError(
            f"{path} is not a snapshot of dreams of format {FORMAT} (its note says {note!r}); such "
            "files come from env.unwrapped.snapshot().save(path)"
        )
    return note, tensors
