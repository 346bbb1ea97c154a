"""A client that normalises outside its network: same names, same weights, same gradient."""

import copy
from types import MethodType
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

from gradinv.attacks import rank_analysis
from gradinv.data import ClientBatch
from gradinv.engine import PlainDoubleBackward, engine_for
from gradinv.engine.distances import Cosine
from gradinv.errors import ModelError
from gradinv.federated import observe
from gradinv.models import (
    ConvNet,
    Normalize,
    fingerprint,
    load_weights,
    normalization_of,
    normalized_outside,
    save_weights,
)

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]


def bare() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2),
        nn.Flatten(), nn.Linear(4 * 64, 5),
    ).eval()  # fmt: skip


@pytest.fixture
def batch(generator) -> ClientBatch:
    return ClientBatch(torch.rand(2, 3, 8, 8, generator=generator), torch.tensor([1, 3]))


def outside(images: torch.Tensor) -> torch.Tensor:
    """What plain PyTorch code does before its network."""
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def test_it_is_the_network_on_normalised_images(batch):
    network = bare()
    wrapped = normalized_outside(network, MEAN, STD)
    assert torch.equal(wrapped(batch.images), network(outside(batch.images)))
    # The user's own object goes on taking normalised images.
    assert type(network) is nn.Sequential
    assert wrapped[0].weight is network[0].weight
    assert isinstance(wrapped, nn.Sequential)
    assert len(wrapped) == 5


def test_names_and_state_are_those_of_the_bare_network(tmp_path):
    network = bare()
    wrapped = normalized_outside(network, MEAN, STD)
    for names in ("named_parameters", "named_buffers", "named_children"):
        assert [n for n, _ in getattr(wrapped, names)()] == [
            n for n, _ in getattr(network, names)()
        ]
    assert list(wrapped.state_dict()) == list(network.state_dict())
    assert fingerprint(wrapped) == fingerprint(network)
    save_weights(network, tmp_path / "w.safetensors")
    other = normalized_outside(bare(), MEAN, STD)
    nn.init.zeros_(other.get_parameter("0.weight"))
    load_weights(other, tmp_path / "w.safetensors")
    assert fingerprint(other) == fingerprint(network)


def test_the_update_is_that_of_plain_code(batch):
    network = bare()
    loss = nn.functional.cross_entropy(network(outside(batch.images)), batch.labels)
    expected = torch.autograd.grad(loss, list(network.parameters()))
    update = observe(normalized_outside(network, MEAN, STD), batch)
    assert list(update.gradient) == [name for name, _ in network.named_parameters()]
    for value, plain in zip(update.gradient.values(), expected, strict=True):
        torch.testing.assert_close(value, plain, rtol=1e-6, atol=1e-7)


def test_the_layer_is_found_and_no_module_comes_before_the_network():
    wrapped = normalized_outside(bare(), MEAN, STD)
    layer = normalization_of(wrapped)
    assert type(layer) is Normalize
    assert layer.mean.flatten().tolist() == pytest.approx(MEAN)
    assert next(wrapped.modules()) is wrapped


def test_other_weights_go_through_functional_call(batch):
    network = bare()
    wrapped = normalized_outside(network, MEAN, STD)
    state = {name: value.double() + 0.1 if value.is_floating_point() else value
             for name, value in network.state_dict().items()}  # fmt: skip
    wide = normalized_outside(network, MEAN, STD).double()
    got = functional_call(wide, state, (batch.images.double(),))
    assert torch.equal(got, functional_call(network, state, (outside(batch.images.double()),)))
    assert fingerprint(wrapped) == fingerprint(network)


def test_copies_and_pickles_keep_it(batch):
    wrapped = normalized_outside(bare(), MEAN, STD)
    expected = wrapped(batch.images)
    reduced: Any = wrapped.__reduce_ex__(4)  # as another process gets it
    make, arguments, state = reduced[:3]
    sent = make(*arguments)
    sent.__dict__.update(copy.deepcopy(state))
    for other in (copy.deepcopy(wrapped), sent):
        assert torch.equal(other(batch.images), expected)
        assert other.get_parameter("0.weight") is not wrapped[0].weight
        assert fingerprint(other) == fingerprint(wrapped)


def test_it_moves_with_the_network_and_its_mode(batch):
    wrapped = normalized_outside(bare(), MEAN, STD).double().train()
    layer = normalization_of(wrapped)
    assert layer is not None
    assert layer.mean.dtype == layer.std.dtype == torch.float64
    assert wrapped[1].training
    assert wrapped.eval()(batch.images.double()).dtype == torch.float64


def test_a_chain_stays_one_for_attacks_in_closed_form():
    network = nn.Sequential(
        nn.Conv2d(3, 2, 4, stride=4), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(8, 5)
    ).eval()
    ranks = rank_analysis(normalized_outside(network, MEAN, STD), (3, 8, 8))
    plain = rank_analysis(network, (3, 8, 8))
    assert len(ranks) == len(plain) > 0


def test_what_normalises_by_itself_is_refused():
    with pytest.raises(ModelError, match=r"got one that normalises by itself .*leave --mean"):
        normalized_outside(ConvNet(5, 3, 16), MEAN, STD)


def test_a_patched_forward_is_refused():
    network = bare()
    network.forward = MethodType(nn.Sequential.forward, network)
    with pytest.raises(ModelError, match="whose forward is a method of its class, got a Sequen"):
        normalized_outside(network, MEAN, STD)


def test_values_without_meaning_are_refused():
    with pytest.raises(ModelError, match="finite means and positive stds"):
        normalized_outside(bare(), MEAN, [0.2, 0.0, 0.4])


def test_the_exact_engine_is_double_backward_through_it(batch):
    model = normalized_outside(bare(), MEAN, STD).double()
    observation = observe(model, ClientBatch(batch.images, batch.labels))
    exact = engine_for(model, observation, distance=Cosine(), way="exact")
    plain = PlainDoubleBackward(model, observation, distance=Cosine())
    images = batch.images.double().flip(0)[None]
    found, expected = exact.evaluate(images), plain.evaluate(images)
    torch.testing.assert_close(found.gradient, expected.gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.cost, expected.cost, rtol=1e-9, atol=1e-12)
    # The derivative is with respect to pixels in [0, 1]: without the layer it is another one.
    assert not torch.allclose(
        PlainDoubleBackward(bare().double(), observation, distance=Cosine())
        .evaluate(images)
        .gradient,
        found.gradient,
    )
