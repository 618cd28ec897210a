"""The gated delta rule (a linear-time memory of one matrix per head) and its short convolution."""

from kairos_env.kernels.gated_delta.op import (
    Form,
    gated_delta_boundaries,
    gated_delta_rule,
    short_conv,
)

__all__ = ["Form", "gated_delta_boundaries", "gated_delta_rule", "short_conv"]
