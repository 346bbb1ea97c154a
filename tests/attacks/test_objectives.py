import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gradinv.attacks.objectives import (
    L1,
    BatchNormMatching,
    Cosine,
    ImageNorm,
    LatentKL,
    LatentNorm,
    LayerCosine,
    SquaredL2,
    Target,
    TotalVariation,
)
from gradinv.errors import AttackError, ObservationError
from gradinv.federated import Sparsify
from gradinv.models.batchnorm import BatchStatistics
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


def test_total_variation_in_both_definitions():
    image = torch.tensor([[[[0.0, 1.0], [3.0, 7.0]]]])
    # |dx|: 1, 4; |dy|: 3, 6
    assert TotalVariation(2.0)(image).item() == pytest.approx(2 * (2.5 + 4.5))
    assert TotalVariation(1.0, squared=True)(image).item() == pytest.approx(1 + 16 + 9 + 36)
    both = torch.cat([image, image])
    assert TotalVariation(1.0, squared=True)(both).item() == pytest.approx(62)
    assert TotalVariation(1.0)(torch.ones(1, 3, 4, 4)).item() == 0


def test_norms_of_images_and_latents():
    images = torch.stack([torch.full((1, 2, 2), 1.0), torch.full((1, 2, 2), 3.0)])
    assert ImageNorm(0.5)(images).item() == pytest.approx(0.5 * (2 + 6) / 2)
    assert LatentNorm(0.1)(torch.tensor([[3.0, 0.0], [0.0, 4.0]])).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    "term",
    [TotalVariation(0.7), TotalVariation(0.7, squared=True), ImageNorm(0.3)],
    ids=["tv", "squared tv", "norm"],
)
def test_image_terms_have_autograds_gradient_for_every_restart(term):
    images = torch.randn((3, 2, 3, 5, 4), dtype=torch.float64)
    images[0, 1] = 0  # equal neighbours, and an image without length
    images[2, :, :, 2:] = 0.25
    leaf = images.clone().requires_grad_()
    expected = torch.stack([term(batch) for batch in leaf])
    expected.sum().backward()
    values, gradient = term.with_gradient(images)
    torch.testing.assert_close(values, expected.detach())
    torch.testing.assert_close(gradient, leaf.grad)


def test_latent_kl_is_that_of_two_normal_distributions():
    z = torch.tensor([[3.0, 1.0], [0.5, -0.5]])
    normal = torch.distributions.Normal
    fitted = normal(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.5]))
    expected = torch.distributions.kl_divergence(fitted, normal(0.0, 1.0)).sum().item()
    assert LatentKL(0.1)(z).item() == pytest.approx(0.1 * expected, rel=1e-6)
    assert math.isfinite(LatentKL(1.0)(torch.zeros(1, 3)).item())


def statistics(mean, var):
    return BatchStatistics(torch.tensor(mean), torch.tensor(var))


def test_batch_norm_matching_in_both_definitions():
    trial = {"first": statistics([3.0, 4.0], [1.0, 1.0]), "second": statistics([1.0], [2.0])}
    seen = {"first": statistics([0.0, 0.0], [1.0, 1.0]), "second": statistics([0.0], [0.0])}
    assert BatchNormMatching(0.1)(trial, seen).item() == pytest.approx(0.1 * (10 * 5 + 1 + 2))
    paper = BatchNormMatching(1.0, first=1.0, squared=True)
    assert paper(trial, seen).item() == pytest.approx(25 + 1 + 4)


def test_batch_norm_matching_names_the_layers_without_statistics():
    trial = {"first": statistics([1.0], [1.0]), "other": statistics([1.0], [1.0])}
    with pytest.raises(AttackError, match=r"expected observed statistics.*none for other"):
        BatchNormMatching(1.0)(trial, {"first": trial["first"]})
    with pytest.raises(AttackError, match="a network without batch norm"):
        BatchNormMatching(1.0)({}, {})


def test_distance_is_zero_only_at_the_target():
    for distance in (Cosine(), LayerCosine(), SquaredL2(), L1()):
        assert math.isclose(distance(SEEN, Target(SEEN)).item(), 0, abs_tol=1e-6)
        assert distance(TRIAL, Target(SEEN)).item() > 0.01
