"""The R-operator against double backward, in float64 and float32."""

import copy

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gradinv.attacks.search.regularizers import BatchNormMatching, ImageNorm, TotalVariation
from gradinv.data import ClientBatch
from gradinv.engine import PlainDoubleBackward, engine_for
from gradinv.engine.distances import L1, Cosine, LayerCosine, SquaredL2, Target
from gradinv.federated import observe
from gradinv.models import ConvNet, ResNet18, batch_norm_layers, build_model
from tests.engine.networks import guesses, network, plans, relative, shake, update

DISTANCES = (Cosine(), LayerCosine(), SquaredL2(), L1())
REGULARIZERS = (TotalVariation(0.1, squared=True), ImageNorm(0.1), BatchNormMatching(0.3))


def both(model, observation, **settings):
    return (
        engine_for(model, observation, way="exact", **settings),
        PlainDoubleBackward(model, observation, **settings),
    )


# No shrinking: it takes minutes, and the networks are small enough to read.
@settings(max_examples=30, phases=[Phase.explicit, Phase.generate])
@given(
    plan=plans,
    distance=st.sampled_from(DISTANCES),
    defense=st.sampled_from(["none", "sparsify:0.6"]),
    with_terms=st.booleans(),
)
def test_it_is_double_backward_on_random_networks(plan, distance, defense, with_terms):
    model = network(plan)
    with_terms = with_terms and bool(batch_norm_layers(model))
    observation = update(model, defense=defense)
    exact, plain = both(
        model,
        observation,
        distance=distance,
        regularizers=REGULARIZERS if with_terms else (),
    )
    images = guesses(model)
    found, expected = exact.evaluate(images), plain.evaluate(images)
    assert relative(found.gradient, expected.gradient) < 1e-9
    torch.testing.assert_close(found.cost, expected.cost, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.matching, expected.matching, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        exact.matching(images), plain.matching(images), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("defense", ["none", "sparsify:0.5"])
@pytest.mark.parametrize("distance", DISTANCES, ids=lambda d: type(d).__name__)
def test_it_is_double_backward_on_the_clients_network(distance, defense, mode):
    model = victim(mode).double()
    exact, plain = both(
        model, update(model, defense=defense), distance=distance, regularizers=REGULARIZERS
    )
    images = guesses(model, 3)
    found, expected = exact.evaluate(images), plain.evaluate(images)
    assert relative(found.gradient, expected.gradient) < 1e-9
    torch.testing.assert_close(found.cost, expected.cost, rtol=1e-9, atol=1e-12)


def victim(mode: str) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = ConvNet(4, 3, 9, widths=(8, 8, 16))
        shake(model)
    return model.train(mode == "train")


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_float32_is_as_good_as_float32_can_be(mode):
    model = victim(mode)
    observation = update(model)
    exact, plain = both(model, observation, distance=Cosine())
    images = guesses(model)
    truth = PlainDoubleBackward(
        model.double(), observation.to(dtype=torch.float64), distance=Cosine()
    ).evaluate(images.double())
    model.float()
    assert relative(exact.evaluate(images).gradient.double(), truth.gradient) < 1e-4
    assert relative(plain.evaluate(images).gradient.double(), truth.gradient) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_residual_networks(stem, mode):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ResNet18(4, stem=stem).double().train(mode == "train")
    shape = (2, 3, 64, 64) if stem == "imagenet" else (2, 3, 16, 16)
    exact, plain = both(model, update(model, shape=shape), distance=Cosine())
    images = guesses(model, 1, shape=shape)
    found, expected = exact.evaluate(images), plain.evaluate(images)
    assert relative(found.gradient, expected.gradient) < 1e-9


def test_batch_norm_whose_scale_is_zero():
    """As in residual networks whose last scale of a block starts at zero."""
    model = victim("train").double()
    with torch.no_grad():
        model.get_parameter("blocks.block2.bn.weight").zero_()
        model.get_parameter("blocks.block2.bn.bias").fill_(0.3)
    for mode in (True, False):
        model.train(mode)
        exact, plain = both(model, update(model), distance=Cosine())
        images = guesses(model)
        expected = plain.evaluate(images).gradient
        assert relative(exact.evaluate(images).gradient, expected) < 1e-9


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_parameters_that_are_frozen_or_not_reached(mode):
    model = victim(mode).double()
    model.register_module("unused", torch.nn.Linear(3, 2).double())
    for name in ("blocks.block1.conv.weight", "blocks.block2.bn.bias", "head.weight"):
        model.get_parameter(name).requires_grad_(False)
    images = guesses(model)
    for distance in (Cosine(), SquaredL2(), L1()):
        exact, plain = both(model, update(model), distance=distance)
        found, expected = exact.evaluate(images), plain.evaluate(images)
        assert relative(found.gradient, expected.gradient) < 1e-9
        torch.testing.assert_close(found.cost, expected.cost)


def test_only_the_largest_tensors_are_matched():
    model = victim("eval").double()
    observation = update(model)
    largest = Target(observation.gradient).largest(3)
    exact, plain = both(model, observation, distance=Cosine(), target=largest)
    images = guesses(model)
    expected = plain.evaluate(images).gradient
    assert relative(exact.evaluate(images).gradient, expected) < 1e-9


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_nothing_before_a_shift_of_batch_norm_is_matched(mode):
    model = victim(mode).double()
    observation = update(model)
    kept = ("blocks.block1.bn.bias", "head.weight")
    target = Target({name: observation.gradient[name] for name in kept})
    exact, plain = both(model, observation, distance=Cosine(), target=target)
    images = guesses(model)
    expected = plain.evaluate(images).gradient
    assert relative(exact.evaluate(images).gradient, expected) < 1e-9


def test_restarts_do_not_see_each_other():
    for mode in ("eval", "train"):
        model = victim(mode).double()
        engine = engine_for(
            model, update(model), distance=Cosine(), regularizers=REGULARIZERS, way="exact"
        )
        images = guesses(model, 3)
        together = engine.evaluate(images)
        for index in range(3):
            alone = engine.evaluate(images[index : index + 1])
            assert relative(alone.gradient[0], together.gradient[index]) < 1e-12
            torch.testing.assert_close(alone.cost[0], together.cost[index])


def test_the_network_is_left_as_it_was():
    model = victim("train")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    engine = engine_for(model, update(model), distance=Cosine(), way="exact")
    images = guesses(model).requires_grad_()
    engine.evaluate(images)
    engine.matching(images)
    assert images.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_same_call_gives_the_same_bits():
    model = victim("train")
    images = guesses(model)
    observation = update(model, defense="sparsify:0.5")
    first = engine_for(model, observation, distance=Cosine())
    second = engine_for(model, observation, distance=Cosine())
    one, two, three = (engine.evaluate(images) for engine in (first, first, second))
    assert torch.equal(one.gradient, two.gradient)
    assert torch.equal(one.gradient, three.gradient)
    assert torch.equal(one.cost, three.cost)


def test_not_finite_matching_counts_as_infinity():
    model = victim("eval")
    engine = engine_for(model, update(model), distance=Cosine())
    assert engine.matching(torch.full_like(guesses(model, 1), torch.nan)).tolist() == [torch.inf]


@pytest.mark.parametrize("name", ["convnet", "lenet"])
def test_the_squared_distance_is_exact_near_the_images(name):
    """In float32, where |a|^2 - 2 <a, g> + |g|^2 would leave nothing but rounding errors."""
    source = torch.Generator().manual_seed(0)
    model = build_model(name, num_classes=4, channels=1, image_size=16, seed=0)
    batch = ClientBatch(torch.rand((1, 1, 16, 16), generator=source), torch.tensor([2]))
    near = (batch.images + 1e-4 * torch.randn(batch.images.shape, generator=source))[None]
    found = engine_for(model, observe(model, batch), distance=SquaredL2(), way="exact")
    model = copy.deepcopy(model).double()
    exact = batch.to(dtype=torch.float64)
    expected = PlainDoubleBackward(model, observe(model, exact), distance=SquaredL2())
    value, reference = found.evaluate(near), expected.evaluate(near.double())
    assert value.cost.item() == pytest.approx(reference.cost.item(), rel=0.02)
    assert relative(value.gradient.double(), reference.gradient) < 0.02
