"""Published checkpoints: one table of names, read in both directions.

    file --names, shapes--> recognise --> TransformerConfig --> network on the meta device
    file --tensors, NAMES, RESHAPED--> parameters --> assigned to the network

Every name of a file matches exactly one row and every parameter of ours is given exactly once, or
loading raises with the counts and the first names of each side.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kairos_env.world_model.config import TransformerConfig
from kairos_env.world_model.published.mixture import PublishedMixture
from kairos_env.world_model.published.recognise import recognise
from kairos_env.world_model.tensor_files import TensorFiles, write_tensors

# Official name, our name. S is a stream, N and I are numbers, * is weight or bias.
NAMES: tuple[tuple[str, str], ...] = (
    ("video_dit.patch_embedding.*", "video.embed.linear.*"),
    ("video_dit.image_downsample.I.*", "video.image.downsample.I.*"),
    ("video_dit.image_embedding.proj.I.*", "video.image.projection.I.*"),
    ("video_dit.head.modulation", "video.head.modulation"),
    ("video_dit.head.head.*", "video.head.linear.*"),
    ("action_dit.action_encoder.*", "action.embed.*"),
    ("action_dit.proprio_encoder.I.*", "action.state.I.*"),
    ("action_dit.head.*", "action.head.*"),
    ("S.text_embedding.I.*", "S.text.embedding.I.*"),
    ("S.time_embedding.I.*", "S.noise.embedding.I.*"),
    ("S.time_projection.1.*", "S.noise.projection.*"),
    ("S.blocks.N.modulation", "S.blocks.N.modulation"),
    ("S.blocks.N.self_attn.q.*", "S.blocks.N.attention.query.*"),
    ("S.blocks.N.self_attn.k.*", "S.blocks.N.attention.key.*"),
    ("S.blocks.N.self_attn.v.*", "S.blocks.N.attention.value.*"),
    ("S.blocks.N.self_attn.o.*", "S.blocks.N.attention.output.*"),
    ("S.blocks.N.self_attn.norm_q.weight", "S.blocks.N.attention.query_norm.weight"),
    ("S.blocks.N.self_attn.norm_k.weight", "S.blocks.N.attention.key_norm.weight"),
    ("S.blocks.N.gated_delta.q_proj.weight", "S.blocks.N.delta.query.weight"),
    ("S.blocks.N.gated_delta.k_proj.weight", "S.blocks.N.delta.key.weight"),
    ("S.blocks.N.gated_delta.v_proj.weight", "S.blocks.N.delta.value.weight"),
    ("S.blocks.N.gated_delta.q_conv1d.weight", "S.blocks.N.delta.query_conv"),
    ("S.blocks.N.gated_delta.k_conv1d.weight", "S.blocks.N.delta.key_conv"),
    ("S.blocks.N.gated_delta.v_conv1d.weight", "S.blocks.N.delta.value_conv"),
    ("S.blocks.N.gated_delta.a_proj.weight", "S.blocks.N.delta.decay.weight"),
    ("S.blocks.N.gated_delta.b_proj.weight", "S.blocks.N.delta.write.weight"),
    ("S.blocks.N.gated_delta.A_log", "S.blocks.N.delta.log_rate"),
    ("S.blocks.N.gated_delta.dt_bias", "S.blocks.N.delta.decay_bias"),
    ("S.blocks.N.gated_delta.g_proj.weight", "S.blocks.N.delta.gate.weight"),
    ("S.blocks.N.gated_delta.o_norm.weight", "S.blocks.N.delta.output_norm.weight"),
    ("S.blocks.N.gated_delta.o_proj.weight", "S.blocks.N.delta.output.weight"),
    ("S.blocks.N.cross_attn.q.*", "S.blocks.N.cross.query.*"),
    ("S.blocks.N.cross_attn.k.*", "S.blocks.N.cross.key.*"),
    ("S.blocks.N.cross_attn.v.*", "S.blocks.N.cross.value.*"),
    ("S.blocks.N.cross_attn.o.*", "S.blocks.N.cross.output.*"),
    ("S.blocks.N.cross_attn.norm_q.weight", "S.blocks.N.cross.query_norm.weight"),
    ("S.blocks.N.cross_attn.norm_k.weight", "S.blocks.N.cross.key_norm.weight"),
    ("S.blocks.N.cross_attn_norm.*", "S.blocks.N.cross_norm.*"),
    ("S.blocks.N.ffn.I.*", "S.blocks.N.feed_forward.I.*"),
)

# Our pattern, from the official shape to ours, and back.
Reshape = Callable[[Tensor], Tensor]
RESHAPED: tuple[tuple[str, Reshape, Reshape], ...] = (
    ("S.blocks.N.modulation", lambda x: x.squeeze(0), lambda x: x.unsqueeze(0)),
    ("S.head.modulation", lambda x: x.squeeze(0), lambda x: x.unsqueeze(0)),
)

STREAMS = {"video_dit": "video", "action_dit": "action"}
# Files write a network's name behind these, or, where there is only video, no name at all.
WRAPPERS = ("pipe.dit.", "dit.")
# Logarithms of rates: rounding them to 8 bits would change a memory's half-life by percents.
KEEP_FLOAT32 = ("log_rate", "decay_bias")

Network = TypeVar("Network", bound=nn.Module)


def load_official(
    path: Path | str,
    *,
    config: TransformerConfig | None = None,
    given: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> PublishedMixture:
    """Load a published checkpoint.

    Args:
        path: a .safetensors file, an index of shards, or the folder that holds either.
        config: what to build; recognised from names and shapes when missing.
        given: the official configuration, for what shapes do not tell; see `recognise`.
        dtype: type of the parameters, None for the one that most of the file has. Decay rates are
            kept in float32.
        device: where to.

    Raises:
        ValueError: a name or a shape does not fit.
    """
    file = TensorFiles(path)
    tensors = from_official(file)
    if config is None:
        shapes = {canonical(name): shape for name, shape in file.shapes().items()}
        config = recognise(shapes, given)
    with torch.device("meta"):
        network = PublishedMixture(config)
    check_names(tensors, network.state_dict(), source=str(path))
    return assign(network, cast_tensors(tensors, dtype, device))


def save_official(
    network: nn.Module,
    path: Path | str,
    *,
    prefix: str = "",
    shard_bytes: int | None = None,
) -> None:
    """Write a network under official names; what `load_official` reads back bit for bit.

    Args:
        network: a `PublishedMixture`, or a module with parameters of the same names.
        path: file, or with `shard_bytes` folder, to write.
        prefix: `video_dit.` for files that hold several networks. A network with actions always
            has `video_dit.` and `action_dit.`; what is given is put before them.
        shard_bytes: largest size of a shard.
    """
    tensors = to_official(network.state_dict())
    if any(name.startswith("action_dit.") for name in tensors):
        named = {prefix + name: tensor for name, tensor in tensors.items()}
    else:
        named = {prefix + name.removeprefix("video_dit."): t for name, t in tensors.items()}
    write_tensors(named, path, shard_bytes=shard_bytes)


def from_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official names and shapes to ours.

    Raises:
        ValueError: a name matches no row, or two names mean one parameter.
    """
    ours = rename({name: canonical(name) for name in tensors}, NAMES, STREAMS)
    return {name: _reshape(name, tensors[source], 1) for source, name in ours.items()}


def to_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our names and shapes to the official ones, with `video_dit.` and `action_dit.` in front.

    Raises:
        ValueError: a name matches no row, such as a part that published networks do not have.
    """
    rows = [(ours, official) for official, ours in NAMES]
    streams = {ours: official for official, ours in STREAMS.items()}
    official = rename({name: name for name in tensors}, rows, streams)
    return {name: _reshape(source, tensors[source], 2) for source, name in official.items()}


def canonical(name: str) -> str:
    """An official name with its stream in front and nothing before it."""
    for wrapper in ("", *WRAPPERS):
        for stream in STREAMS:
            if name.startswith(f"{wrapper}{stream}."):
                return name.removeprefix(wrapper)
    return f"video_dit.{name}"


def rename(
    names: Mapping[str, str], rows: Sequence[tuple[str, str]], streams: Mapping[str, str]
) -> dict[str, str]:
    """Translate names by a table.

    Args:
        names: how each name is spelled in its file, to how the table spells it.
        rows: pattern there, pattern here.
        streams: what S stands for there and here.

    Returns:
        Spelling in the file to the translation.

    Raises:
        ValueError: a name matches no row or several, or two names translate to one.
    """
    found = {name: _translations(spelled, rows, streams) for name, spelled in names.items()}
    lost = [name for name, matches in found.items() if len(matches) != 1]
    if lost:
        raise ValueError(f"{_listed(lost)} of {len(names)} names match no row of the table")
    result = {name: matches[0] for name, matches in found.items()}
    twice = [name for name, count in Counter(result.values()).items() if count > 1]
    if twice:
        raise ValueError(f"{_listed(twice)} parameters are given more than once")
    return result


def check_names(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str
) -> None:
    """Raise unless names and shapes are the same on both sides."""
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    wrong = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    if missing or unexpected or wrong:
        raise ValueError(
            f"{source} does not fit the network of {len(expected)} parameters: "
            f"missing {_listed(missing)}; unexpected {_listed(unexpected)}; "
            f"of another shape {_listed(wrong)}. Is the config the one of this checkpoint?"
        )


def cast_tensors(
    tensors: dict[str, Tensor],
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """One floating-point type for everything but `KEEP_FLOAT32`; None takes the commonest.

    The tensors are taken out of the dict one by one, so that none is held in both forms for long.
    """
    common = dtype or _commonest_dtype(tensors.values())
    precise = torch.promote_types(common, torch.float32)

    def cast(name: str) -> Tensor:
        kept = name.rpartition(".")[2] in KEEP_FLOAT32
        return tensors.pop(name).to(device, precise if kept else common)

    return {name: cast(name) for name in tuple(tensors)}


def _commonest_dtype(tensors: Iterable[Tensor]) -> torch.dtype:
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.numel()
    return sizes.most_common(1)[0][0]


def assign(network: Network, tensors: Mapping[str, Tensor]) -> Network:
    """Make tensors the parameters of a network on the meta device, without a copy."""
    network.load_state_dict(dict(tensors), strict=True, assign=True)
    return network


def _translations(
    name: str, rows: Sequence[tuple[str, str]], streams: Mapping[str, str]
) -> list[str]:
    parts = name.split(".")
    matches = ((_match(there.split("."), parts, streams), here) for there, here in rows)
    return [
        ".".join(values.get(part, part) for part in here.split("."))
        for values, here in matches
        if values is not None
    ]


def _match(
    pattern: list[str], parts: list[str], streams: Mapping[str, str]
) -> dict[str, str] | None:
    """What the placeholders of a pattern stand for, or None where it does not match."""
    if len(pattern) != len(parts):
        return None
    values: dict[str, str] = {}
    for wanted, part in zip(pattern, parts, strict=True):
        fits = {
            "S": part in streams,
            "N": part.isdecimal(),
            "I": part.isdecimal(),
            "*": part in ("weight", "bias"),
        }.get(wanted, wanted == part)
        if not fits:
            return None
        values[wanted] = streams[part] if wanted == "S" else part
    return values


def _reshape(name: str, tensor: Tensor, direction: int) -> Tensor:
    """Apply the row of RESHAPED that our name matches: 1 from the official shape, 2 to it."""
    parts = name.split(".")
    ours = {stream: stream for stream in STREAMS.values()}
    for row in RESHAPED:
        if _match(row[0].split("."), parts, ours) is not None:
            change: Reshape = row[1] if direction == 1 else row[2]
            return change(tensor)
    return tensor


def _listed(names: Sequence[str], first: int = 3) -> str:
    """A count and the first few."""
    shown = ", ".join(names[:first])
    more = ", ..." if len(names) > first else ""
    return f"{len(names)} ({shown}{more})" if names else "0"
