"""Promises of the published text encoders, on tiny random models built offline."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from kairos_env.world_model.published.text_encoders import PromptRules, QwenTextEncoder

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason='needs the extra "vlm"'
)
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
# Does what the templates of the real models do with our messages.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% endif %}"
)
# One token a byte, one a special sign: the system message in its frame has 19.
RULES = PromptRules(system_prompt="Describe.", skip=19, max_tokens=160, max_pixels=56 * 84)
PICTURE = torch.randint(
    0, 256, (60, 80, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)


def tiny_tokenizer() -> Any:
    """A tokenizer of single bytes and the special signs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    signs = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={sign: i for i, sign in enumerate(signs)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        extra_special_tokens=SPECIAL[1:],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_model(kind: str, tokenizer: Any) -> Any:
    """A random model of one of the two kinds."""
    import transformers

    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(SPECIAL), strict=True))
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": ids["<|endoftext|>"],
    }
    tokens = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "qwen2_5_vl":
            rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
            vision = {
                "depth": 2,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_heads": 2,
                "out_hidden_size": 32,
                "fullatt_block_indexes": [1],
            }
            config = transformers.Qwen2_5_VLConfig(
                text_config={**text, "rope_parameters": rope}, vision_config=vision, **tokens
            )
            return transformers.Qwen2_5_VLForConditionalGeneration(config)
        linear = {
            "head_dim": 16,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "layer_types": ["linear_attention", "full_attention"],
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [1, 1, 2],
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            },
        }
        vision = {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 14,
            "num_position_embeddings": 16,
        }
        config = transformers.Qwen3_5Config(
            text_config={**text, **linear}, vision_config=vision, **tokens
        )
        return transformers.Qwen3_5ForConditionalGeneration(config)


def tiny_image_processor() -> Any:
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as module

    return module.Qwen2VLImageProcessorPil(min_pixels=28 * 28)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_5"])
def encoder(request: pytest.FixtureRequest) -> QwenTextEncoder:
    tokenizer = tiny_tokenizer()
    return QwenTextEncoder(
        tiny_model(request.param, tokenizer),
        tokenizer,
        image_processor=tiny_image_processor(),
        rules=RULES,
    )


@needs_transformers
def test_features_are_the_last_hidden_states_behind_the_system_message(
    encoder: QwenTextEncoder,
) -> None:
    features, mask = encoder.encode(["lift the cup"])
    chat = "<|im_start|>system\nDescribe.<|im_end|>\n<|im_start|>user\nlift the cup<|im_end|>\n"
    inputs = encoder.tokenizer(chat + "<|im_start|>assistant\n", return_tensors="pt")
    with torch.no_grad():
        whole = encoder.model(**inputs, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(features, whole[:, RULES.skip :], atol=1e-5, rtol=1e-5)
    assert mask.all()
    seen = encoder.tokenizer.decode(inputs["input_ids"][0, RULES.skip :])
    assert seen == "<|im_start|>user\nlift the cup<|im_end|>\n<|im_start|>assistant\n"


@needs_transformers
def test_a_prompt_is_encoded_the_same_in_every_batch(encoder: QwenTextEncoder) -> None:
    texts = ["lift the cup", "", "open the drawer and put the block into it"]
    features, mask = encoder.encode(texts, [PICTURE, None, PICTURE[:, :50]])
    for row, (text, image) in enumerate(zip(texts, [PICTURE, None, PICTURE[:, :50]], strict=True)):
        alone, _ = encoder.encode([text], [image])
        assert mask[row].sum() == alone.shape[1]
        torch.testing.assert_close(features[row, mask[row]], alone[0], atol=1e-5, rtol=1e-5)
        assert (features[row, ~mask[row]] == 0).all()


@needs_transformers
def test_a_picture_adds_a_token_for_each_of_its_places_and_is_seen(
    encoder: QwenTextEncoder,
) -> None:
    without, _ = encoder.encode(["lift the cup"])
    seen, _ = encoder.encode(["lift the cup"], [PICTURE])
    other, _ = encoder.encode(["lift the cup"], [255 - PICTURE])
    # 60x80 is scaled to 56x84, cut into places of 28x28; two signs stand around the picture
    assert seen.shape[1] == without.shape[1] + 2 * 3 + 2
    assert not torch.allclose(seen[:, -5:], other[:, -5:], atol=1e-4)


@needs_transformers
def test_a_big_picture_is_scaled_down(encoder: QwenTextEncoder) -> None:
    inputs = encoder.prepare(["x"], [PICTURE.repeat(5, 5, 1)])
    assert int(inputs["image_grid_thw"].prod()) * 14 * 14 <= RULES.max_pixels


@needs_transformers
def test_a_long_prompt_is_cut_off(encoder: QwenTextEncoder) -> None:
    features, _ = encoder.encode(["x" * 500])
    assert features.shape[1] == RULES.max_tokens - RULES.skip


@needs_transformers
def test_it_loads_from_a_folder_without_network(encoder: QwenTextEncoder, tmp_path: Path) -> None:
    for part in (encoder.model, encoder.tokenizer, encoder.image_processor):
        part.save_pretrained(tmp_path)
    loaded = QwenTextEncoder.load(tmp_path, dtype=torch.float32, rules=RULES)
    for image in (None, PICTURE):
        expected, _ = encoder.encode(["lift the cup"], [image])
        torch.testing.assert_close(loaded.encode(["lift the cup"], [image])[0], expected)


@needs_transformers
def test_what_does_not_fit_is_refused(encoder: QwenTextEncoder) -> None:
    with pytest.raises(TypeError, match="sequence of prompts"):
        encoder.encode("one prompt")
    with pytest.raises(ValueError, match="1 pictures or None, got 2"):
        encoder.encode(["x"], [None, None])
    with pytest.raises(ValueError, match="uint8"):
        encoder.encode(["x"], [PICTURE.float()])
    with pytest.raises(ValueError, match="image tokens"):
        encoder.encode(["<|image_pad|>"], [PICTURE])
    long = PromptRules(system_prompt="Describe.", skip=97)
    with pytest.raises(ValueError, match="right tokenizer"):
        QwenTextEncoder(encoder.model, encoder.tokenizer, rules=long).encode(["x"])
    with pytest.raises(ValueError, match="without one"):
        QwenTextEncoder(encoder.model, encoder.tokenizer, rules=RULES).encode(["x"], [PICTURE])


def test_a_missing_folder_or_extra_is_named(tmp_path: Path) -> None:
    if importlib.util.find_spec("transformers") is None:
        with pytest.raises(ImportError, match=r"kairos-env\[vlm\]"):
            QwenTextEncoder.load(tmp_path)
    else:
        with pytest.raises(FileNotFoundError, match="download the text encoder"):
            QwenTextEncoder.load(tmp_path / "nothing")


def test_another_kind_of_model_is_refused() -> None:
    class Config:
        model_type = "bert"

    class Model:
        config = Config()

    with pytest.raises(ValueError, match="qwen2_5_vl"):
        QwenTextEncoder(Model(), None)
