"""Finite differences with frozen patterns, and tangents of lower precision: both approximate."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from gradinv.attacks.search.regularizers import BatchNormMatching, TotalVariation
from gradinv.engine import ExactROperator, PlainDoubleBackward, engine_for, frozen, traced
from gradinv.engine.distances import L1, Cosine, LayerCosine, SquaredL2
from gradinv.engine.rules.op import Op
from gradinv.engine.rules.pointwise import ReLU
from gradinv.models import ConvNet, batch_norm_layers
from tests.engine.networks import (
    guesses,
    network,
    plans,
    relative,
    shake,
    update,
    without_rounding_errors,
)


def victim(mode: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = ConvNet(4, 3, 9, widths=(8, 8, 16))
        shake(model)
    return model.train(mode == "train")


@settings(max_examples=20, phases=[Phase.explicit, Phase.generate])
@given(
    plan=plans,
    distance=st.sampled_from([Cosine(), LayerCosine(), SquaredL2(), L1()]),
    with_terms=st.booleans(),
)
def test_in_float64_it_is_double_backward_to_the_order_of_its_step(plan, distance, with_terms):
    model = network(plan)
    observation = update(model)
    terms = (BatchNormMatching(0.3),) if with_terms and batch_norm_layers(model) else ()
    target = without_rounding_errors(observation) if distance == L1() else None
    kept = {"distance": distance, "regularizers": terms, "target": target}
    engine = engine_for(model, observation, way="frozen-pattern", **kept)
    plain = PlainDoubleBackward(model, observation, **kept)
    images = guesses(model)
    found, expected = engine.evaluate(images), plain.evaluate(images)
    assert relative(found.gradient, expected.gradient) < 1e-4
    torch.testing.assert_close(found.cost, expected.cost, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.matching, expected.matching, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("defense", ["none", "sparsify:0.5"])
def test_in_float32_it_is_within_a_percent(mode, defense):
    model = victim(mode)
    observation = update(model, defense=defense)
    kept = {"distance": Cosine(), "regularizers": (TotalVariation(0.1), BatchNormMatching(0.1))}
    engine = engine_for(model, observation, way="frozen-pattern", **kept)
    plain = PlainDoubleBackward(model, observation, **kept)
    images = guesses(model)
    found, expected = engine.evaluate(images), plain.evaluate(images)
    assert relative(found.gradient, expected.gradient) < 1e-2
    torch.testing.assert_close(found.cost, expected.cost)
    assert engine.way == "frozen-pattern"


def test_without_frozen_patterns_the_same_step_is_wrong(monkeypatch):
    """The reason for the patterns: ReLUs that change sign between the two points."""
    monkeypatch.setitem(frozen._STEP, torch.float64, 1e-3)
    model = victim("eval").double()
    observation = update(model)
    engine = engine_for(model, observation, distance=Cosine(), way="frozen-pattern")
    images = guesses(model, 1)
    expected = PlainDoubleBackward(model, observation, distance=Cosine()).evaluate(images).gradient
    assert relative(engine.evaluate(images).gradient, expected) < 0.02
    monkeypatch.setattr(ReLU, "replay", Op.replay)
    monkeypatch.setattr(ReLU, "replay_backward", Op.replay_backward)
    assert relative(engine.evaluate(images).gradient, expected) > 0.1


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_bfloat16_in_the_tangent_passes_is_within_three_percent(mode):
    model = victim(mode)
    observation = update(model)
    engine = engine_for(model, observation, distance=Cosine(), tangent_dtype=torch.bfloat16)
    plain = PlainDoubleBackward(model, observation, distance=Cosine())
    images = guesses(model)
    found, expected = engine.evaluate(images), plain.evaluate(images)
    error = relative(found.gradient, expected.gradient)
    assert 1e-5 < error < 3e-2
    # The cost is none of the tangents' business.
    torch.testing.assert_close(found.cost, expected.cost)


def test_restarts_that_do_not_fit_together_are_split(monkeypatch):
    model = victim("train")
    engine = engine_for(model, update(model), distance=Cosine())
    assert isinstance(engine, ExactROperator)
    images = guesses(model, 5)
    together, matching = engine.evaluate(images), engine.matching(images)
    sizes, step = [], ExactROperator.step

    def counted(self, images):
        sizes.append(len(images))
        return step(self, images)

    monkeypatch.setattr(ExactROperator, "step", counted)
    one = engine._bytes[images.shape[1:]]
    for factor, expected in ((2.5, [2, 2, 1]), (0.5, [1] * 5)):
        monkeypatch.setattr(traced, "MEMORY", int(factor * one))
        sizes.clear()
        split = engine.evaluate(images)
        assert sizes == expected
        assert relative(split.gradient, together.gradient) < 1e-4
        torch.testing.assert_close(split.cost, together.cost)
        torch.testing.assert_close(engine.matching(images), matching)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_on_a_gpu_the_captured_step_is_double_backward(mode):
    model = victim(mode).cuda()
    observation = update(model).to("cuda")
    engine = engine_for(model, observation, distance=Cosine(), regularizers=(TotalVariation(0.1),))
    plain = PlainDoubleBackward(
        model, observation, distance=Cosine(), regularizers=(TotalVariation(0.1),)
    )
    for images in (guesses(model), 1 - guesses(model)):
        found, expected = engine.evaluate(images), plain.evaluate(images)
        assert relative(found.gradient, expected.gradient) < 1e-3
        torch.testing.assert_close(found.cost, expected.cost)
