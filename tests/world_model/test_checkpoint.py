"""Official checkpoints: every name and shape, both ways, whole or in shards, or a clear refusal."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kairos_env.world_model import tensor_files
from kairos_env.world_model.checkpoint import (
    NAMES,
    canonical,
    from_official,
    load_official,
    rename,
    save_official,
    to_official,
)
from kairos_env.world_model.config import (
    HYBRID,
    DeltaConfig,
    PublishedRules,
    StreamConfig,
    TransformerConfig,
)
from kairos_env.world_model.mixture import Mixture
from kairos_env.world_model.presets import PUBLISHED
from kairos_env.world_model.published.mixture import Clip, PublishedMixture
from kairos_env.world_model.published.recognise import recognise
from kairos_env.world_model.tensor_files import TensorFiles, write_tensors

MANIFEST = Path(__file__).parents[1] / "data" / "golden" / "state_dict_manifest.json"

VIDEO = TransformerConfig(
    layers=HYBRID,
    heads=2,
    head_dim=8,
    video=StreamConfig(dim=16, ffn_dim=24, channels=4),
    action=None,
    delta=DeltaConfig(heads=2, key_dim=4, value_dim=6, decay="token", half_life=None),
    freq_dim=8,
    text_dim=12,
    semantics="flash",
)
JOINT = dataclasses.replace(
    VIDEO,
    action=StreamConfig(dim=10, ffn_dim=14, channels=3),
    state_dim=5,
    semantics="flex",
)


def published_networks() -> dict[str, tuple[dict[str, tuple[int, ...]], int]]:
    """Title to names and shapes, and the number of parameters; the VAE has names of its own."""
    networks = {}
    for title, entry in json.loads(MANIFEST.read_text()).items():
        shapes = {
            row["key"].replace(".N.", f".{n}."): tuple(row["shape"])
            for row in entry["tensors"]
            for n in row.get("N", [0])
        }
        if "blocks.0.modulation" in {name.removeprefix("video_dit.") for name in shapes}:
            assert len(shapes) == entry["num_tensors"]
            networks[title] = (shapes, entry["num_parameters"])
    return networks


def on_meta(config: TransformerConfig) -> PublishedMixture:
    with torch.device("meta"):
        return PublishedMixture(config)


def drawn(config: TransformerConfig, seed: int = 0) -> PublishedMixture:
    network = PublishedMixture(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return network


def assert_same(one: torch.nn.Module, other: torch.nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_presets_have_every_published_name_and_shape() -> None:
    recognised = []
    for shapes, parameters in published_networks().values():
        config = recognise({canonical(name): shape for name, shape in shapes.items()})
        network = on_meta(config)
        official = to_official(network.state_dict())
        expected = {canonical(name): shape for name, shape in shapes.items()}
        assert {name: tuple(tensor.shape) for name, tensor in official.items()} == expected
        assert sum(parameter.numel() for parameter in network.parameters()) == parameters
        recognised.append(config)
    assert recognised == list(PUBLISHED.values())


def test_every_row_is_needed() -> None:
    every = {canonical(name) for shapes, _ in published_networks().values() for name in shapes}
    names = {name for name in every if not re.search(r"blocks\.(?![03]\.)", name)}
    pictured = dataclasses.replace(VIDEO, published=PublishedRules(image_tokens=True))
    names |= set(to_official(on_meta(pictured).state_dict()))
    streams = {"video_dit": "video", "action_dit": "action"}
    for number in range(len(NAMES)):
        others = NAMES[:number] + NAMES[number + 1 :]
        with pytest.raises(ValueError, match="match no row"):
            rename({name: name for name in names}, others, streams)


@pytest.mark.parametrize("config", [VIDEO, JOINT], ids=["video", "joint"])
def test_both_directions_are_inverse(config: TransformerConfig) -> None:
    tensors = drawn(config).state_dict()
    back = from_official(to_official(tensors))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("prefix", ["", "video_dit.", "dit.video_dit.", "pipe.dit.video_dit."])
def test_video_files_with_any_prefix(tmp_path: Path, prefix: str) -> None:
    network = drawn(VIDEO)
    save_official(network, tmp_path / "net.safetensors", prefix=prefix)
    names = set(TensorFiles(tmp_path / "net.safetensors"))
    assert f"{prefix}blocks.3.gated_delta.A_log" in names
    loaded = load_official(tmp_path / "net.safetensors")
    assert loaded.config == VIDEO
    assert_same(loaded, network)


def test_prefixes_may_differ_from_name_to_name(tmp_path: Path) -> None:
    network = drawn(VIDEO)
    prefixes = ("", "video_dit.", "dit.video_dit.", "pipe.dit.video_dit.")
    official = to_official(network.state_dict()).items()
    mixed = {
        prefixes[i % 4] + name.removeprefix("video_dit."): tensor
        for i, (name, tensor) in enumerate(official)
    }
    write_tensors(mixed, tmp_path / "net.safetensors")
    assert_same(load_official(tmp_path / "net.safetensors"), network)


def test_shards_with_an_index(tmp_path: Path) -> None:
    network = drawn(JOINT)
    save_official(network, tmp_path, shard_bytes=20_000)
    shards = sorted(file.name for file in tmp_path.iterdir())
    assert len(shards) > 3
    assert all((tmp_path / name).stat().st_size < 30_000 for name in shards)
    for path in (tmp_path, tmp_path / tensor_files.INDEX):
        loaded = load_official(path)
        assert loaded.config == JOINT
        assert_same(loaded, network)


def test_a_loaded_network_computes_what_the_saved_one_does(tmp_path: Path) -> None:
    network = drawn(JOINT)
    save_official(network, tmp_path / "net.safetensors")
    loaded = load_official(tmp_path / "net.safetensors")
    generator = torch.Generator().manual_seed(1)
    clip = Clip(
        latents=torch.randn(1, 3, 4, 4, 4, generator=generator),
        timestep=torch.tensor([500.0]),
        actions=torch.randn(1, 2, 3, generator=generator),
        action_timestep=torch.tensor([700.0]),
        text=torch.randn(1, 3, 12, generator=generator),
        robot_state=torch.randn(1, 5, generator=generator),
        history_frames=1,
    )
    # not bit for bit: where a file's tensors lie in memory changes the order of sums
    for ours, theirs in zip(network(clip), loaded(clip), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_weights_move_to_a_world_of_our_own() -> None:
    ours = dataclasses.replace(JOINT, semantics="causal")
    mixture = Mixture(ours, frame_tokens=4)
    missing, unexpected = mixture.load_state_dict(drawn(JOINT).state_dict(), strict=False)
    assert (missing, unexpected) == (["action.unknown"], [])


def test_changing_a_loaded_network_leaves_its_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    save_official(drawn(VIDEO), file)
    before = file.read_bytes()
    with torch.no_grad():
        for parameter in load_official(file).parameters():
            parameter.add_(1.0)
    assert file.read_bytes() == before


def test_types_are_uniform_and_rates_stay_precise(tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    tensors = to_official(drawn(VIDEO).state_dict())
    stored = {name: t if "norm" in name else t.bfloat16() for name, t in tensors.items()}
    write_tensors(stored, file)
    wishes: tuple[torch.dtype | None, ...] = (None, torch.float16, torch.float64)
    for wish, expected in zip(wishes, (torch.bfloat16, torch.float16, torch.float64), strict=True):
        for name, parameter in load_official(file, dtype=wish).named_parameters():
            rate = name.endswith(("log_rate", "decay_bias"))
            precise = torch.promote_types(expected, torch.float32)
            assert parameter.dtype == (precise if rate else expected), name


Change = Callable[[dict[str, Tensor]], None]


def rename_one(tensors: dict[str, Tensor]) -> None:
    tensors["blocks.0.self_attn.query.weight"] = tensors.pop("blocks.0.self_attn.q.weight")


def drop_one(tensors: dict[str, Tensor]) -> None:
    del tensors["blocks.2.ffn.0.bias"]


def add_layer(tensors: dict[str, Tensor]) -> None:
    tensors["blocks.9.ffn.0.bias"] = tensors["blocks.2.ffn.0.bias"].clone()


def cut_one(tensors: dict[str, Tensor]) -> None:
    tensors["head.head.bias"] = tensors["head.head.bias"][:-1].clone()


def give_twice(tensors: dict[str, Tensor]) -> None:
    tensors["video_dit.head.head.bias"] = tensors["head.head.bias"].clone()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_one, r"1 \(blocks.0.self_attn.query.weight\) of \d+ names match no row"),
        (drop_one, r"missing 1 \(video.blocks.2.feed_forward.0.bias\); unexpected 0"),
        (add_layer, r"missing 0; unexpected 1 \(video.blocks.9.feed_forward.0.bias\)"),
        (cut_one, r"shape 1 \(video.head.linear.bias \(15,\) instead of \(16,\)\)"),
        (give_twice, r"1 \(video.head.linear.bias\) parameters are given more than once"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: Change, message: str) -> None:
    file = tmp_path / "net.safetensors"
    save_official(drawn(VIDEO), file)
    tensors = dict(TensorFiles(file))
    change(tensors)
    write_tensors(tensors, file)
    with pytest.raises(ValueError, match=message):
        load_official(file)


def test_something_else_is_no_published_network(tmp_path: Path) -> None:
    write_tensors({"blocks.0.ffn.0.bias": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"patch_embedding.weight is missing among 1 tensors"):
        load_official(tmp_path / "other.safetensors")


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    save_official(drawn(VIDEO), file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"net.safetensors is not a whole safetensors file"):
        load_official(file)
    (tmp_path / "net.pt").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="can run code when opened"):
        load_official(tmp_path / "net.pt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_official(tmp_path / "nothing.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \.safetensors file"):
        load_official(tmp_path / "empty")


def test_an_index_must_fit_its_shards(tmp_path: Path) -> None:
    save_official(drawn(VIDEO), tmp_path, shard_bytes=20_000)
    index = tmp_path / tensor_files.INDEX
    good = json.loads(index.read_text())
    name = next(iter(good["weight_map"]))

    def with_map(**changes: str) -> None:
        index.write_text(json.dumps({"weight_map": {**good["weight_map"], **changes}}))

    with_map(**{name: "../elsewhere.safetensors"})
    with pytest.raises(ValueError, match="which is not beside it"):
        load_official(tmp_path)
    with_map(**{name: "gone.safetensors"})
    with pytest.raises(FileNotFoundError, match=r"not there: gone.safetensors"):
        load_official(tmp_path)
    with_map(**{"blocks.77.modulation": good["weight_map"][name]})
    with pytest.raises(ValueError, match=r"disagree on 1 tensors, e.g. blocks.77.modulation"):
        load_official(tmp_path)
    index.write_text("{}")
    with pytest.raises(ValueError, match="no weight_map"):
        load_official(tmp_path)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "net.safetensors"
    write_tensors({"x": torch.ones(2)}, file)

    def full_disk(tensors: dict[str, Tensor], path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(tensor_files, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_tensors({"x": torch.zeros(2)}, file)
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]
    assert torch.equal(TensorFiles(file)["x"], torch.ones(2))


def test_parts_that_published_networks_lack_cannot_be_exported() -> None:
    ours = Mixture(dataclasses.replace(JOINT, semantics="causal"), frame_tokens=4)
    with pytest.raises(ValueError, match=r"1 \(action.unknown\) of \d+ names match no row"):
        to_official(ours.state_dict())


def test_the_official_configuration_completes_what_shapes_tell() -> None:
    shapes = {name: tuple(t.shape) for name, t in to_official(on_meta(VIDEO).state_dict()).items()}
    first = recognise(shapes, {"dilated_lengths": [1, 2, 6, 1], "window_size": 2, "eps": 1e-5})
    assert first.layers == ("SWA", "DSWA", "DSWA", "GLA")
    assert first.published.dilations == (1, 2, 6, 1)
    assert (first.window, first.eps) == (2, 1e-5)
    second = recognise(
        shapes,
        {
            "layers_settings": ["DSWA", "SWA", "FA", "GATED"],
            "dilated_lengths": [3],
            "attn_method": "flex",
            "restrict_history_query_to_history": False,
            "all_atten_history": True,
            "seperated_timestep": False,
        },
    )
    assert second.layers == ("DSWA", "SWA", "FA", "GLA")
    assert (second.dilation, second.semantics) == (3, "flex")
    assert second.published == PublishedRules(
        restrict_history=False, all_history=True, separate_timestep=False
    )


def test_a_configuration_of_another_network_is_refused() -> None:
    shapes = {name: tuple(t.shape) for name, t in to_official(on_meta(VIDEO).state_dict()).items()}
    with pytest.raises(ValueError, match=r"text_dim 7 \(the tensors say 12\)"):
        recognise(shapes, {"text_dim": 7})
    with pytest.raises(
        ValueError, match=r"names 1 layers of kinds \['SWA'\]; the checkpoint has 4"
    ):
        recognise(shapes, {"layers_settings": ["SWA"]})
    with pytest.raises(ValueError, match="attn_method is 'sage'"):
        recognise(shapes, {"attn_method": "sage"})
