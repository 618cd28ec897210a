"""Attention inside one whole clip, both ways in time, for networks that denoise clips at once."""

from kairos_env.kernels.clip_attention.op import (
    band_attention,
    frame_attention,
    phase_attention,
)

__all__ = ["band_attention", "frame_attention", "phase_attention"]
