"""Named tensors on disk: safetensors, one file or shards with an index, written whole or not.

Reading maps the file into memory, so tensors cost memory when they are used, and a checkpoint that
is loaded without a change of type or device is never held twice. Nothing is unpickled.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

INDEX = "model.safetensors.index.json"
Shapes = dict[str, tuple[int, ...]]


class TensorFiles:
    """The tensors of a checkpoint by name, read when asked for."""

    def __init__(self, handles: Mapping[str, Any]) -> None:
        self._handles = handles

    @property
    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._handles))

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._handles[name].get_tensor(name)
        return tensor

    def shapes(self) -> Shapes:
        """Every shape, without reading a tensor."""
        return {name: tuple(self._slice(name).get_shape()) for name in self.names}

    def _slice(self, name: str) -> Any:
        return self._handles[name].get_slice(name)


@contextmanager
def open_tensors(path: Path | str) -> Iterator[TensorFiles]:
    """Open a checkpoint: a .safetensors file, an index of shards, or a folder that holds either.

    Raises:
        FileNotFoundError: nothing to read there.
        ValueError: a file is damaged, or two files hold one name, or the index does not fit.
    """
    files, index = _find(Path(path))
    with ExitStack() as stack:
        handles: dict[str, Any] = {}
        for file in files:
            handle = _open(file, stack)
            for name in handle.keys():  # noqa: SIM118  # not a dict
                if name in handles:
                    raise ValueError(f"{path}: two files hold the tensor {name}")
                handles[name] = handle
        if index is not None and set(index) != set(handles):
            missing = sorted(set(index) ^ set(handles))
            raise ValueError(
                f"{path}: the index and the shards disagree on {len(missing)} tensors, "
                f"e.g. {', '.join(missing[:3])}; a shard is missing or from another checkpoint"
            )
        yield TensorFiles(handles)


def write_tensors(
    tensors: Mapping[str, Tensor],
    path: Path | str,
    *,
    shard_bytes: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors beside and rename, so that what stands at `path` is always whole.

    Args:
        tensors: by name.
        path: the file to write; with `shard_bytes` the folder to write shards and their index into.
        shard_bytes: largest size of a shard.
        metadata: strings for the header.
    """
    path = Path(path)
    if shard_bytes is None:
        _write_file(dict(tensors), path, metadata)
        return
    path.mkdir(parents=True, exist_ok=True)
    shards = _shards(tensors, shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file({name: tensors[name] for name in names}, path / file, metadata)
        weight_map |= dict.fromkeys(names, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    text = json.dumps(index, indent=2, sort_keys=True)
    # The index comes last: without it a reader finds no checkpoint rather than half of one.
    beside = path / f".{INDEX}.part"
    beside.write_text(text)
    os.replace(beside, path / INDEX)


def _write_file(tensors: dict[str, Tensor], path: Path, metadata: Mapping[str, str] | None) -> None:
    beside = path.with_name(f".{path.name}.part")
    plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    try:
        save_file(plain, beside, metadata={"format": "pt", **(metadata or {})})
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _shards(tensors: Mapping[str, Tensor], limit: int) -> list[list[str]]:
    """Names in order, cut where the next tensor would not fit."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def _find(path: Path) -> tuple[list[Path], list[str] | None]:
    """The files of a checkpoint, and the names that its index promises."""
    if path.is_dir():
        indices = sorted(path.glob("*.safetensors.index.json"))
        if len(indices) > 1:
            raise ValueError(f"{path} holds several checkpoints, name one of {indices}")
        if indices:
            return _find(indices[0])
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{path} holds no .safetensors file and no index of shards")
        return files, None
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give a .safetensors file or a folder of them"
        )
    if path.suffix == ".json":
        return _read_index(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path} is not a .safetensors file; other formats can run code when opened and are "
            "not read, convert it with the safetensors package first"
        )
    return [path], None


def _read_index(path: Path) -> tuple[list[Path], list[str]]:
    weight_map = json.loads(path.read_text()).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path} has no weight_map, so it is not an index of shards")
    for file in weight_map.values():
        if Path(file).name != file:
            raise ValueError(f"{path} names the shard {file!r}, which is not beside it")
    files = [path.parent / file for file in sorted(set(weight_map.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(f"{path} names shards that are not there: {', '.join(missing)}")
    return files, list(weight_map)


def _open(file: Path, stack: ExitStack) -> Any:
    try:
        return stack.enter_context(safe_open(file, framework="pt"))
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} is not a whole safetensors file ({error}); fetch it again"
        ) from error
