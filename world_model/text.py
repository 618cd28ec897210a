"""Text for bundled worlds: a small encoder that needs no vocabulary, no download and no network.

A word is the mean of learnt vectors for its character n-grams, found by a fixed hash. So every word
of every language has a vector, misspelt words are near the right ones, and words with common stems
share what is learnt. A small transformer then lets the words of an instruction see each other.

The first token is the same in every text, so that an empty text is a text too: it is what a dream
without instruction reads, and what training puts in place of the text to learn guidance.

Shapes: B texts, S tokens (fixed, so that dreams with different texts share a batch), G n-grams a
    word, D width.
"""

import re
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LONGEST_WORD = 16  # characters; what is longer is cut into several words
GRAM_LENGTHS = (3, 4, 5)  # bytes


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Sizes of the text encoder.

    Attributes:
        dim: width of the features, ``TransformerConfig.text_dim``.
        tokens: features of every text: the first token and the words that fit behind it.
        buckets: vectors that n-grams are hashed to.
        grams: n-grams of a word that are read; a long word loses its last ones.
        layers: transformer layers.
        heads: attention heads.
    """

    dim: int = 64
    tokens: int = 24
    buckets: int = 4096
    grams: int = 40
    layers: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("dim", "buckets", "grams", "heads")}
        if any(size < 1 for size in sizes.values()) or self.layers < 0:
            raise ValueError(f"expected positive sizes, got {self}")
        if self.tokens < 2:
            raise ValueError(f"expected room for a word: tokens >= 2, got {self.tokens}")
        if self.dim % self.heads:
            raise ValueError(
                f"expected dim to be a multiple of heads, got {self.dim}, {self.heads}"
            )


class TextEncoder(nn.Module):
    """Texts to features that the transformer's cross-attention reads."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.grams = nn.Embedding(config.buckets + 1, config.dim, padding_idx=config.buckets)
        self.start = nn.Parameter(torch.randn(config.dim))
        self.place = nn.Parameter(0.1 * torch.randn(config.tokens, config.dim))
        self.layers = nn.ModuleList(_Layer(config.dim, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode texts; the same as ``forward(tokenize(texts))``.

        Returns:
            Features (B, S, D), zero where there is no word, and the mask (B, S), True where there
            is one.
        """
        features, mask = self(self.tokenize(texts).to(self.start.device))
        return features, mask

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Find the n-grams of each word.

        Returns:
            (B, S - 1, G) int64 on the CPU: hash buckets, ``buckets`` where there is no n-gram.
        """
        if isinstance(texts, str):
            raise TypeError(f"expected a sequence of texts, got one text; pass [{texts!r}]")
        config = self.config
        tokens = torch.full((len(texts), config.tokens - 1, config.grams), config.buckets)
        for row, text in enumerate(texts):
            for place, word in enumerate(split_words(text)[: config.tokens - 1]):
                found = hash_grams(word, config.buckets)[: config.grams]
                tokens[row, place, : len(found)] = torch.tensor(found)
        return tokens

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Encode what ``tokenize`` returned."""
        known = tokens != self.config.buckets  # (B, S - 1, G)
        counts = known.sum(-1, keepdim=True)
        words = self.grams(tokens).sum(-2) / counts.clamp(min=1).sqrt()  # (B, S - 1, D)
        start = self.start.expand(len(tokens), 1, -1)
        x = torch.cat([start, words], dim=1) + self.place
        mask = F.pad(counts[..., 0] > 0, (1, 0), value=True)  # (B, S)
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x) * mask[..., None], mask


class _Layer(nn.Module):
    """Attention among the words, then a feed-forward net, each behind a norm and added."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm_ffn = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, s, d = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(b, s, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, S, D / H)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        x = x + self.out(o.transpose(1, 2).reshape(b, s, d))
        inner: Tensor = self.ffn(self.norm_ffn(x))
        return x + inner


def split_words(text: str) -> list[str]:
    """Split a text into words and single signs, without regard to case or width of the letters."""
    text = unicodedata.normalize("NFKC", text).casefold()
    words = re.findall(r"\w+|[^\w\s]", text)
    return [w[i : i + LONGEST_WORD] for w in words for i in range(0, len(w), LONGEST_WORD)]


@lru_cache(maxsize=4096)
def hash_grams(word: str, buckets: int) -> tuple[int, ...]:
    """Hash a word and its n-grams of bytes; the ends of the word are part of it.

    CRC-32 is the same everywhere and for ever, which Python's own hash is not.
    """
    whole = b"<" + word.encode() + b">"
    grams = {whole[i : i + n]: None for n in GRAM_LENGTHS for i in range(len(whole) - n + 1)}
    return tuple(zlib.crc32(gram) % buckets for gram in {whole: None, **grams})
