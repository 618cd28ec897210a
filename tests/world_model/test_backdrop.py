"""What a dream leaves as it was is shown as it was seen; what it changes, as it is drawn."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_worlds import make_clips, make_world, random_chunks, start
from torch import Tensor

from kairos_env.world_model.backdrop import backdrop_of, before_backdrop
from kairos_env.world_model.state import DreamState
from kairos_env.world_model.world_model import Prediction, WorldModel

SEEN, DRAWN = 200, 100


def shown(frame: Tensor, tolerance: float = 0.1) -> Tensor:
    """One picture (H, W, 3) before a backdrop that was drawn as 100 and seen as 200."""
    seen, drawn = (torch.full_like(frame, value)[None] for value in (SEEN, DRAWN))
    return before_backdrop(frame[None, None], backdrop_of(seen, drawn), tolerance)[0, 0]


def even(colour: int) -> Tensor:
    return torch.full((8, 8, 3), colour, dtype=torch.uint8)


@pytest.mark.parametrize("drawn", [DRAWN - 25, DRAWN, DRAWN + 25])
def test_what_is_drawn_alike_is_shown_as_it_was_seen(drawn: int) -> None:
    assert (shown(even(drawn)) == SEEN).all()


@pytest.mark.parametrize("drawn", [0, DRAWN - 51, DRAWN + 51, 255])
def test_what_is_drawn_otherwise_stays_as_it_is_drawn(drawn: int) -> None:
    assert (shown(even(drawn)) == drawn).all()


def test_between_the_two_it_is_mixed() -> None:
    tolerance = 0.3  # 76.5 of 255; from 84.15 on it is the decoder's alone
    tones = [int(shown(even(DRAWN + more), tolerance)[0, 0, 0]) for more in (76, 80, 85)]
    assert tones[0] == SEEN
    assert DRAWN + 80 < tones[1] < SEEN
    assert tones[2] == DRAWN + 85


def test_one_channel_that_differs_is_enough() -> None:
    frame = even(DRAWN)
    frame[..., 2] = 255
    assert torch.equal(shown(frame), frame)


def test_what_touches_a_changed_pixel_changes_with_it() -> None:
    frame = even(DRAWN)
    frame[4, 4] = 255
    expected = even(SEEN)
    expected[3:6, 3:6] = DRAWN
    expected[4, 4] = 255
    assert torch.equal(shown(frame), expected)


def test_every_pixel_is_as_if_worked_out_by_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    seen, drawn, frame = (
        torch.randint(0, 256, (6, 7, 3), dtype=torch.uint8, generator=generator) for _ in range(3)
    )
    frame = torch.where(torch.rand((6, 7, 1), generator=generator) < 0.9, drawn, frame)
    whole = before_backdrop(frame[None, None], backdrop_of(seen[None], drawn[None]), 0.3)[0, 0]
    off = (frame.int() - drawn.int()).abs()
    for y in range(6):
        for x in range(7):
            most = int(off[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].max())
            share = min(1.0, max(0.0, (1.1 - most / 76.5) / 0.1))
            expected = share * seen[y, x].double() + (1.0 - share) * frame[y, x].double()
            assert (whole[y, x].double() - expected).abs().max() <= 0.5001


# ---------------------------------------------------------------------------------- in a dream


def before(world: WorldModel, backdrop: float) -> WorldModel:
    """The same weights, shown before a backdrop."""
    other = WorldModel(dataclasses.replace(world.config, backdrop=backdrop))
    other.load_state_dict(world.state_dict())
    return other


@pytest.fixture(scope="module")
def still() -> WorldModel:
    """A world in which every change is too small to count."""
    return make_world(stillness=1e3)


def one_step(world: WorldModel, state: DreamState) -> tuple[DreamState, Prediction]:
    return world.step(state, random_chunks(len(state), 1)[0])


def next_picture(world: WorldModel, state: DreamState) -> Tensor:
    frames = one_step(world, state)[1].frames
    assert frames is not None
    return frames


def test_a_dream_that_stands_still_shows_the_last_true_frame_to_the_bit(still: WorldModel) -> None:
    world, clips = before(still, 0.1), make_clips(2, 4)
    last = clips["frames"][:, 2:3]
    assert torch.equal(next_picture(world, start(world, clips)), last)
    assert not torch.equal(next_picture(still, start(still, clips)), last)


def test_only_the_picture_differs() -> None:
    world, clips = make_world(), make_clips(2, 4)
    beside = before(world, 0.1)
    ours, theirs = (start(w, clips) for w in (world, beside))
    for _ in range(2):
        ours, said = one_step(world, ours)
        theirs, told = one_step(beside, theirs)
        for name in ("latents", "reward", "end_probability", "state", "uncertainty"):
            assert torch.equal(getattr(said, name), getattr(told, name)), name
    assert ours.backdrop is None


def test_what_was_observed_last_is_the_backdrop(still: WorldModel) -> None:
    world, clips = before(still, 0.1), make_clips(2, 6)
    state = start(world, clips)
    state = world.observe(state, clips["frames"][:, 3:5], clips["actions"][:, 2:4])
    assert torch.equal(next_picture(world, state), clips["frames"][:, 4:5])


def test_without_the_frame_itself_its_drawing_is_the_backdrop(still: WorldModel) -> None:
    world = before(still, 0.1)
    latents = world.tokenizer.encode(make_clips(2, 3)["frames"])
    state = world.start_latents(latents, seeds=torch.arange(2))
    assert torch.equal(next_picture(world, state), world.tokenizer.decode(latents[:, -1:]))


def test_each_dream_keeps_its_own_backdrop_through_index_and_file(
    still: WorldModel, tmp_path: Path
) -> None:
    world, clips = before(still, 0.1), make_clips(3, 4)
    start(world, clips).index([2, 0]).save(tmp_path / "dreams.safetensors")
    state = DreamState.load(tmp_path / "dreams.safetensors")
    assert torch.equal(next_picture(world, state), clips["frames"][[2, 0], 2:3])


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan")])
def test_what_is_no_difference_of_colours_is_refused(still: WorldModel, tolerance: float) -> None:
    with pytest.raises(ValueError, match=r"backdrop is a difference of colours in \[0, 1\)"):
        dataclasses.replace(still.config, backdrop=tolerance)
