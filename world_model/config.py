"""What a world model is made of, as frozen data. The sizes that have names are in `presets.py`.

A config says what is built; what is only known at run time (device, batch, number of frames) is an
argument elsewhere. Every world on disk carries its config as JSON (`to_json`, `from_json`), and
needs nothing else.
"""

import dataclasses
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

LayerKind = Literal["SWA", "DSWA", "GLA", "FA"]
# causal: frame-aligned windows, bidirectional inside a chunk, causal across chunks (our worlds).
# flash, flex: the two window definitions of the published implementation, for imported weights.
Semantics = Literal["causal", "flash", "flex"]

HYBRID: tuple[LayerKind, ...] = ("SWA", "SWA", "DSWA", "GLA")
NORM_GROUPS = 8
"""Groups of every group norm between convolutions."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Sizes of one stream (video or action) of the mixture."""

    dim: int
    """Width of a token."""
    ffn_dim: int
    """Width inside the feed-forward layer."""
    channels: int
    """Numbers that a token's input has: latent channels of the video, size of one action."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        for field in dataclasses.fields(self):
            positive(self, field.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeltaConfig:
    """The gated delta rule's heads: one key_dim x value_dim matrix of memory per head."""

    heads: int
    key_dim: int
    value_dim: int
    conv: int = 4
    """Taps of the short convolution before the rule."""
    decay: Literal["frame", "token"] = "frame"
    """What one unit of decay time is. The published rule decays per token and so forgets a frame of
    many tokens at once; per frame, half-lives are counted in frames at every resolution."""
    half_life: tuple[float, float] | None = (2.0, 1000.0)
    """Half-lives at initialisation, spread evenly in logarithm over the heads, in units of `decay`;
    None draws them as the published layer does."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be built."""
        for name in ("heads", "key_dim", "value_dim", "conv"):
            positive(self, name)
        if self.half_life is not None and not 0 < self.half_life[0] <= self.half_life[1]:
            raise ValueError(
                f"DeltaConfig.half_life must be (shortest, longest) with 0 < shortest <= longest, "
                f"got {self.half_life}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedRules:
    """Details of imported networks; read only where `semantics` is flash or flex."""

    restrict_history: bool = True
    """flex: the history frames of a clip see each other only."""
    all_history: bool = False
    """flex: every frame also sees all history frames, whatever its window."""
    dilations: tuple[int, ...] | None = None
    """Dilation of each layer, where DSWA layers differ; None takes `TransformerConfig.dilation`."""
    separate_timestep: bool = True
    """History frames are told timestep 0; otherwise all frames share one."""
    image_tokens: bool = False
    """The first frame's latents are also read as tokens before the text."""
    half_rotation: bool = False
    """Round queries and keys to float16 before the rotation, as the released first generation does
    since March 2026."""
    skip_undilated: bool = False
    """Reproduce a released defect: layers without dilation hand their input to the output
    projection unattended. For comparing with outputs of that revision only."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A video stream and, optionally, an action stream, joined layer by layer."""

    layers: tuple[LayerKind, ...]
    """The memory of each layer; the published pattern is (SWA, SWA, DSWA, GLA) repeated."""
    heads: int
    head_dim: int
    """Attention width is heads * head_dim, shared by both streams, whatever their token widths."""
    video: StreamConfig
    action: StreamConfig | None
    delta: DeltaConfig
    window: int = 3
    """A layer sees frames at distance 0 .. window - 1 (times the dilation)."""
    dilation: int = 4
    """The step between frames that a DSWA layer sees."""
    patch: int = 2
    """Side of the square of latents that one video token covers."""
    freq_dim: int = 256
    """Width of the sinusoidal embedding of the noise level."""
    text_dim: int | None = None
    """Width of text features; None builds no cross-attention."""
    state_dim: int | None = None
    """Size of a proprioceptive state that is appended to the text (published models); None for no
    such input."""
    semantics: Semantics = "causal"
    published: PublishedRules = PublishedRules()
    stem: Literal["patch", "conv", "lookback"] = "patch"
    """How latents become tokens and back: one linear patch; a small convolutional stem and head
    with the previous frames beside the noisy one (what small models need to learn motion at all);
    or a patch with the previous frames' patches added (imported weights that learn to answer to
    actions)."""
    stem_channels: int = 96
    stem_blocks: int = 1
    head_blocks: int = 3
    previous_frames: int = 2
    """Clean frames that the convolutional and the lookback stem read beside the noisy one."""
    anchor: bool = False
    """The oldest of them is always the dream's first frame: what stands still is then never
    forgotten, however long the dream."""
    stillness: float = 0.0
    """The change from frame to frame, as root mean square over the channels of a latent, that the
    convolutional head takes for none: below it a place stays as it was, to the bit. Small errors in
    what stands still then cannot pile up over a long dream."""
    second_look: float = 0.0
    """Noise level at which the convolutional stem and head read their own prediction once more and
    put right what has changed; the layers between are not run again. 0: they do not."""
    homing: float = 0.0
    """The distance from the anchor, as root mean square over the channels of a latent, below which
    a place of a dreamed frame is taken to look as it did there, to the bit: what looks nearly as at
    first is as at first."""
    restore: bool = False
    """Whether the convolutional head also says, place by place, how much of the anchor is there
    again: what was covered for a while is then uncovered as it was, not drawn anew."""
    reserve: float = 0.0
    """The share below which nothing of a place is restored: a little of it in each frame would in a
    hundred frames be all of it, and what has come to rest there would dissolve. Better higher in
    dreams than it was in training: a share that comes to nothing is not taught to be less."""
    recollect: bool = False
    """Whether the convolutional head also reads what the frame before made of all it remembered:
    what comes back into sight is drawn from there."""
    actions_per_frame: int = 1
    action_conditions_time: bool = False
    """Also add a frame's actions to its noise-level embedding, beside the attention path (small
    models)."""
    eps: float = 1e-6

    def __post_init__(self) -> None:
        """Refuse contradictions, naming the fields."""
        for name in ("heads", "head_dim", "window", "dilation", "patch", "freq_dim"):
            positive(self, name)
        for name in ("stem_channels", "previous_frames", "actions_per_frame"):
            positive(self, name)
        if not self.layers:
            raise ValueError(
                "TransformerConfig.layers is empty: name at least one layer, e.g. ('SWA', 'GLA')"
            )
        unknown = set(self.layers) - {"SWA", "DSWA", "GLA", "FA"}
        if unknown:
            raise ValueError(
                f"TransformerConfig.layers holds {sorted(unknown)}; known: SWA, DSWA, GLA, FA"
            )
        if self.semantics == "causal" and "FA" in self.layers:
            raise ValueError(
                "TransformerConfig.layers holds FA, whose cost grows with every frame; "
                "a dream needs SWA, DSWA or GLA"
            )
        dilations = self.published.dilations
        if dilations is not None and len(dilations) != len(self.layers):
            raise ValueError(
                f"PublishedRules.dilations names {len(dilations)} layers, "
                f"the network has {len(self.layers)}"
            )
        self._check_stem()
        if self.head_dim % 2:
            raise ValueError(
                f"TransformerConfig.head_dim must be even for the rotation, got {self.head_dim}"
            )

    def _check_stem(self) -> None:
        """The same for how latents become tokens and back."""
        if self.stem == "conv" and self.stem_channels % NORM_GROUPS:
            raise ValueError(
                f"TransformerConfig.stem_channels must be divisible by {NORM_GROUPS}, the groups "
                f"of its norms, got {self.stem_channels}"
            )
        if not self.stillness >= 0:
            raise ValueError(
                f"TransformerConfig.stillness must not be negative, got {self.stillness}"
            )
        if not 0 <= self.second_look < 1 or (self.second_look and self.stem != "conv"):
            raise ValueError(
                "TransformerConfig.second_look must be a noise level from 0 up to, not including, "
                f"1, and above 0 only for stem 'conv', got {self.second_look} for {self.stem!r}"
            )
        if not self.homing >= 0 or (self.homing and not self.anchor):
            raise ValueError(
                "TransformerConfig.homing must not be negative, and above 0 only with an anchor, "
                f"got {self.homing} with anchor={self.anchor}"
            )
        if self.restore and not (self.anchor and self.stem == "conv"):
            raise ValueError(
                "TransformerConfig.restore needs stem 'conv' and an anchor, "
                f"got {self.stem!r} with anchor={self.anchor}"
            )
        if not 0 <= self.reserve < 1 or (self.reserve and not self.restore):
            raise ValueError(
                "TransformerConfig.reserve must be a share from 0 up to, not including, 1, and "
                f"above 0 only with restore, got {self.reserve} with restore={self.restore}"
            )
        if self.recollect and self.stem != "conv":
            raise ValueError(f"TransformerConfig.recollect needs stem 'conv', got {self.stem!r}")

    @property
    def attention_width(self) -> int:
        """Width of queries, keys and values over all heads."""
        return self.heads * self.head_dim

    def layer_dilation(self, kind: LayerKind) -> int:
        """The dilation of a layer of this kind: window and dilation are data, not classes."""
        return self.dilation if kind == "DSWA" else 1

    @property
    def reach(self) -> int:
        """How many frames back the windows of the stack see; beyond, only GLA layers remember."""
        windowed = [kind for kind in self.layers if kind in ("SWA", "DSWA")]
        return sum((self.window - 1) * self.layer_dilation(kind) for kind in windowed)


def positive(config: Any, name: str) -> None:
    """Raise if a size is not a positive whole number."""
    value = getattr(config, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(
            f"{type(config).__name__}.{name} must be a positive whole number, got {value!r}"
        )


Config = TypeVar("Config")


def to_json(config: Any) -> dict[str, Any]:
    """A config as plain JSON values."""
    return dataclasses.asdict(config)


def settings(config: Any) -> dict[str, Any]:
    """`to_json` without what is at its default."""
    kept = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            kept[field.name] = settings(value) if dataclasses.is_dataclass(value) else value
    return kept


def from_json(kind: type[Config], data: Mapping[str, Any]) -> Config:
    """The config that `to_json` wrote; an unknown, missing or wrong field is an error naming it."""
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise ValueError(
            f"{kind.__name__} has no field {', '.join(unknown)}; it has {', '.join(fields)}"
        )
    missing = sorted(
        name
        for name, field in fields.items()
        if name not in data
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    )
    if missing:
        raise ValueError(
            f"{kind.__name__} needs {', '.join(missing)}, which the given data does not hold"
        )
    hints = get_type_hints(kind)
    at = kind.__name__
    return kind(**{name: _value(hints[name], data[name], f"{at}.{name}") for name in data})


def _value(hint: Any, value: Any, where: str) -> Any:
    """JSON value to field value: a mapping may be a config, a list is a tuple."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    fitting = [option for option in options if _fits(option, value)]
    kind = next((k for k in fitting if _knows(k, value)), fitting[0] if fitting else None)
    if kind is None:
        expected = " or ".join(_in_words(option) for option in options)
        raise ValueError(f"{where} must be {expected}, got {value!r}")
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return from_json(kind, value)
    if get_origin(kind) is tuple:
        first, *rest = get_args(kind)
        kinds = [first] * len(value) if rest == [...] else [first, *rest]
        pairs = zip(kinds, value, strict=True)
        return tuple(_value(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(pairs))
    return value


def _fits(kind: Any, value: Any) -> bool:
    """Whether a JSON value can be a field of this type; types that configs do not use take all."""
    if dataclasses.is_dataclass(kind):
        return isinstance(value, Mapping)
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        sizes = get_args(kind)
        return isinstance(value, list | tuple) and (... in sizes or len(value) == len(sizes))
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return isinstance(value, kind) if kind in (bool, str, NoneType) else True


def _knows(kind: Any, value: Any) -> bool:
    """Whether a config has all the fields of a mapping: tells one kind of config from another."""
    if not dataclasses.is_dataclass(kind):
        return True
    return set(value) <= {field.name for field in dataclasses.fields(kind)}


def _in_words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    if get_origin(kind) is tuple:
        return "a list" if ... in get_args(kind) else f"a list of {len(get_args(kind))}"
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return words.get(kind) or ("null" if kind is NoneType else f"the fields of {kind.__name__}")
