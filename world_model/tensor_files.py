"""Named tensors on disk: safetensors, one file or shards with an index, written whole or not.

Reading maps files into memory, so a tensor costs memory when it is used, and one that is copied to
another type or device gives its pages back: no checkpoint is held twice. Nothing is unpickled.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

INDEX = "model.safetensors.index.json"


class TensorFiles(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name, read when asked for.

    Args:
        path: a .safetensors file, an index of shards, or a folder that holds either.

    Raises:
        FileNotFoundError: nothing to read there.
        ValueError: a file is damaged, or two files hold one name, or the index does not fit.
    """

    def __init__(self, path: Path | str) -> None:
        files, promised = _find(Path(path))
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Path] = {}
        for file in files:
            shapes = _read_shapes(file)
            twice = sorted(self._files.keys() & shapes)
            if twice:
                raise ValueError(f"{path}: two files hold the tensor {twice[0]}")
            self._shapes |= shapes
            self._files |= dict.fromkeys(shapes, file)
        if promised is not None and set(promised) != set(self._files):
            wrong = sorted(set(promised) ^ set(self._files))
            raise ValueError(
                f"{path}: the index and the shards disagree on {len(wrong)} tensors, "
                f"e.g. {', '.join(wrong[:3])}; a shard is from another checkpoint"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order of the files."""
        return tuple(self._files)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every shape, without reading a tensor."""
        return dict(self._shapes)

    def __getitem__(self, name: str) -> Tensor:
        # Opened anew for each tensor (a third of a millisecond): a mapping is kept as a whole for
        # as long as anything of it is in use.
        with safe_open(self._files[name], framework="pt") as handle:
            tensor: Tensor = handle.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


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


def _read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(file, framework="pt") as handle:
            names = handle.keys()
            return {name: tuple(handle.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a whole safetensors file ({error})") from error
