"""Learning from dreams: in one piece, or from where the last update stopped."""

import pytest
import torch
from tiny_worlds import make_clips, make_world


@pytest.mark.parametrize("frames_per_chunk", [1, 2])
def test_a_dream_that_is_learned_from_in_parts_is_the_dream_learned_from_at_once(
    frames_per_chunk: int,
) -> None:
    world = make_world(frames_per_chunk=frames_per_chunk)
    clips = make_clips(3, 10, frames_per_chunk=frames_per_chunk)
    clips["latents"] = world.tokenizer.encode(clips.pop("frames"))
    seeds, real, half = torch.arange(3), 2, 4
    with torch.no_grad():
        whole, _, end = world.unrolled_loss(clips, real=real, seeds=seeds)
        first = {name: x[:, : real + half - (x.shape[1] == 9)] for name, x in clips.items()}
        one, _, state = world.unrolled_loss(first, real=real, seeds=seeds)
        second = {name: x[:, real + half - 1 :] for name, x in clips.items()}
        two, _, state = world.unrolled_loss(second, real=1, seeds=seeds, state=state)
    torch.testing.assert_close((one + two) / 2, whole)
    for name, x in state.tensors().items():
        torch.testing.assert_close(x, end.tensors()[name], msg=name)
