"""The eyes of the fidelity report: objects in pictures, by colour."""

import numpy as np
import pytest
from made_truth import AGENT, BALL, GOAL, SIZE, picture

from kairos_env.benchmarks.fidelity.objects import ObjectFinder


def finder(objects=(AGENT, GOAL), **more):
    sample = picture([(GOAL, (0.4, 0.4)), (AGENT, (-0.4, -0.4))], **more)
    return ObjectFinder(objects, sample[None])


def test_a_disc_is_placed_well_below_a_pixel_wherever_it_stands():
    places = np.random.default_rng(0).uniform(-0.7, 0.7, (40, 2))
    frames = np.stack([picture([(AGENT, place)]) for place in places])
    found = finder()(frames)
    error = np.linalg.norm(found.place[:, 0] - AGENT.pixel(places, SIZE), axis=1)
    assert error.max() < 0.15
    assert np.abs(found.area[:, 0] / AGENT.area_px(SIZE) - 1).max() < 0.2


def test_what_is_not_there_has_no_place_and_no_area():
    found = finder()(np.stack([picture([(AGENT, (0, 0))]), picture([(GOAL, (0, 0))])]))
    assert found.area[0, 1] == found.area[1, 0] == 0
    assert np.isnan(found.place[0, 1]).all()
    assert np.isnan(found.place[1, 0]).all()


def test_a_covered_object_loses_the_area_that_is_covered():
    apart = picture([(GOAL, (0, 0)), (AGENT, (0.7, 0.7))])
    on_top = picture([(GOAL, (0, 0)), (AGENT, (0, 0))])
    area = finder()(np.stack([apart, on_top])).area[:, 1]
    assert area[1] < area[0] - 0.8 * AGENT.area_px(SIZE)


def test_the_edges_of_other_things_are_taken_for_no_object():
    dark = picture([(GOAL, (0.5, 0.5))], roof=(-0.4, 0.3))  # mixtures of floor, roof and goal
    eyes = ObjectFinder((AGENT, GOAL, BALL), dark[None])
    assert eyes(dark[None]).area[0, [0, 2]].tolist() == [0, 0]


def test_a_faded_object_counts_while_more_than_half_of_its_colour_is_left():
    clear = picture([(AGENT, (0, 0))]).astype(np.float32)
    empty = picture([]).astype(np.float32)
    frames = np.stack([clear * w + empty * (1 - w) for w in (1.0, 0.7, 0.3)]).astype(np.uint8)
    found = finder()(frames)
    assert found.area[1, 0] > 0.5 * found.area[0, 0]
    assert found.area[2, 0] == 0
    np.testing.assert_allclose(found.place[1, 0], found.place[0, 0], atol=0.2)


@pytest.mark.render
@pytest.mark.parametrize("name", ["KairosReach-v0", "KairosPush-v0", "KairosOcclude-v0"])
def test_in_the_scenes_it_sees_what_the_simulator_says(name):
    from kairos_env.agents.policies import PolicySpec, make_policy
    from kairos_env.real import make_real

    env = make_real(name, horizon=15)
    policy = make_policy(PolicySpec(name="smooth"), env)
    frames, states = [], []
    for seed in range(3):
        frame, info = env.reset(seed=seed)
        policy.begin(env, np.random.default_rng(seed))
        over = False
        while not over:
            frames.append(frame)
            states.append(info["state"])
            step = policy.step(env, frame)
            frame, info, over = step.frame, step.info, step.terminated or step.truncated
    objects = env.low_level.unwrapped.objects
    env.close()
    eyes = ObjectFinder(objects, np.stack(frames[:1]))
    found = eyes(np.stack(frames))
    error = np.linalg.norm(found.place - eyes.places_in_state(np.stack(states)), axis=-1)
    whole = found.area > 0.78 * eyes.full_areas()
    assert whole.sum(0).min() >= 10
    assert error[whole].mean() < 0.15
    assert error[whole].max() < 1.2  # a goal that is a little covered
