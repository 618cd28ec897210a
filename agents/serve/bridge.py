"""Stands in for the two clients of the published evaluation harness, which speak pickle.

    benchmarks/common/clients/wam_http_client.py          RoboTwin      WAMServiceClient
    benchmarks/common/adapters/wam_external_model_adapter.py   LIBERO   ExternalModelAdapter

In those files, import the class of the same name from here instead; the rest stays as it is.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kairos_env.agents.serve.client import PolicyClient


class WAMServiceClient:
    """What the RoboTwin evaluation asks for actions."""

    def __init__(
        self,
        endpoint: str,
        timeout_s: float = 3600.0,
        load_engine_on_init: bool = True,
        token: str | None = None,
    ) -> None:
        self.endpoint, self.timeout_s = endpoint.rstrip("/"), timeout_s
        self.load_engine_on_init = load_engine_on_init
        self._client = PolicyClient(self.endpoint, token=token, timeout=timeout_s)
        self._client.health()

    def load_engine(self) -> None:
        """The service has its world loaded before it answers at all."""
        self._client.health()

    def infer_action(
        self,
        *,
        input_image: Any,
        robot_state: Tensor,
        action_horizon: int,
        prompt: str | list[str],
        negative_prompt: str | list[str] = "",
        seed: int | None = None,
        tiled: bool = False,
        num_frames: int = 1,
        num_inference_steps: int = 10,
        cfg_scale: float = 8.0,
        save_path: str | None = None,
        prev_chunk_left_over: Tensor | None = None,
        reset_rtc: bool | None = None,
    ) -> Tensor:
        """Actions (1, A, D); what has no meaning for actions alone is not sent."""
        if prev_chunk_left_over is not None or reset_rtc is not None:
            raise NotImplementedError("the published service knows no real-time chunking either")
        chunk = self._client.act(
            picture(input_image),
            prompt=only(prompt),
            state=numbers(robot_state),
            horizon=int(action_horizon),
            steps=int(num_inference_steps),
            seed=seed or 0,
            tiled=bool(tiled),
        )
        return torch.from_numpy(chunk.copy())[None]


class ExternalModelAdapter(nn.Module):
    """What the LIBERO-plus evaluation takes for its model."""

    is_external_model = True

    def __init__(
        self,
        endpoint: str = "http://127.0.0.1:8000",
        timeout_s: float = 30.0,
        model_dtype: torch.dtype = torch.bfloat16,
        device: str = "cuda",
        skip_load_engine: bool = True,
        token: str | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.endpoint, self.timeout_s = endpoint.rstrip("/"), float(timeout_s)
        self.torch_dtype, self.device = model_dtype, torch.device(device)
        self._client = PolicyClient(self.endpoint, token=token, timeout=timeout_s)
        self._client.health()

    def to(self, *args: Any, **kwargs: Any) -> "ExternalModelAdapter":
        """Nothing to move: the network is on the service's machine."""
        return self

    def load_checkpoint(self, path: str, optimizer: Any = None) -> None:
        """The service has its weights."""

    def infer_action(self, **asked: Any) -> dict[str, Tensor]:
        """{"action": (A, D)}."""
        proprio = asked.get("proprio")
        chunk = self._client.act(
            picture(asked["input_image"]),
            prompt=only(asked["prompt"]),
            state=None if proprio is None else numbers(proprio),
            horizon=int(asked["action_horizon"]),
            steps=int(asked["num_inference_steps"]),
            seed=asked["seed"] or 0,
            tiled=True,
        )
        return {"action": torch.from_numpy(chunk.copy())}


def picture(image: Any) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of a PIL image, a list of one, or a tensor (1, 3, H, W) in [-1, 1]."""
    while isinstance(image, list):
        if len(image) != 1:
            raise ValueError(f"expected one picture, got {len(image)}")
        image = image[0]
    if isinstance(image, Tensor):
        colours = (image.float() * 0.5 + 0.5).clamp(0, 1)[0].permute(1, 2, 0)
        return np.asarray((colours * 255).cpu().numpy(), np.uint8)
    if hasattr(image, "convert"):
        image = image.convert("RGB")
    return np.asarray(image, np.uint8)


def only(prompt: str | list[str]) -> str:
    """The prompt, or the only one of a list."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) != 1:
        raise ValueError(f"expected one prompt, got {len(prompt)}")
    return prompt[0]


def numbers(state: Any) -> NDArray[np.float32]:
    """A state (S,) or (1, S), tensor or array, as (S,)."""
    array = state.detach().float().cpu().numpy() if isinstance(state, Tensor) else state
    return np.asarray(array, np.float32).reshape(-1)
