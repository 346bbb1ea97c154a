from dataclasses import replace

import pytest
import torch

from gradinv.attacks.search.regularizers import BatchNormMatching, ImageNorm, TotalVariation
from gradinv.engine import PlainDoubleBackward, pixel_units
from gradinv.engine.distances import L1, Cosine, LayerCosine, SquaredL2
from gradinv.errors import AttackError
from tests.attacks.slopes import check_against_differences
from tests.attacks.tiny import tiny_batch, tiny_observation, tiny_victim

SMOOTH = (Cosine(), LayerCosine(), SquaredL2())
REGULARIZERS = (TotalVariation(0.1, squared=True), ImageNorm(0.1), BatchNormMatching(0.3))


def double(mode: str = "eval", defense: str = "none", bn: str = "exact"):
    model = tiny_victim().double()
    model.train(mode == "train")
    batch = tiny_batch()
    observation = tiny_observation(
        model, type(batch)(batch.images.double(), batch.labels, batch.ids), defense=defense, bn=bn
    )
    return model, observation


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("defense", ["none", "sparsify:0.5"])
@pytest.mark.parametrize("distance", SMOOTH, ids=lambda d: type(d).__name__)
def test_dc_dx_is_the_finite_difference_in_float64(distance, defense, mode, generator):
    model, observation = double(mode, defense)
    engine = PlainDoubleBackward(model, observation, distance=distance, regularizers=REGULARIZERS)
    check_against_differences(engine, 2, generator)


def test_dc_dx_passes_gradcheck(generator):
    model, observation = double()
    engine = PlainDoubleBackward(
        model, observation, distance=Cosine(), regularizers=(BatchNormMatching(0.3),)
    )

    class Cost(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            evaluated = engine.evaluate(x)
            ctx.save_for_backward(evaluated.gradient)
            return evaluated.cost

        @staticmethod
        def backward(ctx, *outer):
            (gradient,) = ctx.saved_tensors
            return gradient * outer[0].view(-1, 1, 1, 1, 1)

    images = torch.rand((2, 2, 1, 8, 8), generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(Cost.apply, (images.requires_grad_(),), atol=1e-7)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("defense", ["none", "sparsify:0.9"])
@pytest.mark.parametrize("distance", [*SMOOTH, L1()], ids=lambda d: type(d).__name__)
def test_the_true_images_cost_nothing_and_others_something(distance, defense, mode):
    model, observation = double(mode, defense)
    engine = PlainDoubleBackward(
        model, observation, distance=distance, regularizers=(BatchNormMatching(1.0),)
    )
    truth = tiny_batch().images.double()
    cost = engine.matching(torch.stack([truth, 1 - truth]))
    assert cost[0].item() == pytest.approx(0, abs=1e-12)
    assert cost[1].item() > 1e-3


def test_the_naive_attacker_sees_a_cost_where_the_adaptive_one_sees_none():
    model, observation = double(defense="sparsify:0.9")
    truth = tiny_batch().images.double()[None]
    engine = PlainDoubleBackward(model, observation, distance=Cosine())
    engine.target = type(engine.target)(observation.gradient, None)
    assert engine.matching(truth).item() > 0.01


def test_restarts_do_not_see_each_other(victim, observation, generator):
    engine = PlainDoubleBackward(
        victim, observation, distance=Cosine(), regularizers=(TotalVariation(0.1),)
    )
    images = torch.rand((3, 2, 1, 8, 8), generator=generator)
    together = engine.evaluate(images)
    for index in range(3):
        alone = engine.evaluate(images[index : index + 1])
        assert torch.equal(alone.gradient[0], together.gradient[index])
        assert torch.equal(alone.cost[0], together.cost[index])


def test_neither_network_nor_images_accumulate_gradients(victim, observation):
    engine = PlainDoubleBackward(victim, observation, distance=Cosine())
    images = tiny_batch().images[None].clone().requires_grad_()
    engine.evaluate(images)
    assert images.grad is None
    assert all(parameter.grad is None for parameter in victim.parameters())


def test_not_finite_matching_counts_as_infinity(victim, observation):
    engine = PlainDoubleBackward(victim, observation, distance=Cosine())
    images = torch.full((1, 2, 1, 8, 8), torch.nan)
    assert engine.matching(images).tolist() == [torch.inf]


def test_statistics_that_were_not_revealed_are_asked_for(victim, observation):
    with pytest.raises(AttackError, match=r"expected batch-norm statistics.*--reveal-bn"):
        PlainDoubleBackward(
            victim, observation, distance=Cosine(), regularizers=(BatchNormMatching(1.0),)
        )


def test_labels_that_were_not_revealed_are_asked_for(victim, observation):
    with pytest.raises(AttackError, match="expected the labels"):
        PlainDoubleBackward(victim, replace(observation, labels=None), distance=Cosine())


@pytest.mark.parametrize("distance", SMOOTH, ids=lambda d: type(d).__name__)
def test_dc_dx_and_dc_dy_are_the_finite_differences_in_float64(distance, generator):
    model, observation = double(defense="sparsify:0.5")
    engine = PlainDoubleBackward(model, observation, distance=distance, soft_labels=True)
    images = torch.rand((1, 2, 1, 8, 8), generator=generator, dtype=torch.float64)
    soft = torch.rand((1, 2, 4), generator=generator, dtype=torch.float64).softmax(2)
    at = engine.evaluate(images, soft)
    assert at.label_gradient is not None
    step = 1e-5
    for _ in range(3):
        dx, dy = (
            torch.randn(point.shape, generator=generator, dtype=torch.float64)
            for point in (images, soft)
        )
        ahead = engine.evaluate(images + step * dx, soft + step * dy).cost
        behind = engine.evaluate(images - step * dx, soft - step * dy).cost
        along = (at.gradient * dx).sum() + (at.label_gradient * dy).sum()
        assert along.item() == pytest.approx(((ahead - behind) / (2 * step)).item(), rel=1e-6)


def test_soft_labels_that_are_certain_cost_what_known_labels_cost(victim, observation, generator):
    images = torch.rand((3, 2, 1, 8, 8), generator=generator)
    known = PlainDoubleBackward(victim, observation, distance=Cosine())
    given = PlainDoubleBackward(
        victim, replace(observation, labels=None), distance=Cosine(), soft_labels=True
    )
    certain = torch.eye(4)[observation.labels].expand(3, 2, 4)
    expected, found = known.evaluate(images), given.evaluate(images, certain)
    assert torch.allclose(found.cost, expected.cost, atol=1e-6)
    assert torch.allclose(found.gradient, expected.gradient, atol=1e-6)
    assert expected.label_gradient is None
    assert torch.allclose(given.matching(images, certain), known.matching(images), atol=1e-6)


def test_labels_come_from_one_place(victim, observation):
    images, soft = torch.rand((1, 2, 1, 8, 8)), torch.full((1, 2, 4), 0.25)
    known = PlainDoubleBackward(victim, observation, distance=Cosine())
    given = PlainDoubleBackward(victim, observation, distance=Cosine(), soft_labels=True)
    with pytest.raises(AttackError, match="with every call, got both"):
        known.evaluate(images, soft)
    with pytest.raises(AttackError, match="with every call, got neither"):
        given.evaluate(images)


def test_pixel_units_come_from_the_networks_own_normalisation(victim):
    mean, std = pixel_units(victim, (1, 8, 8), torch.zeros(()))
    assert mean.flatten().tolist() == [0.5]
    assert std.flatten().tolist() == [0.25]
    mean, std = pixel_units(torch.nn.Linear(1, 1), (3, 8, 8), torch.zeros(()))
    assert mean.shape == std.shape == (3, 1, 1)
