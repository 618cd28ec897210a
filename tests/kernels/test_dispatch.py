"""The choice of kernels: automatic, told, overridden by a variable, refused with a reason."""

import importlib
from collections.abc import Iterator

import pytest
import torch

from kairos_env.kernels import dispatch
from kairos_env.kernels.gated_delta import op as gated_delta
from kairos_env.kernels.window_attention import window_attention

CASE = {
    "form": "fla",
    "key_size": 8,
    "value_size": 8,
    "dtype": torch.float32,
    "tracing": False,
}


@pytest.fixture(autouse=True)
def no_choices(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    dispatch.forget()
    yield
    dispatch.forget()


def choose(**case: object) -> dispatch.Choice:
    return dispatch.choose("gated_delta", device="cpu", **{**CASE, **case})


def test_every_operation_and_backend_is_known_on_both_sides() -> None:
    homes = {"short_conv": "gated_delta"}
    for operation, backends in dispatch.OPERATIONS.items():
        op = importlib.import_module(f"kairos_env.kernels.{homes.get(operation, operation)}.op")
        assert {backend.name for backend in backends} <= set(op.BACKENDS)
        assert backends[-1].name == "reference"


def test_a_choice_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = choose()
    monkeypatch.setattr(dispatch, "_decide", lambda *_: pytest.fail("decided twice"))
    assert choose() is first


def test_describe_tells_every_operation_with_a_reason() -> None:
    rows = dispatch.describe()
    assert {row[0] for row in rows} == set(dispatch.OPERATIONS)
    assert all(reason for *_, reason in rows)


def test_the_variable_overrides_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    automatic = choose()
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    assert choose().backend == "reference"
    assert choose().reason == "asked for by name"
    monkeypatch.setenv(dispatch.VARIABLE, "gated_delta=torch, window_attention=reference")
    assert choose().backend == "torch"
    assert dispatch.pick("window_attention", device="cpu") == "reference"
    monkeypatch.delenv(dispatch.VARIABLE)
    assert choose() == automatic


def test_an_argument_beats_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "gated_delta=reference")
    assert choose(backend="torch").backend == "torch"


def test_a_name_that_only_some_operations_know_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "cpu")
    assert dispatch.pick("window_attention", device="cpu") == "torch"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("torhc", "no backend 'torhc'; there are .* did you mean 'torch'"),
        ("gated_detla=torch", "no operation 'gated_detla'; .* did you mean 'gated_delta'"),
        ("window_attention=cpu", "no backend 'cpu'; there are reference, torch"),
    ],
)
def test_an_unknown_name_is_refused(
    monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, text)
    with pytest.raises(ValueError, match=f"{dispatch.VARIABLE}={text}: {message}"):
        choose()
    x = torch.zeros(1, 1, 1, 1, 1)
    monkeypatch.delenv(dispatch.VARIABLE)
    with pytest.raises(ValueError, match="window_attention: no backend 'triton'"):
        window_attention(x, x, x, window=1, backend="triton")


def test_what_was_asked_for_by_name_is_never_replaced() -> None:
    with pytest.raises(RuntimeError, match=r"'fla' was asked for .* runs on cuda only"):
        choose(backend="fla")
    with pytest.raises(RuntimeError, match=r"torch\.compile cannot look into it"):
        choose(backend="cpu", tracing=True)


def test_fla_is_for_its_own_form_and_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    from kairos_env.kernels.gated_delta import fla

    monkeypatch.setattr(fla.importlib.util, "find_spec", lambda name: object())
    case = {**CASE, "dtype": torch.bfloat16, "asked": False}
    assert fla.obstacle(**case) is None
    assert "no form 'paper'" in str(fla.obstacle(**{**case, "form": "paper"}))
    assert "key size = value size" in str(fla.obstacle(**{**case, "value_size": 16}))
    assert "too coarse" in str(fla.obstacle(**{**case, "dtype": torch.float32}))
    assert fla.obstacle(**{**case, "dtype": torch.float32, "asked": True}) is None
    assert set(gated_delta.BACKENDS) >= {"fla"}
