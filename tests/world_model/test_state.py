"""Promises of a dream's state: branching, batching, resetting and storing it."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kairos_env.kernels.window_attention.cache import FrameCache
from kairos_env.world_model.delta_net import DeltaState
from kairos_env.world_model.state import DreamState, LayerMemory


def make_state(B: int, *, seed: int = 0, width: int = 4, text: bool = False) -> DreamState:
    """Two layers, the second with a delta memory; every number is random."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn((B, *shape), generator=generator)

    def whole(high: int) -> Tensor:
        return torch.randint(high, (B,), generator=generator)

    def cache() -> FrameCache:
        return FrameCache(k=normal(2, 3, 2, width), v=normal(2, 3, 2, width), frames=whole(9))

    return DreamState(
        (
            LayerMemory(cache(), None),
            LayerMemory(cache(), DeltaState(normal(2, 4, 5), normal(3, 6))),
        ),
        previous=normal(2, 4, 8, 8),
        frame=whole(99),
        seed=whole(99),
        text=normal(5, 7) if text else None,
        text_mask=normal(5) > 0 if text else None,
    )


def assert_same(one: DreamState, other: DreamState) -> None:
    ours, theirs = one.tensors(), other.tensors()
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        assert torch.equal(value, theirs[name]), name


def test_every_tensor_has_a_path() -> None:
    assert list(make_state(1, text=True).tensors()) == [
        *(f"layers.0.frames.{name}" for name in ("k", "v", "frames")),
        *(f"layers.1.frames.{name}" for name in ("k", "v", "frames")),
        *("layers.1.delta.memory", "layers.1.delta.tail"),
        *("previous", "frame", "seed", "text", "text_mask"),
    ]


def test_size_in_bytes_is_that_of_all_tensors() -> None:
    caches = 2 * (2 * 2 * 3 * 2 * 4 * 4 + 8)
    rest = (2 * 4 * 5 + 3 * 6 + 2 * 4 * 8 * 8) * 4 + 2 * 8
    assert make_state(3).nbytes() == 3 * (caches + rest)


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ([2, 0, 2], [2, 0, 2]),
        (torch.tensor([1]), [1]),
        (torch.tensor([True, False, True]), [0, 2]),
        ([-1], [2]),
        (slice(1, None), [1, 2]),
        (range(3), [0, 1, 2]),
        ([], []),
    ],
)
def test_index_takes_dreams_in_the_order_named(where: object, rows: list[int]) -> None:
    state = make_state(3, text=True)
    chosen = state.index(where)
    assert len(chosen) == len(rows)
    for name, value in chosen.tensors().items():
        assert value.shape[0] == len(rows), name
        for mine, row in zip(value, rows, strict=True):
            assert torch.equal(mine, state.tensors()[name][row]), name


def test_index_with_a_single_number_says_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"got 1; one dream is index\(\[i\]\)"):
        make_state(3).index(1)


def test_index_beyond_the_batch_is_refused() -> None:
    with pytest.raises(IndexError, match="out of bounds"):
        make_state(3).index([3])


def test_a_clone_shares_nothing() -> None:
    state = make_state(2)
    copy = state.clone()
    assert_same(copy, state)
    for name, value in copy.tensors().items():
        assert value.data_ptr() != state.tensors()[name].data_ptr(), name


def test_to_moves_every_tensor() -> None:
    moved = make_state(2, text=True).to("meta")
    assert {value.device.type for value in moved.tensors().values()} == {"meta"}
    assert len(moved) == 2


def test_concat_undoes_index() -> None:
    state = make_state(5, text=True)
    parts = [state.index(slice(0, 2)), state.index([2]), state.index([]), state.index([3, 4])]
    assert_same(DreamState.concat(parts), state)


def test_concat_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one state"):
        DreamState.concat([])


def test_write_replaces_the_named_rows_and_no_others() -> None:
    state, fresh = make_state(4), make_state(2, seed=1)
    before = state.clone()
    written = state.write(torch.tensor([3, 1]), fresh)
    assert_same(written.index([3, 1]), fresh)
    assert_same(written.index([0, 2]), before.index([0, 2]))
    assert_same(state, before)


def test_write_counts_rows_and_dreams() -> None:
    with pytest.raises(ValueError, match="2 rows named, 1 dreams given"):
        make_state(3).write(torch.tensor([0, 1]), make_state(1))


def test_dreams_of_different_worlds_are_not_mixed() -> None:
    state, wider = make_state(2), make_state(2, width=6)
    for mix in (
        lambda: DreamState.concat([state, wider]),
        lambda: state.write(torch.tensor([0, 1]), wider),
    ):
        with pytest.raises(
            ValueError, match=r"layers\.0\.frames\.k has shape \(2, 3, 2, 4\) here.*\(2, 3, 2, 6\)"
        ):
            mix()
    with pytest.raises(ValueError, match=r"text has shape None here and \(5, 7\) there"):
        DreamState.concat([state, make_state(2, text=True)])
    shallow = dataclasses.replace(state, layers=state.layers[:1])
    with pytest.raises(ValueError, match=r"layers\.1\.frames\.k has shape \(2, 3, 2, 4\) here"):
        DreamState.concat([state, shallow])


@pytest.mark.parametrize("text", [False, True])
def test_what_was_saved_is_loaded_bit_for_bit(tmp_path: Path, text: bool) -> None:
    state = make_state(3, text=text)
    if text:
        state = dataclasses.replace(state, tokens=torch.randn(3, 4, 6))
    state.index([2, 1]).save(tmp_path / "dreams.safetensors")
    assert_same(DreamState.load(tmp_path / "dreams.safetensors"), state.index([2, 1]))
    assert [path.name for path in tmp_path.iterdir()] == ["dreams.safetensors"]


def test_saving_replaces_the_old_file_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "dreams.safetensors"
    make_state(1).save(path)
    old = path.read_bytes()

    def full_disk(tensors: object, file: Path, metadata: object) -> None:
        file.write_bytes(b"half of")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", full_disk)
        with pytest.raises(OSError, match="No space"):
            make_state(2).save(path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
    make_state(2).save(path)
    assert len(DreamState.load(path)) == 2


@pytest.mark.parametrize("kept", [0, 7, 200, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "dreams.safetensors"
    make_state(1).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"dreams\.safetensors is not a whole safetensors file"):
        DreamState.load(path)


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        DreamState.load(tmp_path / "dreams.safetensors")


@pytest.mark.parametrize("note", [None, "[]", "[2, [false]]", '"text"', "{}"])
def test_a_foreign_file_is_refused(tmp_path: Path, note: str | None) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2)}, path, None if note is None else {"kairos_state": note})
    with pytest.raises(ValueError, match="not a saved dream of format 1"):
        DreamState.load(path)


@pytest.mark.parametrize("text", [False, True])
def test_a_state_is_put_together_from_its_tensors(text: bool) -> None:
    state = make_state(2, text=text)
    assert_same(DreamState.from_tensors(state.tensors(), "a snapshot"), state)


def test_tensors_that_make_no_state_are_named() -> None:
    tensors = make_state(2).tensors()
    for name in ("frame", "layers.0.frames.k", "layers.1.delta.tail"):
        others = {key: value for key, value in tensors.items() if key != name}
        with pytest.raises(ValueError, match=f"a snapshot lacks the tensor {name}"):
            DreamState.from_tensors(others, "a snapshot")
    del tensors["layers.1.delta.memory"]  # a layer without it would forget in silence
    with pytest.raises(ValueError, match=r"a snapshot holds the tensor layers\.1\.delta\.tail"):
        DreamState.from_tensors(tensors, "a snapshot")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "dreams.safetensors"
    tensors = make_state(1).tensors()
    del tensors["layers.1.delta.tail"]
    save_file(tensors, path, {"kairos_state": "[1, [false, true]]"})
    with pytest.raises(ValueError, match=r"lacks the tensor layers\.1\.delta\.tail"):
        DreamState.load(path)
