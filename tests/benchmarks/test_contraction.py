"""Theorem 2: the factor, the equality and the chain of bounds, on the kernels that dream."""

import json
from pathlib import Path

import pytest
import torch

from kairos_env.benchmarks import cli, contraction
from kairos_env.benchmarks.contraction import (
    FORMS,
    SIZES,
    ContractionBench,
    Tokens,
    chain,
    chain_section,
    draw,
    factor,
    half_life_section,
    kernel_transition,
    memories,
    perturbed,
    transition,
    unit,
)
from kairos_env.untrained import untrained_world


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1.0, 0.4, 1.3])
def test_the_factor_is_the_norm_of_what_the_kernel_does(form, length) -> None:
    a, b, k, _ = (x[:, 0] for x in draw(200, 1, (6, 3), generator()))
    k = length * k
    A = kernel_transition(a, b, k, form, "reference")
    assert torch.allclose(A, transition(a, b, k, form), atol=1e-14)
    norm = torch.linalg.matrix_norm(A, ord=2)
    assert torch.allclose(norm, factor(a, b, k, form), atol=1e-13, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_unit_keys_always_contract_where_the_printed_lemma_never_applies(form) -> None:
    a, b, k, _ = (x[:, 0] for x in draw(1000, 1, (8, 4), generator(1)))
    assert not (k.square().sum(-1) < 1 - a).any()  # the printed condition
    assert (factor(a, b, k, form) < 1).all()
    if form == "fla":
        assert torch.allclose(factor(a, b, k, form), a)


def test_a_thousand_random_settings_without_a_violation() -> None:
    found = chain_section(ContractionBench(tokens=24))
    assert found["settings"] == 1000
    assert found["violations"] == 0
    assert found["linear_formula_off_by"] <= 1e-10


@pytest.mark.parametrize("form", FORMS)
def test_a_wrong_rule_is_found_out(form, monkeypatch) -> None:
    """The check can fail: with the other form's matrix equality and bounds break."""
    other = FORMS[1 - FORMS.index(form)]
    monkeypatch.setattr(contraction, "transition", lambda a, b, k, _: transition(a, b, k, other))
    true = draw(20, 24, (4, 4), generator())
    _, away = chain(true, perturbed(true, generator(1)), form)
    assert away.max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_the_same_tokens_bring_two_memories_together_at_most_by_the_factors(form) -> None:
    tokens = draw(10, 16, (4, 3), generator(2))
    starts = torch.randn(2, 10, 1, 4, 3, dtype=torch.float64, generator=generator(3))
    one, other = (memories(tokens, form, start) for start in starts)
    apart = (one - other).flatten(2).norm(dim=-1)
    shrunk = factor(tokens.a, tokens.b, tokens.k, form).cumprod(1) * apart[:, :1]
    assert (apart[:, 1:] <= shrunk * (1 + 1e-10)).all()


def test_without_forgetting_the_bound_is_reached() -> None:
    """Tightness: keys at right angles, the same error at every token, no decay to speak of."""
    T = 8
    keys = torch.eye(T, dtype=torch.float64)[None]
    ones = torch.ones(1, T, dtype=torch.float64)
    true = Tokens(ones * (1 - 1e-12), ones * 1e-6, keys, torch.zeros(1, T, 2).double())
    read = true._replace(v=true.v + 1)
    bounds, _ = chain(true, read, "fla")
    assert bounds.products == pytest.approx(bounds.recursion.item(), rel=1e-6)
    assert bounds.products / bounds.measured == pytest.approx(T**0.5, rel=1e-6)
    same = true._replace(k=unit(torch.ones_like(keys)))
    bounds, _ = chain(same, same._replace(v=read.v), "fla")
    assert bounds.products / bounds.measured == pytest.approx(1.0, rel=1e-4)


def test_half_lives_of_heads_are_those_that_were_set() -> None:
    """Nothing is written: what a head forgets in a frame is its decay."""
    world = untrained_world()
    layer = next(b.delta for b in world.model.mixture.video.blocks if b.delta is not None)
    with torch.no_grad():
        layer.decay.weight.zero_()
        layer.write.weight.zero_()
        layer.write.register_parameter("bias", torch.nn.Parameter(torch.full((2,), -30.0)))
    found = half_life_section(world, frames=12, dreams=2)
    (rows,) = found["layers"].values()
    assert rows["at_bias"] == pytest.approx([2.0, 1000.0], rel=1e-2)
    assert rows["random_memory"] == pytest.approx(rows["at_bias"], rel=2e-2)
    assert rows["slowest_direction"] == pytest.approx(rows["at_bias"], rel=2e-2)


def test_the_command_writes_every_section(tmp_path: Path) -> None:
    assert cli.main(["contraction", "--quick", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.iterdir()
    results = json.loads(file.read_text())
    assert {"machine", "commit", "command", "factor", "chain", "half_lives"} <= set(results)
    assert [row["form"] for row in results["factor"]["rows"]] == list(FORMS)
    assert results["half_lives"]["layers"]


def test_bad_numbers_and_worlds_are_refused(capsys, tmp_path) -> None:
    with pytest.raises(ValueError, match=f"at least {2 * len(SIZES)}, got 3"):
        ContractionBench(settings=3)
    assert cli.main(["contraction", "--quick", "--world", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err
