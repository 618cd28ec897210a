"""Sizes by name, as plain values."""

import dataclasses

from kairos_env.world_model.config import (
    HYBRID,
    DeltaConfig,
    LayerKind,
    StreamConfig,
    TransformerConfig,
)
from kairos_env.world_model.heads import HeadsConfig
from kairos_env.world_model.text import TextConfig
from kairos_env.world_model.tokenizer import TokenizerConfig
from kairos_env.world_model.world_model import WorldConfig

# The published networks share everything but the text encoder's width, the windows, and actions.
# First generation: base at 480p and 720p, and distilled. Text from Qwen2.5-VL.
KAIROS_4B = TransformerConfig(
    layers=HYBRID * 8,
    heads=20,
    head_dim=128,
    video=StreamConfig(dim=2560, ffn_dim=10240, channels=16),
    action=None,
    delta=DeltaConfig(heads=20, key_dim=256, value_dim=512, decay="token", half_life=None),
    text_dim=3584,
    semantics="flash",
)

# 3.1, video only. Text from Qwen3.5.
KAIROS_31_ROBOT = dataclasses.replace(KAIROS_4B, text_dim=2048)

# Video and actions, for RoboTwin 2.0 (two arms of seven joints).
KAIROS_ROBOTWIN = dataclasses.replace(
    KAIROS_31_ROBOT,
    action=StreamConfig(dim=1024, ffn_dim=4096, channels=14),
    state_dim=14,
    semantics="flex",
)

# The same for LIBERO-plus (one arm, moved by its end). Text from Qwen2.5-VL.
KAIROS_LIBERO_PLUS = dataclasses.replace(
    KAIROS_ROBOTWIN,
    text_dim=3584,
    action=StreamConfig(dim=1024, ffn_dim=4096, channels=7),
    state_dim=8,
)

PUBLISHED = {
    "kairos-4b": KAIROS_4B,
    "kairos-3.1-robot": KAIROS_31_ROBOT,
    "kairos-robotwin": KAIROS_ROBOTWIN,
    "kairos-libero-plus": KAIROS_LIBERO_PLUS,
}
"""Networks that `checkpoint.load_official` reads, by name."""


PLACES = 32
"""Kinds of things whose places the heads look for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How big one of our own worlds is; everything else follows from its environment."""

    dim: int
    """Width of a video token."""
    action_dim: int
    heads: int
    groups: int
    """Repetitions of (SWA, SWA, DSWA, GLA)."""
    stem_channels: int
    head_blocks: int
    patch: int
    """Side of the square of latents that a token covers."""
    tokenizer: tuple[int, ...]
    """Channels of the tokenizer for a 64-pixel frame; bigger frames get more halvings."""
    head_hidden: int
    head_channels: int | None = None
    """Of the convolutions with which the heads read frames; None: as many as the stem's."""
    half_life: tuple[float, float] = (2.0, 500.0)
    stillness: float = 0.15
    """What the head takes for standing still (`TransformerConfig.stillness`)."""
    second_look: float = 0.85
    """`TransformerConfig.second_look`."""


COMPACT = Size(
    dim=96,
    action_dim=32,
    heads=3,
    groups=1,
    stem_channels=32,
    head_blocks=2,
    patch=4,
    tokenizer=(16, 32, 64),
    head_hidden=128,
)

SIZES = {
    "tiny": Size(
        dim=32,
        action_dim=16,
        heads=2,
        groups=1,
        stem_channels=16,
        head_blocks=1,
        patch=2,
        tokenizer=(8, 8, 16),
        head_hidden=32,
        # After a few updates every change is small; with a threshold nothing would ever move.
        stillness=0.0,
    ),
    "compact": COMPACT,
    # compact where it remembers, small where it sees and draws; compact worlds grow into it with
    # --reshape.
    "wide": dataclasses.replace(COMPACT, stem_channels=64, head_blocks=3, head_channels=32),
    "small": Size(
        dim=160,
        action_dim=64,
        heads=4,
        groups=1,
        stem_channels=64,
        head_blocks=3,
        # Four tokens a frame: the stem and head see positions, the tokens carry memory. At equal
        # time it learned the push scene faster than sixteen tokens of width 128.
        patch=4,
        tokenizer=(32, 64, 96),
        head_hidden=256,
    ),
    "medium": Size(
        dim=256,
        action_dim=96,
        heads=8,
        groups=2,
        stem_channels=96,
        head_blocks=3,
        patch=2,
        tokenizer=(48, 96, 128),
        head_hidden=384,
    ),
}
"""Our own worlds by size: `tiny` for tests, `compact` to `small` for a CPU, `medium` for a GPU."""


def world_config(
    size: str,
    *,
    action_size: int,
    state_size: int,
    frame_size: tuple[int, int] = (64, 64),
    chunk: int = 4,
    frames_per_chunk: int = 1,
    layers: tuple[LayerKind, ...] | None = None,
    text: bool = False,
    temporal: int = 1,
    restore: bool = False,
    reserve: float = 0.0,
    recollect: bool = False,
) -> WorldConfig:
    """The world model of a size for an environment with these actions, states and frames.

    `layers` names other kinds of memory than the size's (SWA, SWA, DSWA, GLA) groups; a world with
    `text` reads what it is told in words; `temporal` frames are coded as one latent frame; with
    `restore` it uncovers what stands still as it was at first, where the share of that is at least
    `reserve`; with `recollect` it draws what comes back into sight (`TransformerConfig`).
    """
    if size not in SIZES:
        raise ValueError(f"no size {size!r}; there are {', '.join(SIZES)}")
    s = SIZES[size]
    actions_per_frame = chunk // frames_per_chunk
    # Latents stay near 8 x 8: every doubling of the frame is one more halving in the tokenizer.
    halvings = max(len(s.tokenizer), (min(frame_size) // 8).bit_length() - 1)
    channels = s.tokenizer[:1] * (halvings - len(s.tokenizer)) + s.tokenizer
    transformer = TransformerConfig(
        layers=layers or HYBRID * s.groups,
        heads=s.heads,
        head_dim=s.dim // s.heads,
        video=StreamConfig(dim=s.dim, ffn_dim=4 * s.dim, channels=4),
        action=StreamConfig(dim=s.action_dim, ffn_dim=2 * s.action_dim, channels=action_size),
        delta=DeltaConfig(
            heads=s.heads,
            key_dim=s.dim // s.heads,
            value_dim=s.dim // s.heads,
            half_life=s.half_life,
        ),
        freq_dim=64,
        text_dim=TextConfig().dim if text else None,
        patch=s.patch,
        stem="conv",
        previous_frames=3,
        anchor=True,
        stillness=s.stillness,
        second_look=s.second_look,
        restore=restore,
        reserve=reserve,
        recollect=recollect,
        stem_channels=s.stem_channels,
        head_blocks=s.head_blocks,
        actions_per_frame=actions_per_frame * temporal,
        action_conditions_time=True,
    )
    return WorldConfig(
        tokenizer=TokenizerConfig(frame_size=frame_size, channels=channels, temporal=temporal),
        transformer=transformer,
        heads=HeadsConfig(
            state_size=state_size,
            hidden=s.head_hidden,
            channels=s.head_channels or s.stem_channels,
            places=PLACES,
            sketched=PLACES,
            straight=True,
            measured=PLACES,
        ),
        text=TextConfig() if text else None,
        action_size=action_size,
        chunk=chunk,
        frames_per_chunk=frames_per_chunk,
        # whole chunks, three frames or more: velocities are seen
        history=frames_per_chunk * -(-3 // frames_per_chunk),
    )
