import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from kairos_env.spaces import action_size, chunk_space, decode_actions, encode_actions

LOW, HIGH = np.array([[-2, 0, -1], [2, 10, 3]], np.float32)
ARM = spaces.Box(LOW, HIGH, dtype=np.float32)


def test_a_box_chunk_repeats_the_bounds():
    space = chunk_space(ARM, 4)
    assert space.shape == (4, 3)
    assert (space.high == ARM.high).all()
    assert (space.low == ARM.low).all()
    assert action_size(space) == action_size(ARM) == 3


def test_a_discrete_chunk_is_multi_discrete_with_the_same_values():
    space = chunk_space(spaces.Discrete(3, start=-1), 2)
    assert isinstance(space, spaces.MultiDiscrete)
    assert space.contains(np.array([-1, 1]))
    assert not space.contains(np.array([-1, 2]))


@pytest.mark.parametrize("space", [ARM, chunk_space(ARM, 5)], ids=["low level", "chunk"])
@pytest.mark.parametrize("lead", [(), (2, 7)])
def test_box_actions_survive_the_round_trip(space, lead):
    chunk = np.random.default_rng(0).uniform(ARM.low, ARM.high, (*lead, 5, 3)).astype(np.float32)
    encoded = encode_actions(space, chunk)
    assert encoded.dtype == np.float32
    assert np.abs(encoded).max() <= 1
    decoded = decode_actions(space, encoded)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, chunk, atol=1e-5)


def test_bounds_are_encoded_as_plus_and_minus_one():
    np.testing.assert_array_equal(encode_actions(ARM, ARM.high[None]), [[1, 1, 1]])
    np.testing.assert_array_equal(encode_actions(ARM, ARM.low[None]), [[-1, -1, -1]])


def test_what_is_out_of_bounds_counts_as_the_bound_both_ways():
    np.testing.assert_array_equal(encode_actions(ARM, ARM.high[None] + 5), [[1, 1, 1]])
    np.testing.assert_array_equal(decode_actions(ARM, [[9.0, 9.0, 9.0]]), ARM.high[None])


def test_unbounded_dimensions_pass_unscaled():
    low, high = np.array([[-np.inf, -2], [np.inf, 2]], np.float32)
    space = spaces.Box(low, high, dtype=np.float32)
    chunk = np.array([[7.0, 1.0]], np.float32)
    encoded = encode_actions(space, chunk)
    np.testing.assert_array_equal(encoded, [[7.0, 0.5]])
    np.testing.assert_array_equal(decode_actions(space, encoded), chunk)


@given(st.integers(1, 6), st.integers(-3, 3), st.integers(0, 10_000))
def test_discrete_actions_survive_the_round_trip(count, start, seed):
    space = chunk_space(spaces.Discrete(count, start=start), 4)
    chunk = np.random.default_rng(seed).integers(start, start + count, (3, 4))
    encoded = encode_actions(space, chunk)
    assert encoded.shape == (3, 4, count)
    np.testing.assert_array_equal(encoded.sum(-1), 1)
    np.testing.assert_array_equal(decode_actions(space, encoded), chunk)


@pytest.mark.parametrize(
    ("space", "chunk", "message"),
    [
        (ARM, np.zeros((4, 2)), "expected finite actions"),
        (ARM, np.full((4, 3), np.nan), "expected finite actions"),
        (spaces.Discrete(3), np.array([3]), "whole numbers from 0 to 2"),
        (spaces.Discrete(3), np.array([0.5]), "whole numbers from 0 to 2"),
    ],
)
def test_bad_actions_are_refused_with_what_was_expected(space, chunk, message):
    with pytest.raises(ValueError, match=message):
        encode_actions(space, chunk)


def test_spaces_that_cannot_be_chunked_are_named():
    with pytest.raises(TypeError, match="Box of floats or Discrete"):
        chunk_space(spaces.Text(3), 4)
    with pytest.raises(ValueError, match="chunk=0"):
        chunk_space(ARM, 0)
    with pytest.raises(TypeError, match="a chunk of one of these"):
        encode_actions(spaces.MultiDiscrete([2, 3]), np.array([0, 0]))
