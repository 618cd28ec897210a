"""One sampler behind all that a published network makes: videos, actions, both."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from kairos_env.world_model.normalizers import Normalizer
from kairos_env.world_model.published.generate import Asked, Made, Pipeline, Task
from kairos_env.world_model.published.mixture import PublishedMixture
from kairos_env.world_model.published.untrained import TINY, TINY_AUTOENCODER
from kairos_env.world_model.published.wan_vae import WanVae

PICTURES = torch.randint(
    0, 256, (2, 32, 48, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)
TASK = Task(height=32, width=48, frames=5, horizon=6, steps=3, guidance=1.0)


class Words:
    """An encoder whose features are drawn from the prompt and from whether there is a picture."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[str], bool]] = []

    def encode(
        self, texts: Sequence[str], images: Sequence[Tensor | None] | None = None
    ) -> tuple[Tensor, Tensor]:
        self.seen.append((list(texts), images is not None))
        rows = [
            torch.randn(
                4, 24, generator=torch.Generator().manual_seed(len(text) + (images is not None))
            )
            for text in texts
        ]
        return torch.stack(rows), torch.ones(len(texts), 4, dtype=torch.bool)


@pytest.fixture(scope="module")
def parts() -> tuple[PublishedMixture, WanVae]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = PublishedMixture(TINY).requires_grad_(False)
        return network, WanVae(TINY_AUTOENCODER).requires_grad_(False)


def asked(B: int = 1, *, pictures: bool = True, seeds: Sequence[int] = (5, 6)) -> Asked:
    return Asked(
        prompts=["push the block", "lift"][:B],
        seeds=seeds[:B],
        pictures=PICTURES[:B] if pictures else None,
    )


def pipeline(parts: tuple[PublishedMixture, WanVae]) -> Pipeline:
    return Pipeline(*parts, text=Words())


def frames_of(made: Made) -> Tensor:
    assert made.frames is not None
    return made.frames


def actions_of(made: Made) -> Tensor:
    assert made.actions is not None
    return made.actions


def test_a_video_of_a_text_or_of_a_picture_or_of_both(
    parts: tuple[PublishedMixture, WanVae],
) -> None:
    make = pipeline(parts)
    text = frames_of(make(TASK, asked(pictures=False)))
    both = frames_of(make(TASK, asked()))
    picture = frames_of(make(TASK, dataclasses.replace(asked(), prompts=[""])))
    assert text.shape == both.shape == picture.shape == (1, 5, 32, 48, 3)
    assert text.dtype == torch.uint8
    assert not torch.equal(text, both)
    assert not torch.equal(both, picture)


def test_guidance_and_the_picture_reach_the_right_branch(
    parts: tuple[PublishedMixture, WanVae],
) -> None:
    make = pipeline(parts)
    make(dataclasses.replace(TASK, guidance=4.0), asked())
    assert isinstance(make.text, Words)
    # the negative prompt never sees the picture
    assert make.text.seen == [(["push the block"], True), ([""], False)]


def test_actions_alone_are_those_of_the_joint_pass(
    parts: tuple[PublishedMixture, WanVae],
) -> None:
    make = pipeline(parts)
    joint = make(dataclasses.replace(TASK, mode="joint"), asked())
    alone = make(dataclasses.replace(TASK, mode="action"), asked())
    assert alone.frames is None
    torch.testing.assert_close(actions_of(joint), actions_of(alone), atol=1e-4, rtol=1e-4)


def test_an_item_does_not_depend_on_its_batch(parts: tuple[PublishedMixture, WanVae]) -> None:
    make, task = pipeline(parts), dataclasses.replace(TASK, mode="action")
    together = actions_of(make(task, asked(2)))
    alone = actions_of(make(task, asked(1)))
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-4)
    other = actions_of(make(task, asked(1, seeds=(9,))))
    assert not torch.allclose(other, alone, atol=1e-3)


def test_actions_come_in_the_robots_own_units(parts: tuple[PublishedMixture, WanVae]) -> None:
    scaled = Normalizer.from_range(torch.full((7,), 10.0), torch.full((7,), 30.0))
    task = dataclasses.replace(TASK, mode="action")
    raw = actions_of(pipeline(parts)(task, asked()))
    units = actions_of(Pipeline(*parts, text=Words(), actions=scaled)(task, asked()))
    torch.testing.assert_close(units, 20 + 10 * raw)


def test_few_steps_and_skipped_blocks_are_options_of_the_same_sampler(
    parts: tuple[PublishedMixture, WanVae],
) -> None:
    make = pipeline(parts)
    plain = frames_of(make(TASK, asked()))
    few = frames_of(make(dataclasses.replace(TASK, few_step=True), asked()))
    skipped = frames_of(make(dataclasses.replace(TASK, steps=6, teacache=1e9), asked()))
    assert plain.shape == few.shape == skipped.shape
    assert not torch.equal(plain, few)


def test_a_picture_of_another_size_is_scaled(parts: tuple[PublishedMixture, WanVae]) -> None:
    task = dataclasses.replace(TASK, height=40, width=30)
    assert frames_of(pipeline(parts)(task, asked())).shape == (1, 5, 48, 32, 3)


def test_what_a_network_cannot_do_is_said(parts: tuple[PublishedMixture, WanVae]) -> None:
    make = pipeline(parts)
    act = dataclasses.replace(TASK, mode="action")
    with pytest.raises(ValueError, match="needs a picture"):
        make(act, asked(pictures=False))
    with pytest.raises(ValueError, match="every prompt needs a seed"):
        make(act, asked(seeds=()))
    with pytest.raises(ValueError, match=r"expected states \(1, 8\)"):
        make(act, dataclasses.replace(asked(), states=torch.zeros(1, 3)))
    with pytest.raises(ValueError, match="no text encoder"):
        Pipeline(*parts)(act, asked())
