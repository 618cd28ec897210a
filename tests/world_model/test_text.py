"""Promises of the offline text encoder."""

import pytest
import torch

from kairos_env.world_model.text import TextConfig, TextEncoder, hash_grams, split_words

SMALL = TextConfig(dim=16, tokens=8, buckets=256, heads=2)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TextEncoder(SMALL)


def test_features_have_one_shape_whatever_the_text(encoder: TextEncoder) -> None:
    features, mask = encoder.encode(["push the block", "", "a " * 50])
    assert features.shape == (3, 8, 16)
    assert mask.sum(1).tolist() == [4, 1, 8]
    assert (features[~mask] == 0).all()
    assert features.isfinite().all()


def test_a_text_is_encoded_the_same_in_every_batch(encoder: TextEncoder) -> None:
    alone, _ = encoder.encode(["push the block"])
    batch, _ = encoder.encode(["", "push the block", "open the red drawer, please"])
    torch.testing.assert_close(batch[1], alone[0], atol=1e-6, rtol=1e-6)


def test_order_matters_and_case_does_not(encoder: TextEncoder) -> None:
    one, other, loud = (
        encoder.encode([text])[0] for text in ("red on blue", "blue on red", "RED on  Blue")
    )
    assert not torch.allclose(one, other, atol=1e-3)
    assert torch.equal(one, loud)


def test_a_misspelt_word_shares_most_of_its_vectors() -> None:
    right, wrong, other = (set(hash_grams(w, 1 << 30)) for w in ("drawer", "drawers", "microwave"))
    assert len(right & wrong) > len(right) / 2
    assert len(right & other) == 0


def test_words_of_any_script_are_read(encoder: TextEncoder) -> None:
    assert split_words("Öffne, die_Tür!") == ["öffne", ",", "die_tür", "!"]
    assert split_words("打开抽屉") == ["打开抽屉"]
    assert [len(w) for w in split_words("x" * 40)] == [16, 16, 8]
    _, mask = encoder.encode(["打开抽屉"])
    assert mask.sum() == 2


def test_buckets_never_change() -> None:
    # trained weights belong to them: a world of today must read its texts in every later version
    assert hash_grams("block", 4096)[:5] == (2478, 432, 3646, 3292, 1467)
    assert len(hash_grams("block", 4096)) == 1 + 5 + 4 + 3


def test_it_learns_to_tell_instructions_apart() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder, read = TextEncoder(SMALL), torch.nn.Linear(16, 4)
    texts = [f"push the {colour} block" for colour in ("red", "blue", "green", "white")]
    tokens = encoder.tokenize(texts)
    optimizer = torch.optim.Adam([*encoder.parameters(), *read.parameters()], lr=1e-2)
    for _ in range(60):
        features, mask = encoder(tokens)
        logits = read(features.sum(1) / mask.sum(1, keepdim=True))
        loss = torch.nn.functional.cross_entropy(logits, torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    assert (encoder.grams.weight[SMALL.buckets] == 0).all()  # the padding stays nothing


def test_what_does_not_fit_is_refused(encoder: TextEncoder) -> None:
    with pytest.raises(TypeError, match="sequence of texts"):
        encoder.tokenize("one text")
    with pytest.raises(ValueError, match="multiple of heads"):
        TextConfig(dim=10, heads=4)
    with pytest.raises(ValueError, match="tokens >= 2"):
        TextConfig(tokens=1)
