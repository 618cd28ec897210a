"""Each dream's own randomness: where it begins, and the seed of its noise.

The same seed gives the same dream alone or in any slot of any batch; no global generator is used.
"""

import json
import operator
from typing import Any

import numpy as np
from gymnasium.error import Error
from gymnasium.utils import seeding
from numpy.typing import NDArray

from kairos_env.errors import OptionError

LARGEST_SEED = 2**63 - 1

Fresh = dict[int, tuple[np.random.Generator, int]]
"""New generators by dream, with the seeds that made them."""


class Streams:
    """B generators.

    Args:
        count: B.
        starts: The bundled starts to draw from.
    """

    def __init__(self, count: int, starts: NDArray[np.int64]) -> None:
        self._starts = starts
        self._generators: list[np.random.Generator | None] = [None] * count
        self.seeds: list[int | None] = [None] * count

    def fresh(self, seed: Any) -> Fresh:
        """Generators for a reset's `seed`: s gives dream i the seed s + i, a list one each."""
        count = len(self._generators)
        if seed is None:
            return {}
        try:
            each = list(seed) if np.ndim(seed) else None
            if each is None:
                each = [_whole(seed) + dream for dream in range(count)]
            if len(each) != count:
                raise OptionError(f"expected {count} seeds, one per dream, got {len(each)}")
            whole = {i: _whole(s) for i, s in enumerate(each) if s is not None}
            return {i: (seeding.np_random(s)[0], s) for i, s in whole.items()}
        except (TypeError, ValueError, Error) as error:
            if isinstance(error, OptionError):
                raise
            raise OptionError(
                f"a seed is a whole number from 0 on, or a list of {count}, got {seed!r}"
            ) from error

    def take(self, dream: int, fresh: Fresh) -> None:
        """Use a new generator, if there is one for this dream."""
        if dream in fresh:
            self._generators[dream], self.seeds[dream] = fresh[dream]

    def __getitem__(self, dream: int) -> np.random.Generator:
        generator = self._generators[dream]
        if generator is None:
            generator, self.seeds[dream] = seeding.np_random()
            self._generators[dream] = generator
        return generator

    def __setitem__(self, dream: int, generator: np.random.Generator) -> None:
        self._generators[dream] = generator

    def draw(self, dream: int) -> tuple[int, int]:
        """Which start a new dream begins from, and the seed of its noise."""
        generator = self[dream]
        start = self._starts[generator.integers(len(self._starts))]
        return int(start), int(generator.integers(LARGEST_SEED))

    def to_text(self, dream: int) -> str:
        """The state of a dream's generator as JSON."""
        return json.dumps(self[dream].bit_generator.state)

    def from_text(self, dream: int, text: str) -> None:
        """Put a generator back to the state that `to_text` gave."""
        generator = np.random.Generator(np.random.PCG64(0))
        generator.bit_generator.state = json.loads(text)
        self._generators[dream], self.seeds[dream] = generator, None


def _whole(number: Any) -> int:
    if isinstance(number, bool | np.bool_):
        raise TypeError("a truth value is no seed")
    return operator.index(number)
