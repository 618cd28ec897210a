import base64
import io
import json
import re
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image
from small_worlds import chosen, ending, plain

from kairos_env import cli
from kairos_env.errors import ActionError, OptionError
from kairos_env.play import FORKS, Session
from kairos_env.play_server import COMMANDS, PlayServer, page


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))


@pytest.fixture
def session():
    session = Session(plain(), truth=False)
    yield session
    session.close()


@pytest.fixture
def server():
    server = PlayServer(lambda: Session(plain(), truth=False))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.close()


def ask(server, command, told=None, **headers):
    request = urllib.request.Request(
        server.url + command,
        json.dumps({} if told is None else told).encode(),
        {"Content-Type": "application/json", **headers},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def refusal(server, *args, **kwargs):
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(server, *args, **kwargs)
    with caught.value as error:
        return error.code, json.load(error)["error"]


# ------------------------------------------------------------------------ the session


def test_actions_move_the_dream(session):
    views = {}
    for action in ([0, 0], [1, 0], [0, -1]):
        session.reset(seed=0)
        for _ in range(3):
            view = session.step(action)
        views[tuple(action)] = view["score"]["total"]
        assert view["score"]["steps"] == 3
        assert view["time"] == pytest.approx(0.48)
        assert pixels(view["dream"][-1]).shape == (64, 64, 3)
    assert len(set(views.values())) == 3


def test_choices_are_numbers_of_keys():
    session = Session(chosen(), truth=False)
    assert session.describe()["actions"] == "choices"
    assert session.step(2)["score"]["steps"] == 1
    for action in (3, "x", None):
        with pytest.raises(ActionError):
            session.step(action)


@pytest.mark.parametrize("action", [None, [1], [1, 2, 3], ["a", "b"], [float("nan"), 0], {}])
def test_a_wrong_action_is_refused_and_the_dream_goes_on(session, action):
    with pytest.raises(ActionError):
        session.step(action)
    assert session.step([0, 0])["score"]["steps"] == 1


def test_going_back_continues_from_what_was_kept(session):
    with pytest.raises(OptionError, match="keep"):
        session.go_back()
    session.step([1, 1])
    kept = session.keep()
    after = session.step([0, 1])
    session.step([0, -1])
    view = session.go_back()
    assert view["dream"][-1] == kept["dream"][-1]
    assert view["score"] == kept["score"]
    assert session.step([0, 1]) == after


def test_a_fork_shows_other_futures_until_it_is_pressed_again(session):
    session.step([0, 0])
    assert len(session.fork()["forks"]) == FORKS
    view = session.step([1, 0])
    assert len(view["forks"]) == FORKS
    assert session.fork()["forks"] == []


def test_an_ended_dream_waits_for_a_new_episode():
    session = Session(ending(), truth=False)
    for _ in range(20):
        view = session.step([0, 0])
    assert view["score"]["ended"]
    assert view["score"]["steps"] < 20
    assert not session.reset()["score"]["ended"]


@pytest.mark.render
def test_the_truth_moves_beside_the_dream():
    session = Session(plain())
    first = session.view()
    assert first["truth"] == first["dream"][-1]
    session.keep()
    moved = session.step([1, 1])
    assert moved["truth"] != first["truth"]
    assert moved["true_score"]["steps"] == 1
    assert session.go_back()["truth"] == first["truth"]
    assert session.step([1, 1])["truth"] == moved["truth"]
    session.close()


# ------------------------------------------------------------------------ over HTTP


def test_the_page_is_served_and_needs_nothing_from_elsewhere(server):
    with urllib.request.urlopen(server.url, timeout=30) as answer:
        text = answer.read().decode()
    assert text == page().decode()
    assert not re.search(r"https?://|src=\"(?!data:)|@import", text)
    for command in set(re.findall(r'(?:ask|act)\("(\w+)"', text)):
        assert command in COMMANDS


def test_fifty_steps_can_be_driven(server):
    assert ask(server, "describe")["size"] == 2
    view = ask(server, "reset", {"seed": 3})
    for i in range(50):
        view = ask(server, "step", {"action": [np.sin(i / 5), np.cos(i / 5)]})
    assert view["score"]["steps"] == 50
    assert ask(server, "view") == view
    ask(server, "keep")
    ask(server, "fork")
    assert len(ask(server, "step", {"action": [0, 0]})["forks"]) == FORKS
    assert ask(server, "back")["score"]["steps"] == 50


def test_mistakes_are_answered_and_the_session_lives(server):
    assert refusal(server, "dance")[0] == 404
    assert refusal(server, "step", {"action": [1]})[0] == 400
    assert refusal(server, "step", [1])[0] == 400
    assert refusal(server, "reset", {"seed": -1}) == (
        400,
        "a seed is a whole number from 0 on, got -1",
    )
    assert refusal(server, "step", {"action": [0] * 9000})[0] == 400
    assert ask(server, "step", {"action": [0, 0]})["score"]["steps"] == 1


def test_other_sites_cannot_speak_to_it(server):
    assert refusal(server, "step", {"action": [0, 0]}, Host="evil.example")[0] == 403
    code, _ = refusal(server, "step", {"action": [0, 0]}, **{"Content-Type": "text/plain"})
    assert code == 400
    assert ask(server, "view")["score"]["steps"] == 0
    assert server.url.startswith("http://127.0.0.1:")


def test_a_taken_port_is_told(server, capsys):
    command = ["play", "untrained", "--no-truth", "--no-browser", "--port", str(server.port)]
    assert cli.main(command) == 2
    assert "choose another --port" in " ".join(capsys.readouterr().err.split())
    assert cli.main(["play", "nosuchworld"]) == 2
