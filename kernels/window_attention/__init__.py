"""Attention over frame windows, chunk-causal, parallel and streaming."""

from kairos_env.kernels.window_attention.cache import FrameCache, append_frames
from kairos_env.kernels.window_attention.op import window_attention, window_attention_step

__all__ = ["FrameCache", "append_frames", "window_attention", "window_attention_step"]
