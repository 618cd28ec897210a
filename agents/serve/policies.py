"""What answers requests: a world that says what its robot would do.

Shapes: B requests of one kind, T frames, H W pixels, A actions, D action size, S state size.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from kairos_env.agents.serve.request import Request, RequestError
from kairos_env.spaces import decode_actions
from kairos_env.world_model.normalizers import Normalizer, statistics_of
from kairos_env.world_model.published.generate import Asked, Pipeline, Task, TextEncoder
from kairos_env.world_model.published.world import PublishedWorld
from kairos_env.worlds import World

HORIZON, STEPS = 32, 20  # published
OWN_STEPS = 10


class Policy(Protocol):
    """One call answers B requests of one kind."""

    def describe(self) -> dict[str, Any]:
        """What clients should know, as JSON values."""

    def check(self, request: Request) -> None:
        """Refuse, with RequestError, what cannot be answered."""

    def act(self, requests: Sequence[Request]) -> NDArray[np.float32]:
        """Actions (B, A, D) in the robot's own units."""


def policy_of(world: World, *, text: TextEncoder | None = None) -> Policy:
    """The policy of a world: imported, or one of ours.

    Args:
        world: Whose.
        text: Encodes the prompts of an imported world; None loads the encoder that it names.

    Raises:
        ValueError: The world has no action stream.
    """
    if world.manifest.model.transformer.action is None:
        raise ValueError(f"world {world.name!r} has no action stream, so it cannot act")
    if isinstance(world.dreamer, PublishedWorld):
        return PublishedPolicy(world, world.dreamer, text)
    return WorldPolicy(world)


class PublishedPolicy:
    """An imported network: looks at one picture, and denoises the actions alone."""

    def __init__(self, world: World, network: PublishedWorld, text: TextEncoder | None) -> None:
        options = network.options
        statistics = statistics_of(options.statistics or {}, source="the world's statistics")

        def normalizer(name: str) -> Normalizer | None:
            if name not in statistics:
                return None
            return Normalizer.make(options.normalize, statistics[name])

        if text is None and options.text_encoder is not None:
            from kairos_env.world_model.published.text_encoders import QwenTextEncoder

            text = QwenTextEncoder.load(options.text_encoder, device=network.device)
        self._name = world.name
        self._pipeline = Pipeline(
            network.network,
            network.tokenizer.autoencoder,
            text=text,
            actions=normalizer("action"),
            states=normalizer("state"),
        )
        self._config = network.config.transformer
        self._picture_in_text = options.picture_in_text

    def describe(self) -> dict[str, Any]:
        """Sizes and defaults."""
        return {
            "world": self._name,
            "action_size": self._config.action.channels if self._config.action else 0,
            "state_size": self._config.state_dim,
            "horizon": HORIZON,
            "steps": STEPS,
            "reads_prompts": self._pipeline.text is not None,
        }

    def check(self, request: Request) -> None:
        """One picture, a state of the right size, a prompt only where it can be read."""
        if len(request.frames) != 1:
            raise RequestError(f"this policy looks at one picture, got {len(request.frames)}")
        size = self._config.state_dim
        for name, numbers in (("state", request.state), ("state_mask", request.state_mask)):
            if numbers is not None and numbers.shape != (size,):
                raise RequestError(f"robot_{name} must be {size} numbers, got {len(numbers)}")
        if request.prompt and self._pipeline.text is None:
            raise RequestError(
                "this world has no text encoder, so the prompt must be empty; import it again with "
                "--text-encoder FOLDER"
            )

    def act(self, requests: Sequence[Request]) -> NDArray[np.float32]:
        """Denoise the actions of all requests together."""
        first = requests[0]
        height, width = first.frames.shape[1:3]
        task = Task(
            mode="action",
            height=height,
            width=width,
            horizon=first.horizon or HORIZON,
            steps=first.steps or STEPS,
            tiled=first.tiled,
            picture_in_text=self._picture_in_text,
        )
        asked = Asked(
            prompts=[request.prompt for request in requests],
            seeds=[request.seed for request in requests],
            pictures=torch.from_numpy(np.concatenate([request.frames for request in requests])),
            states=_rows([request.state for request in requests]),
            state_masks=_rows([request.state_mask for request in requests]),
        )
        made = self._pipeline(task, asked)
        assert made.actions is not None
        actions: NDArray[np.float32] = made.actions.cpu().numpy()
        return actions


class WorldPolicy:
    """One of our worlds: reads the history into its memory, and denoises the next chunk."""

    def __init__(self, world: World) -> None:
        self._world = world

    def describe(self) -> dict[str, Any]:
        """Sizes and defaults."""
        e, m = self._world.manifest.environment, self._world.manifest.model
        return {
            "world": self._world.name,
            "action_size": len(np.atleast_1d(e.space.sample())),
            "state_size": None,
            "horizon": m.chunk,
            "steps": OWN_STEPS,
            "reads_prompts": m.text is not None,
            "frame_size": e.frame_size,
            "history": m.history,
        }

    def check(self, request: Request) -> None:
        """Frames of the world's size, whole chunks of them, and no more actions than a chunk."""
        e, m = self._world.manifest.environment, self._world.manifest.model
        T, *size = request.frames.shape[:3]
        if size != [e.frame_size] * 2:
            raise RequestError(
                f"this world sees frames of {e.frame_size}x{e.frame_size}, got {size[1]}x{size[0]}"
            )
        if T > 1 and T % m.frames_per_chunk:
            raise RequestError(f"a history has a multiple of {m.frames_per_chunk} frames, got {T}")
        if request.horizon is not None and request.horizon > m.chunk:
            raise RequestError(
                f"this world acts for {m.chunk} actions at a time, got "
                f"robot_action_horizon {request.horizon}"
            )

    def act(self, requests: Sequence[Request]) -> NDArray[np.float32]:
        """Read the histories, denoise the chunks; a world that reads no text needs no prompt."""
        model, first = self._world.model, requests[0]
        frames = np.stack([request.frames for request in requests])
        short = -frames.shape[1] % model.config.frames_per_chunk
        if short:  # a single picture stands for a robot that has not moved
            frames = np.concatenate([frames[:, :1].repeat(short, axis=1), frames], axis=1)
        seeds = torch.tensor([request.seed for request in requests])
        text = mask = None
        if model.text is not None:
            words = model.text.tokenize([request.prompt for request in requests])
            text, mask = model.tell(words, len(requests))
        state = model.start(
            torch.from_numpy(frames).to(model.device),
            seeds=seeds.to(model.device),
            text=text,
            text_mask=mask,
        )
        proposal = model.act(state, denoise_steps=first.steps or OWN_STEPS)
        space = self._world.manifest.environment.chunk_space
        chunks = [decode_actions(space, chunk) for chunk in proposal.chunk.float().cpu().numpy()]
        actions: NDArray[np.float32] = np.stack(chunks).astype(np.float32)[:, : first.horizon]
        return actions.reshape(*actions.shape[:2], -1)


def _rows(values: Sequence[NDArray[np.float32] | None]) -> torch.Tensor | None:
    """(B, S); requests of one kind have all of them or none."""
    rows = [value for value in values if value is not None]
    return torch.from_numpy(np.stack(rows)) if rows else None
