import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gradinv.engine.distances import L1, Cosine, LayerCosine, SquaredL2, Target
from gradinv.errors import ObservationError
from gradinv.federated import Sparsify
from tests.attacks.tiny import tiny_observation

TRIAL = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([[4.0, -1.0]])}
SEEN = {"a": torch.tensor([0.0, 2.0, 1.0]), "b": torch.tensor([[5.0, 0.0]])}
MASK = {name: value != 0 for name, value in SEEN.items()}


def flat(gradient, mask=None):
    return np.concatenate([
        (value * (1 if mask is None else mask[name])).numpy().ravel()
        for name, value in gradient.items()
    ])  # fmt: skip


class TestTargetOf:
    def test_without_a_sparsification_it_is_the_update(self, observation):
        target = Target.of(observation)
        assert target.mask is None
        assert all(target.gradient[n] is value for n, value in observation.gradient.items())

    @pytest.mark.parametrize("noise", ["", "+noise:1e-9", "+noise:0.01", "+noise:0.01+clip:1"])
    def test_it_is_zero_where_a_sparsification_left_nothing_but_noise(self, victim, batch, noise):
        observation = tiny_observation(victim, batch, defense=f"sparsify:0.8{noise}")
        target, mask = Target.of(observation), observation.sparsity_mask
        assert mask is not None
        assert target.mask is not None
        for name, value in observation.gradient.items():
            assert torch.equal(target.mask[name], mask[name])
            assert torch.equal(target.gradient[name], value * mask[name])
            assert int(mask[name].sum()) == Sparsify(0.8).kept(value.numel())

    def test_an_update_of_several_clients_is_no_target(self, observation):
        with pytest.raises(ObservationError, match="expected the update of one client, got the"):
            Target.of(replace(observation, clients=5))


@pytest.mark.parametrize("mask", [None, MASK])
def test_cosine_is_that_of_one_long_vector(mask):
    a, g = flat(TRIAL, mask), flat(SEEN)
    expected = 1 - a @ g / (np.linalg.norm(a) * np.linalg.norm(g))
    assert Cosine()(TRIAL, Target(SEEN, mask)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("distance", [Cosine(), LayerCosine(), SquaredL2()])
def test_products_decide_the_distance(distance):
    """Also of that one whose own call does without them, because they cancel."""
    target = Target(SEEN)
    inner, own, observed = (
        torch.stack([(a[name] * b[name]).sum() for name in SEEN])
        for a, b in ((TRIAL, SEEN), (TRIAL, TRIAL), (SEEN, SEEN))
    )
    found = distance.closed(inner[None], own[None], observed)
    torch.testing.assert_close(found.value[0], distance(TRIAL, target))
    leaves = {name: value.clone().requires_grad_() for name, value in TRIAL.items()}
    expected = torch.autograd.grad(distance(leaves, target), list(leaves.values()))
    for index, (name, slope) in enumerate(zip(leaves, expected, strict=True)):
        on_observed = 1 if found.on_observed is None else found.on_observed[0, index]
        v = on_observed * SEEN[name] + found.on_trial[0, index] * TRIAL[name]
        torch.testing.assert_close(found.factor[0] * v, slope)


@pytest.mark.parametrize("mask", [None, MASK])
def test_l2_and_l1_are_those_of_one_long_vector(mask):
    difference = flat(TRIAL, mask) - flat(SEEN)
    target = Target(SEEN, mask)
    assert SquaredL2()(TRIAL, target).item() == pytest.approx((difference**2).sum(), rel=1e-6)
    assert L1()(TRIAL, target).item() == pytest.approx(abs(difference).sum(), rel=1e-6)


def test_layer_cosine_is_the_mean_of_each_layers_own_and_skips_silent_layers():
    each = [Cosine()({n: TRIAL[n]}, Target({n: SEEN[n]})).item() for n in SEEN]
    assert LayerCosine()(TRIAL, Target(SEEN)).item() == pytest.approx(np.mean(each), rel=1e-6)
    silent = {**SEEN, "b": torch.zeros(1, 2)}
    assert LayerCosine()(TRIAL, Target(silent)).item() == pytest.approx(each[0], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layer_cosine_skips_tensors_that_are_rounding_errors(dtype):
    """As of a bias in front of batch norm in train mode, whose true gradient is zero."""
    noise = torch.finfo(dtype).eps * torch.tensor([[1.0, -2.0]], dtype=dtype)
    trial = {"a": TRIAL["a"].to(dtype), "b": -noise}
    seen = {"a": SEEN["a"].to(dtype), "b": noise}
    alone = Cosine()({"a": trial["a"]}, Target({"a": seen["a"]}))
    assert LayerCosine()(trial, Target(seen)).item() == pytest.approx(alone.item(), rel=1e-6)


def test_layer_cosine_is_1_and_flat_where_the_trial_gradient_is_a_rounding_error():
    trial = {"a": TRIAL["a"].clone().requires_grad_(), "b": torch.full((1, 2), 1e-9)}
    trial["b"].requires_grad_()
    expected = 0.5 * (Cosine()({"a": TRIAL["a"]}, Target({"a": SEEN["a"]})).item() + 1)
    value = LayerCosine()(trial, Target(SEEN))
    assert value.item() == pytest.approx(expected, rel=1e-6)
    first, second = torch.autograd.grad(value, [trial["a"], trial["b"]])
    assert torch.isfinite(first).all()
    assert not second.any()


def test_cosine_of_a_zero_gradient_is_finite():
    nothing = {name: torch.zeros_like(value) for name, value in TRIAL.items()}
    assert Cosine()(nothing, Target(SEEN)).item() == 1


def test_largest_keeps_the_tensors_of_largest_norm():
    kept = Target(SEEN, MASK).largest(1)
    assert list(kept.gradient) == ["b"]
    assert kept.mask is not None
    assert list(kept.mask) == ["b"]


def test_distance_is_zero_only_at_the_target():
    for distance in (Cosine(), LayerCosine(), SquaredL2(), L1()):
        assert math.isclose(distance(SEEN, Target(SEEN)).item(), 0, abs_tol=1e-6)
        assert distance(TRIAL, Target(SEEN)).item() > 0.01
