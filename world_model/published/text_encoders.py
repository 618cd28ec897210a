"""Text features of the published networks: Qwen2.5-VL or Qwen3.5, through transformers.

A prompt is put into a chat: a system message that asks for a description of a video, then the
user's picture and text. The features are the last hidden states behind the first 97 tokens, which
are the system message; so with a picture the network reads the picture's features too, in front of
the text's.

Needs the extra ``vlm``. Only a tokenizer and an image processor are used: the whole processor of
transformers would ask for torchvision, for videos that nobody passes.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# The networks were trained behind exactly these words; another wording gives other features.
SYSTEM_PROMPT = (
    "Describe the video by detailing the following aspects: "
    "1. The main content and theme of the video. "
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects. "
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the "
    "objects. "
    "4. background environment, light, style and atmosphere. "
    "5. camera angles, movements, and transitions used in the video:"
)
ROBOT_PROMPT = (
    "A video recorded from a robot's point of view executing the following instruction: {task}"
)
KINDS = ("qwen2_5_vl", "qwen3_5")


@dataclass(frozen=True, kw_only=True)
class PromptRules:
    """How a prompt becomes features; the defaults are the published ones.

    Attributes:
        system_prompt: the system message.
        skip: tokens of the system message that are dropped from the features.
        max_tokens: length at which a prompt is cut off, system message and picture included.
        max_pixels: pictures are scaled down to this many.
    """

    system_prompt: str = SYSTEM_PROMPT
    skip: int = 97
    max_tokens: int = 1024
    max_pixels: int = 448 * 448


class QwenTextEncoder:
    """Prompts, with or without a picture each, to features for cross-attention."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        image_processor: Any = None,
        rules: PromptRules | None = None,
    ) -> None:
        kind = model.config.model_type
        if kind not in KINDS:
            raise ValueError(f"expected a model of type {' or '.join(KINDS)}, got {kind!r}")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.rules = rules or PromptRules()

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        rules: PromptRules | None = None,
    ) -> "QwenTextEncoder":
        """Load model, tokenizer and image processor from a folder; no network, no pickle."""
        try:
            import transformers
        except ImportError as error:
            raise ImportError(
                'the text encoders of published models need: pip install "kairos-env[vlm]"'
            ) from error
        if not os.path.isdir(folder):
            raise FileNotFoundError(
                f"no folder {os.fspath(folder)!r}; download the text encoder first"
            )
        model = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True
        )
        return cls(
            model.to(device),
            transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True),
            image_processor=transformers.AutoImageProcessor.from_pretrained(
                folder, local_files_only=True
            ),
            rules=rules,
        )

    @torch.no_grad()
    def encode(
        self, texts: Sequence[str], images: Sequence[Tensor | None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode prompts.

        Args:
            texts: B prompts; an empty one is a prompt too.
            images: for each prompt (H, W, 3) uint8 or ``None``; ``None`` for no pictures at all.

        Returns:
            Features (B, S, D), zero behind the end of a shorter prompt, and the mask (B, S), True
            where there is a token. S is that of the longest prompt.
        """
        inputs = self.prepare(texts, images)
        hidden = self.model.model(**inputs, use_cache=False).last_hidden_state
        mask = inputs["attention_mask"].bool()[:, self.rules.skip :]
        if not mask.any(1).all():
            raise ValueError(
                f"expected more than the {self.rules.skip} tokens of the system message, got "
                f"{inputs['attention_mask'].sum(1).tolist()}; is this the right tokenizer?"
            )
        return hidden[:, self.rules.skip :] * mask[..., None], mask

    def prepare(
        self, texts: Sequence[str], images: Sequence[Tensor | None] | None = None
    ) -> dict[str, Tensor]:
        """Build the model's inputs for prompts, padded on the right."""
        if isinstance(texts, str):
            raise TypeError(f"expected a sequence of prompts, got one; pass [{texts!r}]")
        images = [None] * len(texts) if images is None else images
        if len(images) != len(texts):
            raise ValueError(f"expected {len(texts)} pictures or None, got {len(images)}")
        pictures = [self._picture(image) for image in images if image is not None]
        token_id = self.model.config.image_token_id
        chats = self._chats(texts, images, pictures, self.tokenizer.convert_ids_to_tokens(token_id))
        inputs = self.tokenizer(
            chats,
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=self.rules.max_tokens,
            return_tensors="pt",
        )
        made = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        if pictures:
            made |= {key: torch.cat([picture[key] for picture in pictures]) for key in pictures[0]}
            made["mm_token_type_ids"] = (made["input_ids"] == token_id).int()
            self._check_length(made)
        return {name: value.to(self.model.device) for name, value in made.items()}

    def _chats(
        self,
        texts: Sequence[str],
        images: Sequence[Tensor | None],
        pictures: list[dict[str, Tensor]],
        image_token: str,
    ) -> list[str]:
        """Chats as text, the image token repeated once for each place of the picture."""
        remaining, chats = iter(pictures), []
        for text, image in zip(texts, images, strict=True):
            content = [{"type": "text", "text": text}]
            if image is not None:
                content.insert(0, {"type": "image"})
            messages = [
                {"role": "system", "content": self.rules.system_prompt},
                {"role": "user", "content": content},
            ]
            chat = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
            if image is not None:
                places = self._places(next(remaining))
                # once: the first image token is the picture's, whatever the prompt says
                chat = chat.replace(image_token, image_token * places, 1)
            chats.append(chat)
        return chats

    def _picture(self, image: Tensor) -> dict[str, Tensor]:
        if self.image_processor is None:
            raise ValueError("pictures need an image processor; this encoder was made without one")
        if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[-1] != 3:
            raise ValueError(
                f"expected pictures (H, W, 3) uint8, got {tuple(image.shape)} {image.dtype}"
            )
        smallest = self.image_processor.size["shortest_edge"]
        size = {"shortest_edge": smallest, "longest_edge": self.rules.max_pixels}
        made = self.image_processor(
            images=[image.cpu().numpy()],
            size=size,
            input_data_format="channels_last",
            return_tensors="pt",
        )
        return {
            "pixel_values": made["pixel_values"].to(self.model.dtype),
            "image_grid_thw": made["image_grid_thw"],
        }

    def _places(self, picture: dict[str, Tensor]) -> int:
        """Tokens that stand for one picture."""
        merged: int = self.image_processor.merge_size**2
        return int(picture["image_grid_thw"].prod()) // merged

    def _check_length(self, inputs: dict[str, Tensor]) -> None:
        expected = int(inputs["image_grid_thw"].prod(1).sum()) // self.image_processor.merge_size**2
        found = int(inputs["mm_token_type_ids"].sum())
        if found != expected:
            raise ValueError(
                f"expected {expected} image tokens, got {found}: prompts are cut off at "
                f"{self.rules.max_tokens} tokens, or name the image token themselves"
            )
