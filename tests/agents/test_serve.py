"""The policy service: right answers, refusals in words, and it lives on."""

import http.client
import json
import pickle
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kairos_env.agents.serve import wire
from kairos_env.agents.serve.bridge import ExternalModelAdapter, WAMServiceClient
from kairos_env.agents.serve.client import PolicyClient, ServiceError
from kairos_env.agents.serve.policies import policy_of
from kairos_env.agents.serve.request import Request, RequestError, read_request
from kairos_env.agents.serve.server import PolicyServer
from kairos_env.official import Import, import_official
from kairos_env.untrained import untrained_world
from kairos_env.world_model.published.untrained import write_checkpoint
from kairos_env.worlds import load_world

PICTURE = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)


class Echo:
    """Answers with what it was asked, after a moment, and counts its calls."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.moment = 0.0
        self.gate = threading.Event()
        self.gate.set()

    def describe(self) -> dict[str, Any]:
        return {"world": "echo"}

    def check(self, request: Request) -> None:
        if request.prompt == "forbidden":
            raise RequestError("this prompt is forbidden")

    def act(self, requests: Sequence[Request]) -> NDArray[np.float32]:
        self.gate.wait(20)
        time.sleep(self.moment)
        self.batches.append(len(requests))
        if any(request.prompt == "broken" for request in requests):
            raise FloatingPointError("the policy broke")
        rows = [
            np.full((request.horizon or 2, 3), request.seed + request.frames.sum() % 7, np.float32)
            for request in requests
        ]
        return np.stack(rows)


@pytest.fixture
def policy() -> Echo:
    return Echo()


@pytest.fixture
def server(policy: Echo) -> Iterator[PolicyServer]:
    server = PolicyServer(policy, largest_body=20_000, timeout=10)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    policy.gate.set()
    server.shutdown()
    thread.join()


def post(server: PolicyServer, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("POST", "/infer", body, {"Content-Type": wire.JSON} | named)
    answer = connection.getresponse()
    told = answer.status, json.loads(answer.read())
    connection.close()
    return told


def alive(server: PolicyServer) -> bool:
    return PolicyClient(server.url).act(PICTURE, seed=1).shape == (2, 3)


@pytest.mark.parametrize("kind", [wire.JSON, wire.MSGPACK])
def test_arrays_survive_the_wire(kind: str) -> None:
    if kind == wire.MSGPACK:
        pytest.importorskip("msgpack")
    content = {"a": PICTURE, "b": np.float32([[0.5, -1]]), "c": [1, None, "x", True], "d": 2.5}
    back = wire.load(wire.dump(content, kind), kind)
    np.testing.assert_array_equal(back["a"], PICTURE)
    assert back["b"].dtype == np.float32
    assert back["c"] == content["c"]
    assert back["d"] == 2.5


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b"{", wire.JSON, "no whole"),
        (b"[" * 100_000, wire.JSON, "no whole"),
        (b'{"x": NaN}', wire.JSON, "has no NaN"),
        (b"\xff\xfe", wire.JSON, "no whole"),
        (pickle.dumps(1), "application/octet-stream", "pickle could run code"),
        (b'{"dtype": "object", "shape": [1], "data": ""}', wire.JSON, "dtype is one of"),
        (b'{"dtype": "uint8", "shape": [-1], "data": ""}', wire.JSON, "list of sizes"),
        (b'{"dtype": "uint8", "shape": [9], "data": "AA=="}', wire.JSON, "has 9 bytes, got 1"),
        (b'{"dtype": "uint8", "shape": [1], "data": "?"}', wire.JSON, "no base64"),
        (b'{"dtype": ["uint8"], "shape": [1], "data": ""}', wire.JSON, "dtype|no whole"),
    ],
)
def test_bodies_that_cannot_be_read_are_refused(body: bytes, kind: str, message: str) -> None:
    with pytest.raises(wire.WireError, match=message):
        wire.load(body, kind)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_image": None}, "input_image is missing"),
        ({"input_image": PICTURE.astype(np.float32)}, "must be an array of uint8, got float32"),
        ({"input_image": PICTURE[0]}, "must have shape"),
        ({"input_image": np.zeros((1, 5000, 3), np.uint8)}, "1 to 2048 pixels"),
        ({"robot_state": [float("inf")]}, "robot_state must be finite"),
        ({"robot_state": [["a"]]}, "robot_state must be numbers"),
        ({"robot_action_horizon": 0}, "whole number from 1 to 256"),
        ({"robot_action_horizon": True}, "whole number from 1 to 256"),
        ({"num_inference_steps": 10**6}, "whole number from 1 to 100"),
        ({"seed": -1}, "whole number from 0"),
        ({"prompt": "x" * 5000}, "at most 4000 characters"),
        ({"tiled": 1}, "must be true or false"),
        ({"wam_infer_mode": "video"}, "must be 'action'"),
        ({"reset_rtc": True}, "no field reset_rtc"),
    ],
)
def test_fields_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read_request({"input_image": PICTURE} | change)


def test_what_published_clients_send_is_read() -> None:
    request = read_request(
        {
            "save_path": "/tmp/out.mp4",
            "robot_state": np.zeros((1, 8), np.float32),
            "robot_state_mask": None,
            "robot_action_horizon": 32,
            "wam_infer_mode": "action",
            "input_image": [PICTURE],
            "prompt": ["open the drawer"],
            "negative_prompt": "",
            "seed": None,
            "tiled": True,
            "height": 16,
            "width": 16,
            "num_frames": 1,
            "num_inference_steps": 10,
            "cfg_scale": 8.0,
            "save_fps": 16,
        }
    )
    assert request.frames.shape == (1, 16, 16, 3)
    assert request.state is not None
    assert request.state.shape == (8,)
    assert (request.prompt, request.horizon, request.steps) == ("open the drawer", 32, 10)


def test_clients_that_ask_together_are_answered_together(
    server: PolicyServer, policy: Echo
) -> None:
    policy.gate.clear()

    def ask(number: int) -> float:
        return float(PolicyClient(server.url).act(PICTURE * 0, seed=number)[0, 0])

    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(ask, range(8))
        while server.open < 8:
            time.sleep(0.01)
        time.sleep(0.1)  # from its connection to the queue
        policy.gate.set()
        assert list(answers) == [float(n) for n in range(8)]
    assert sum(policy.batches) == 8
    assert len(policy.batches) < 5  # the first was under way when the others came


def test_broken_requests_change_nothing(server: PolicyServer) -> None:
    pickled = {"Content_Type": "application/octet-stream"}
    assert post(server, pickle.dumps({"seed": 0}), **pickled)[0] == 415
    assert post(server, b'{"input_image": ')[0] == 400
    assert post(server, b"{}") == (
        400,
        {"detail": "input_image is missing: what the robot sees, uint8 (height, width, 3)"},
    )
    status, told = post(server, b"0" * 50_000)
    assert (status, "at most 20000 bytes" in told["detail"]) == (413, True)
    raw = socket.create_connection(("127.0.0.1", server.port))
    raw.sendall(b"POST /infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert b" 411 " in raw.recv(100)
    raw.close()
    gone = socket.create_connection(("127.0.0.1", server.port))
    gone.sendall(b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")
    gone.close()  # in the middle of its request
    assert alive(server)


def test_refusals_and_faults_of_the_policy_reach_the_client(server: PolicyServer) -> None:
    client = PolicyClient(server.url)
    with pytest.raises(ServiceError, match="400: this prompt is forbidden"):
        client.act(PICTURE, prompt="forbidden")
    with pytest.raises(ServiceError, match="500: FloatingPointError: the policy broke"):
        client.act(PICTURE, prompt="broken")
    assert alive(server)


def test_a_token_keeps_others_out(policy: Echo) -> None:
    server = PolicyServer(policy, token="secret")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises(ServiceError, match="401"):
            PolicyClient(server.url).act(PICTURE)
        with pytest.raises(ServiceError, match="401"):
            PolicyClient(server.url, token="guess").act(PICTURE)
        assert PolicyClient(server.url, token="secret").act(PICTURE).shape == (2, 3)
        assert PolicyClient(server.url).health()["status"] == "ok"
    finally:
        server.shutdown()
        thread.join()


def test_a_closing_service_answers_what_it_was_asked(policy: Echo) -> None:
    server = PolicyServer(policy)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    policy.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(PolicyClient(server.url).act, PICTURE, seed=n) for n in range(4)]
        while server.open < 4:
            time.sleep(0.01)
        server.shutdown()
        policy.gate.set()
        assert all(answer.result().shape == (2, 3) for answer in answers)
    thread.join()
    with pytest.raises(ConnectionError, match="no policy service"):
        PolicyClient(server.url, retries=0).health()


def test_a_client_asks_again_until_the_service_is_there(policy: Echo) -> None:
    probe = socket.create_server(("127.0.0.1", 0))
    port = probe.getsockname()[1]
    probe.close()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(PolicyClient(f"http://127.0.0.1:{port}", pause=0.05).act, PICTURE)
        time.sleep(0.1)
        server = PolicyServer(policy, port=port)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        assert answer.result().shape == (2, 3)
    server.shutdown()
    thread.join()


def test_too_many_requests_are_told_to_come_again(server: PolicyServer, policy: Echo) -> None:
    server.batcher._longest = 1
    policy.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        first = []
        for n in range(2):
            first.append(pool.submit(PolicyClient(server.url).act, PICTURE, seed=n))
            while server.open < n + 1 or server.batcher.load()["waiting"] != n:
                time.sleep(0.05)
        with pytest.raises(ServiceError, match=r"503.*waiting already"):
            PolicyClient(server.url, retries=0).act(PICTURE)
        policy.gate.set()
        assert all(answer.result().shape == (2, 3) for answer in first)


def test_the_bridge_speaks_as_the_published_clients_do(server: PolicyServer) -> None:
    two_arms = WAMServiceClient(server.url)
    two_arms.load_engine()
    chunk = two_arms.infer_action(
        input_image=[[PICTURE]],
        robot_state=torch.zeros(1, 14),
        action_horizon=5,
        prompt="lift the pot",
        seed=3,
    )
    assert chunk.shape == (1, 5, 3)
    assert chunk.dtype == torch.float32
    one_arm = ExternalModelAdapter(endpoint=server.url).to("cuda").eval()
    told = one_arm.infer_action(
        prompt="open the drawer",
        negative_prompt="",
        input_image=torch.zeros(1, 3, 16, 16),
        action_horizon=4,
        num_inference_steps=10,
        proprio=torch.zeros(1, 8),
        seed=50,
    )
    assert told["action"].shape == (4, 3)


def test_our_own_worlds_act_from_histories() -> None:
    world = untrained_world()
    policy = policy_of(world)
    frames = world.starts.frames[:2]
    requests = [
        read_request({"input_image": f, "seed": 7, "num_inference_steps": 2}) for f in frames
    ]
    for request in requests:
        policy.check(request)
    chunks = policy.act(requests)
    assert chunks.shape == (2, 4, 2)
    assert np.abs(chunks).max() <= 1.0
    np.testing.assert_allclose(policy.act(requests[:1]), chunks[:1], atol=1e-5)
    with pytest.raises(RequestError, match="frames of 64x64"):
        policy.check(read_request({"input_image": PICTURE}))
    with pytest.raises(RequestError, match="4 actions at a time"):
        policy.check(read_request({"input_image": frames[0], "robot_action_horizon": 9}))


def test_imported_networks_act_from_a_picture_and_a_state(tmp_path: Any) -> None:
    pictures = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    checkpoint = write_checkpoint(tmp_path / "ck", pictures)
    options = Import(folder=checkpoint, out=tmp_path / "world", frame_size=32, clip_frames=4)
    policy = policy_of(load_world(import_official(options)))
    told = {
        "input_image": PICTURE.repeat(2, 0),
        "robot_state": np.zeros(8),
        "robot_action_horizon": 6,
        "num_inference_steps": 2,
    }
    requests = [read_request(told | {"seed": seed}) for seed in (1, 2)]
    chunks = policy.act(requests)
    assert chunks.shape == (2, 6, 7)
    np.testing.assert_allclose(policy.act(requests[1:]), chunks[1:], atol=1e-4)
    with pytest.raises(RequestError, match="robot_state must be 8 numbers, got 3"):
        policy.check(read_request(told | {"robot_state": np.zeros(3)}))
    with pytest.raises(RequestError, match="no text encoder"):
        policy.check(read_request(told | {"prompt": "lift"}))
