"""B dreams of one world in one batch: begin, advance, put back. No episodes, no Gymnasium.

Shapes: B dreams, n of them, K low-level actions per chunk of the model, D numbers per action.
"""

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kairos_env.beginnings import Beginning, Told
from kairos_env.view import View, numpy_of, view_of, view_of_history
from kairos_env.world_model.state import DreamState
from kairos_env.worlds import World

Precision = Literal["float32", "bfloat16", "int8", "int4", "fp8"]


class Dreams:
    """Slots for B dreams; what is written to one leaves every bit of the others as it was.

    Args:
        world: What is dreamed.
        count: B.
        denoise_steps: Passes per predicted frame; None takes the world's own number.
        chunks: Chunks of the model per step.
        decode: Whether frames are wanted.
        precision: Of the large products.
        compile: Use the world's compiled step.
    """

    def __init__(
        self,
        world: World,
        count: int,
        *,
        denoise_steps: int | None = None,
        chunks: int = 1,
        decode: bool = True,
        precision: Precision = "float32",
        compile: bool = False,
    ) -> None:
        self.world = world
        self.count = count
        self.frames = chunks * world.manifest.model.frames_per_chunk
        self._denoise_steps = denoise_steps
        self._precision = precision
        self._step = world.compiled_step if compile else world.dreamer.step
        self.decode = decode
        imported = world.manifest.model.imported
        self._imagines = imported is not None and imported.mode == "joint"
        self._memory: DreamState | None = None
        self._view: View | None = None

    @property
    def begun(self) -> bool:
        """Whether there is anything to advance."""
        return self._memory is not None

    @property
    def memory(self) -> DreamState:
        """What the next step depends on."""
        assert self._memory is not None, "begin first"
        return self._memory

    @property
    def view(self) -> View:
        """What is to be seen; replaced by every step, never changed in place."""
        assert self._view is not None, "begin first"
        return self._view

    def begin(
        self,
        where: NDArray[np.int64],
        beginning: Beginning,
        seeds: NDArray[np.int64],
        told: Told | None,
    ) -> None:
        """Start dreams from histories in the slots `where`, each with its own random stream."""
        model = self.world.dreamer
        with torch.no_grad(), rounded(self.world.dreamer.device, self._precision):
            frames = self._tensor(beginning.frames)
            latents = model.tokenizer.encode(frames)
            memory = model.start_latents(
                latents,
                None if beginning.actions is None else self._tensor(beginning.actions),
                seeds=self._tensor(seeds),
                text=self._tensor(told.features) if told else None,
                text_mask=self._tensor(told.mask) if told else None,
                frames=frames,
            )
        shown = latents.repeat_interleave(model.config.tokenizer.temporal, dim=1)
        view = view_of_history(
            beginning.frames if self.decode else None, numpy_of(shown), beginning.state, self.frames
        )
        if self._imagines:
            c = model.config
            unknown = np.full((len(view), self.frames * c.actions_per_frame, c.action_size), np.nan)
            view = dataclasses.replace(view, imagined_actions=unknown.astype(np.float32))
        self.put(where, memory, view)

    def advance(self, actions: NDArray[np.float32]) -> NDArray[np.bool_]:
        """One step of all dreams; returns which of them end with it.

        Args:
            actions: (B, chunks * K, D), encoded.

        Raises:
            FloatingPointError: A dream left the finite numbers; nothing has changed.
        """
        config, memory, predictions = self.world.dreamer.config, self.memory, []
        with torch.inference_mode(), rounded(self.world.dreamer.device, self._precision):
            for part in self._tensor(actions).split(config.chunk, dim=1):
                memory, prediction = self._step(
                    memory, part, denoise_steps=self._denoise_steps, decode=self.decode
                )
                predictions.append(prediction)
        view, ended = view_of(predictions, config.heads.end_threshold)
        _require_finite(view)
        self._memory, self._view = memory, view
        return ended

    def put(self, where: NDArray[np.int64], memory: DreamState, view: View) -> None:
        """Fill the slots `where` with n dreams, in that order."""
        memory = memory.to(self.world.dreamer.device)
        if np.array_equal(where, np.arange(self.count)):
            self._memory, self._view = memory, view
            return
        rows = torch.from_numpy(where)
        self._memory = self.memory.write(rows, memory)
        self._view = self.view.write(where, view)

    def clear(self) -> None:
        """Forget everything."""
        self._memory = self._view = None

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.array(array)).to(self.world.dreamer.device)


def rounded(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """Within it, large products are done in the chosen precision."""
    if precision != "bfloat16":
        return nullcontext()
    context: AbstractContextManager[None] = torch.autocast(device.type, dtype=torch.bfloat16)
    return context


def _require_finite(view: View) -> None:
    for name in ("rewards", "state", "uncertainty"):
        finite = np.isfinite(getattr(view, name)).reshape(len(view), -1).all(1)
        if not finite.all():
            raise FloatingPointError(
                f"the {name} of dreams {np.flatnonzero(~finite).tolist()} became NaN or infinite: "
                "the world's weights do not hold this far from its data. Reset these dreams, or "
                "use a shorter horizon"
            )
