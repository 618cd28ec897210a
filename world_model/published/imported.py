"""How an imported network dreams: what shapes and weights do not tell."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportedConfig:
    """Options of an imported network's dream; see `published.world`."""

    mode: Literal["video", "joint"] = "video"
    """Denoise the video alone, or actions of the network's own beside it."""
    guidance: float = 1.0
    """s in v = v_negative + s (v_positive - v_negative); 1 asks the network once per step."""
    few_step: bool = False
    """The network is distilled: it takes the four published steps, with guidance built in."""
    normalize: str = "min/max"
    """How actions and states were scaled in training, a mode of `Normalizer.make`."""
    statistics: Mapping[str, Any] | None = None
    """Those of the actions and states, as the published statistics file has them."""
    text_encoder: str | None = None
    """Folder of the encoder that makes features of prompts; None where only features are given."""
    picture_in_text: bool = True
    """Whether the encoder is shown the picture too; LIBERO-plus was trained without."""

    def __post_init__(self) -> None:
        """Refuse what cannot be sampled."""
        if not self.guidance >= 1:
            raise ValueError(
                f"ImportedConfig.guidance must be at least 1, got {self.guidance}; 1 is none"
            )
