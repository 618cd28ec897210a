"""TeaCache: skip the network's blocks where the time modulation says that little changes.

Between two sampler steps the blocks' output changes about as much as a polynomial of the relative
change of the time modulation. The estimates add up from step to step; while the sum stays under a
threshold, the last computed residual (blocks' output minus input) is used again. First and last
step are always computed.

    r_i = mean|m_i - m_(i-1)| / mean|m_(i-1)|        a_i = a_(i-1) + p(r_i),  skip if a_i <
    threshold, else a_i = 0

The state goes in and comes out; a guided sampler carries one for each branch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from torch import Tensor

# Published polynomials p, highest power first, by the model they were fitted to.
COEFFICIENTS: Final[dict[str, tuple[float, ...]]] = {
    "Wan2.1-T2V-1.3B": (-52186.2437, 9230.41404, -528.275948, 13.6987616, -0.0499875664),
    "Wan2.1-T2V-14B": (-303318.725, 49053.7029, -2655.30556, 58.7365115, -0.315583525),
    "Wan2.1-I2V-14B-480P": (257151.496, -35422.9917, 1402.86849, -13.5890334, 0.132517977),
    "Wan2.1-I2V-14B-720P": (8107.0546, 2133.93892, -372.934672, 16.6203073, -0.0417769401),
}


@dataclass(frozen=True, kw_only=True)
class TeaCache:
    """When to skip.

    Attributes:
        steps: how many steps the sampler makes.
        coefficients: of p, highest power first; the published ones are in ``COEFFICIENTS``.
        threshold: how much estimated change may add up before the blocks run again; 0 never skips.
    """

    steps: int
    coefficients: tuple[float, ...] = COEFFICIENTS["Wan2.1-T2V-1.3B"]
    threshold: float = 0.1

    @classmethod
    def published(cls, model: str, *, steps: int, threshold: float = 0.1) -> "TeaCache":
        """Take the polynomial that was published for a model."""
        if model not in COEFFICIENTS:
            raise ValueError(
                f"no TeaCache polynomial for {model!r}; there are {sorted(COEFFICIENTS)}"
            )
        return cls(steps=steps, coefficients=COEFFICIENTS[model], threshold=threshold)

    def run(
        self,
        state: "TeaCacheState",
        modulation: Tensor,
        x: Tensor,
        blocks: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, "TeaCacheState"]:
        """Run the blocks, or add the last residual instead.

        Args:
            state: of the step before; ``TeaCacheState()`` before the first.
            modulation: projected time modulation of this step, any shape.
            x: tokens before the blocks.
            blocks: the expensive part, tokens to tokens.

        Returns:
            The tokens behind the blocks, and the state for the next step.
        """
        accumulated = state.accumulated + self._change(state.modulation, modulation)
        edge = state.step in (0, self.steps - 1)
        if state.residual is not None and not edge and accumulated < self.threshold:
            return x + state.residual, TeaCacheState(
                step=state.step + 1,
                skipped=True,
                accumulated=accumulated,
                modulation=modulation,
                residual=state.residual,
            )
        y = blocks(x)
        return y, TeaCacheState(step=state.step + 1, modulation=modulation, residual=y - x)

    def _change(self, before: Tensor | None, now: Tensor) -> float:
        """Estimate how much the blocks' output has changed since the step before: p(r)."""
        if before is None:
            return 0.0
        ratio = float((now - before).abs().mean() / before.abs().mean())
        change = 0.0
        for coefficient in self.coefficients:  # Horner's rule
            change = change * ratio + coefficient
        return change


@dataclass(frozen=True, kw_only=True)
class TeaCacheState:
    """What one guidance branch carries from step to step.

    Attributes:
        step: index of the coming step.
        skipped: whether the step before was skipped.
        accumulated: estimated change since the blocks last ran.
        modulation: time modulation of the step before, computed or not.
        residual: blocks' output minus input when they last ran.
    """

    step: int = 0
    skipped: bool = False
    accumulated: float = 0.0
    modulation: Tensor | None = None
    residual: Tensor | None = None
