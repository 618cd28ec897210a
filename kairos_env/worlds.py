"""A world on disk: a folder that holds everything a dream needs, and nothing that could run code.

    world.json             the manifest: environment, model, provenance, fidelity (manifest.py)
    model.safetensors      weights of the dynamics and the heads
    tokenizer.safetensors  weights of the tokenizer
    starts.npz             histories to begin with, and the simulator's state after them (starts.py)
    README.md              a card made from world.json

The folder is written beside and renamed, so a world is whole or not there.
"""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from kairos_env.card import DEAF, card
from kairos_env.catalogue import (
    CARD,
    MANIFEST,
    MODEL,
    STARTS,
    TOKENIZER,
    UNTRAINED,
    bundled_worlds,
    default_world,
    find_world,
)
from kairos_env.errors import OptionError, WorldError
from kairos_env.manifest import (
    EnvironmentSpec,
    Manifest,
    manifest_from_text,
    manifest_to_text,
    space_to_json,
)
from kairos_env.starts import Starts, read_starts, write_starts
from kairos_env.world_model.checkpoint import cast_tensors
from kairos_env.world_model.config import settings
from kairos_env.world_model.published.world import PublishedWorld
from kairos_env.world_model.quantise import WeightPrecision, quantise
from kairos_env.world_model.tensor_files import TensorFiles, write_tensors
from kairos_env.world_model.world_model import WorldConfig, WorldModel

if TYPE_CHECKING:
    from kairos_env.real import RealEnv

__all__ = [
    "EnvironmentSpec",
    "Manifest",
    "Starts",
    "World",
    "bundled_worlds",
    "find_world",
    "load_world",
    "read_manifest",
    "save_world",
    "space_to_json",
]

PREFIX = "tokenizer."
Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """A world in memory, ready to be dreamed in."""

    path: Path | None
    """Its folder; None for one that was made in code."""
    manifest: Manifest
    dreamer: WorldModel | PublishedWorld
    """In evaluation mode, without gradients. `PublishedWorld` is an imported network."""
    starts: Starts

    def __post_init__(self) -> None:
        """Refuse starts that the model cannot read."""
        check_starts(self.manifest, self.starts)
        self.dreamer.eval().requires_grad_(False)
        for module in self.dreamer.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                # The same numbers in another order: batches are convolved twice as fast on a CPU.
                weight = module.weight
                weight.data = weight.contiguous(memory_format=torch.channels_last)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Gymnasium copies keyword arguments; weights are shared, they never change here."""
        return self

    @property
    def model(self) -> WorldModel:
        """The dreamer as a world model.

        Raises:
            WorldError: It is an imported network, which has no reward, state or answer yet.
        """
        if isinstance(self.dreamer, PublishedWorld):
            raise WorldError(f"world {self.name!r} cannot be used for this. {DEAF}")
        return self.dreamer

    @property
    def name(self) -> str:
        """The world's own name."""
        return self.manifest.name

    @property
    def title(self) -> str:
        """The name, and whether anything was learned, for a person."""
        suffix = "" if self.manifest.trained else ", untrained: weights are random"
        if not self.manifest.answers:
            suffix += ", imported: its video does not answer to actions"
        return f"world={self.name!r}{suffix}"

    def with_window(self, window: int) -> "World":
        """The same weights in layers that look back over `window` frames; nothing is copied."""
        config = self.manifest.model
        transformer = dataclasses.replace(config.transformer, window=window)
        config = dataclasses.replace(config, transformer=transformer)
        manifest = dataclasses.replace(self.manifest, model=config)
        return World(self.path, manifest, self._shared(config), self.starts)

    def with_weights(self, precision: WeightPrecision) -> "World":
        """The same world with the blocks' weights rounded; the others are shared."""
        model = self._shared(self.manifest.model)
        quantise(model, precision)
        return World(self.path, self.manifest, model, self.starts)

    def _shared(self, config: WorldConfig) -> WorldModel | PublishedWorld:
        """Another model with these weights; nothing is copied."""
        model = empty_model(config)
        model.load_state_dict(self.dreamer.state_dict(), assign=True)
        return model

    @functools.cached_property
    def compiled_step(self) -> Callable[..., Any]:
        """The model's step through `torch.compile`, shared by all environments of this world."""
        compiled: Callable[..., Any] = torch.compile(self.dreamer.step, dynamic=False)
        return compiled

    def make_twin(self, *, frames_per_chunk: int | None = None, **kwargs: Any) -> "RealEnv":
        """The ground truth that this world was learned from, chunked as the dream is.

        Args:
            frames_per_chunk: Frames per step; None takes the world's own.
            **kwargs: For `make_real`.
        """
        from kairos_env.real import make_real

        e = self.manifest.environment
        F = frames_per_chunk or e.frames_per_chunk
        options: dict[str, Any] = {
            "chunk": F * self.manifest.model.actions_per_frame,
            "frames_per_chunk": F,
            "frame_size": e.frame_size,
            "horizon": -(-e.horizon * e.frames_per_chunk // F),
            **e.kwargs,
            **kwargs,
        }
        return make_real(e.id, **options)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Tells worlds apart: a hash of the weights and of what the config sets.

        Defaults are left out, so a world keeps its name when a later version adds an option.
        """
        told = json.dumps(settings(self.manifest.model), sort_keys=True)
        digest = hashlib.sha256(told.encode())
        for name, tensor in sorted(self.dreamer.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


def load_world(name: str | Path | World | None = None, *, device: str = "cpu") -> World:
    """Open a world.

    Args:
        name: What `find_world` takes; "untrained" for the small built-in one with random weights;
            None for the best bundled one. A `World` is returned as it is.
        device: Where its weights go.

    Raises:
        WorldNotFoundError: There is no such world.
        WorldError: A file of it cannot be read; the message says which, and what to do.
        OptionError: There is no such device.
    """
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:  # depends on the build
        raise OptionError(
            f"device {device!r} cannot be used here ({error}); give 'cpu' or, with a GPU, 'cuda'"
        ) from error
    if isinstance(name, World):
        return name
    if name is None:
        name = default_world()
    if isinstance(name, str) and name == UNTRAINED:
        from kairos_env.untrained import untrained_world

        world = untrained_world()
        world.model.to(device)
        return world
    folder = find_world(name)
    manifest = read_manifest(folder)
    starts = _reading(folder / STARTS, read_starts)
    _reading(folder / STARTS, lambda _: check_starts(manifest, starts))
    return World(folder, manifest, _read_model(folder, manifest, device), starts)


def read_manifest(folder: Path) -> Manifest:
    """Read world.json alone."""
    return _reading(folder / MANIFEST, lambda path: manifest_from_text(path.read_text("utf-8")))


def save_world(
    folder: str | Path,
    model: WorldModel | PublishedWorld,
    *,
    manifest: Manifest,
    starts: Starts,
    overwrite: bool = False,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a world.

    Args:
        folder: Where; its parent is made when it is missing.
        model: The weights. They must be finite.
        manifest: What world.json will say; its `model` must be the model's own config.
        starts: Histories to begin with.
        overwrite: Replace a world that stands there.
        dtype: Store floating-point weights in this type (`torch.float16` halves the files; they are
            read back as float32); None keeps theirs.

    Returns:
        The folder.

    Raises:
        FileExistsError: Something stands there.
        WorldError: The parts do not fit together, or weights are not finite.
    """
    folder = Path(folder)
    _check_parts(folder, model, manifest, starts)
    if folder.exists() and not (overwrite and (folder / MANIFEST).is_file()):
        raise FileExistsError(
            f"{folder} exists already; pass overwrite=True to replace a world, or another folder"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write_files(beside, model, manifest, starts, dtype)
        beside.chmod(0o755)  # a temporary folder is private at first
        _put_in_place(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def rewrite_manifest(folder: Path, manifest: Manifest) -> None:
    """Change what a world that stands there says of itself; its weights stay as they are.

    Each file is whole at any moment. The card goes first: it is made from world.json, which holds
    the truth if this stops in between.
    """
    for file, text in ((CARD, card(manifest)), (MANIFEST, manifest_to_text(manifest))):
        beside = folder / f".{file}.new"
        try:
            beside.write_text(text, "utf-8")
            beside.replace(folder / file)
        finally:
            beside.unlink(missing_ok=True)


def check_starts(manifest: Manifest, starts: Starts) -> None:
    """Raise unless the starts are histories of the manifest's environment."""
    e, m = manifest.environment, manifest.model
    N, T = starts.frames.shape[:2]
    wanted = {
        "frames": (N, T, e.frame_size, e.frame_size, 3),
        "actions": (N, T - 1, m.actions_per_frame, m.action_size),
        "state": (N, m.heads.state_size),
    }
    for name, shape in wanted.items():
        got = getattr(starts, name).shape
        if got != shape:
            raise ValueError(f"expected starts' {name} of shape {shape}, got {got}")


def empty_model(config: WorldConfig) -> WorldModel | PublishedWorld:
    """The model of a config on the meta device: wrong sizes are found before memory is taken."""
    with torch.device("meta"):
        return WorldModel(config) if config.imported is None else PublishedWorld(config)


def _write_files(
    folder: Path,
    model: WorldModel | PublishedWorld,
    manifest: Manifest,
    starts: Starts,
    dtype: torch.dtype | None,
) -> None:
    tensors = {
        name: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    mine = {k: v for k, v in tensors.items() if not k.startswith(PREFIX)}
    theirs = {k.removeprefix(PREFIX): v for k, v in tensors.items() if k.startswith(PREFIX)}
    write_tensors(mine, folder / MODEL)
    write_tensors(theirs, folder / TOKENIZER)
    write_starts(folder / STARTS, starts)
    (folder / CARD).write_text(card(manifest), "utf-8")
    (folder / MANIFEST).write_text(manifest_to_text(manifest), "utf-8")


def _put_in_place(beside: Path, folder: Path) -> None:
    """Rename; an old world is moved aside first and comes back if that fails."""
    if not folder.exists():
        os.replace(beside, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    os.replace(folder, old)
    try:
        os.replace(beside, folder)
    except BaseException:
        os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _check_parts(
    folder: Path, model: WorldModel | PublishedWorld, manifest: Manifest, starts: Starts
) -> None:
    if manifest.model != model.config:
        raise WorldError(f"{folder}: the manifest's model config is not that of the given model")
    try:
        check_starts(manifest, starts)
    except ValueError as error:
        raise WorldError(f"{folder}: {error}") from error
    _require_finite(folder, model.state_dict())


def _read_model(folder: Path, manifest: Manifest, device: str) -> WorldModel | PublishedWorld:
    """Build empty, read what belongs there."""
    config = manifest.model
    model = _reading(folder / MANIFEST, lambda _: empty_model(config))
    expected = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    tensors: dict[str, Tensor] = {}
    for file, prefix in ((MODEL, ""), (TOKENIZER, PREFIX)):
        mine = {k: v for k, v in expected.items() if k.startswith(PREFIX) == bool(prefix)}
        imported = config.imported is not None
        read = functools.partial(_read_tensors, expected=mine, prefix=prefix, imported=imported)
        tensors |= _reading(folder / file, read)
    _require_finite(folder, tensors)
    model.load_state_dict(tensors, assign=True)
    return model.to(device)


def _read_tensors(
    path: Path, *, expected: Mapping[str, tuple[int, ...]], prefix: str, imported: bool
) -> dict[str, Tensor]:
    file = TensorFiles(path)
    shapes = {prefix + name: shape for name, shape in file.shapes().items()}
    _require_same_shapes(shapes, expected)
    if imported:  # gigabytes: kept in the file's own type, and read when used
        return cast_tensors({prefix + name: file[name] for name in file.names})
    return {prefix + name: _widened(file, name) for name in file.names}


def _widened(file: TensorFiles, name: str) -> Tensor:
    """A tensor of its own memory (the file may change), floating point as float32."""
    tensor = file[name]
    return tensor.float().clone() if tensor.is_floating_point() else tensor.clone()


def _require_same_shapes(
    got: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    if missing := sorted(set(expected) - set(got)):
        raise ValueError(f"lacks {len(missing)} tensors, e.g. {', '.join(missing[:3])}")
    if unknown := sorted(set(got) - set(expected)):
        raise ValueError(f"holds {len(unknown)} unknown tensors, e.g. {', '.join(unknown[:3])}")
    for name, shape in expected.items():
        if got[name] != shape:
            raise ValueError(f"{name} has shape {got[name]}, world.json describes {shape}")


def _require_finite(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise WorldError(
                f"{folder}: the weights {name} hold NaN or infinity; the training run diverged, "
                "go back to an earlier checkpoint"
            )


def _reading(path: Path, read: Callable[[Path], Value]) -> Value:
    """Read a file of a world; whatever is wrong with it becomes one kind of error that names it."""
    if not path.is_file():
        raise WorldError(
            f"{path} is missing: the world is not whole. Copy or download it again, or train it "
            "again with `kairos train`"
        )
    try:
        return read(path)
    except (
        ValueError,
        TypeError,
        ArithmeticError,
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:
        if isinstance(error, WorldError):
            raise
        raise WorldError(
            f"{path}: {error}. If the file was not edited it is damaged or of another version: "
            "copy or download the world again"
        ) from error
