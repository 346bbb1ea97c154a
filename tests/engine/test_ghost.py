"""Ghost layers and convolutions as products of matrices against the direct computation."""

import pytest
import torch
from torch import nn

from gradinv.engine import ExactROperator, PlainDoubleBackward, engine_for
from gradinv.engine.distances import L1, Cosine, LayerCosine, SquaredL2
from gradinv.engine.rules import op, weighted
from gradinv.engine.rules.convolution import (
    ByMatrix,
    Direct,
    DirectButOuter,
    FewChannels,
    products_of,
)
from gradinv.engine.rules.geometry import Geometry
from tests.engine.networks import CLASSES, guesses, relative, shake, update

CONVOLUTIONS = {
    "same": {"kernel_size": 3, "padding": 1},
    "same, wide": {"kernel_size": 5, "padding": 2},
    "same, not square": {"kernel_size": (3, 1), "padding": (1, 0)},
    "same, dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "dilated beyond the image": {"kernel_size": 3, "padding": 7, "dilation": 7},
    "one pixel": {"kernel_size": 1},
    "one pixel, strided": {"kernel_size": 1, "stride": 2},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "not padded": {"kernel_size": 3},
    "uneven": {"kernel_size": (2, 4), "stride": (1, 2), "padding": (1, 0)},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
}
IMAGE = (3, 2, 7, 6)


def network(settings: dict, *, mode: str, bias: bool) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(4, 6, bias=bias, **settings),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(24, CLASSES),
        )
        shake(model)
    return model.double().train(mode == "train")


FORMS = (Direct, DirectButOuter, FewChannels, ByMatrix)


@pytest.fixture(params=FORMS, ids=lambda form: form.__name__)
def form(request, monkeypatch) -> type:
    """How convolutions are computed."""

    def forced(geometry, weight):
        if geometry.groups > 1:
            return Direct(geometry)
        if request.param is ByMatrix:
            return ByMatrix(geometry, channel_major=op.channel_major(weight))
        return request.param(geometry)

    monkeypatch.setattr(weighted, "products_of", forced)
    return request.param


@pytest.fixture(params=[True, False], ids=["ghosts", "no ghosts"])
def ghosts(request, monkeypatch) -> bool:
    """Whether every layer that can be a ghost is one."""
    monkeypatch.setattr(weighted, "ghost_pays", lambda *shapes: request.param)
    return request.param


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("settings", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_every_form_is_double_backward(settings, mode, form, ghosts):
    model = network(settings, mode=mode, bias=mode == "eval")
    observation = update(model, shape=IMAGE)
    images = guesses(model, 3, shape=IMAGE)
    for distance in (Cosine(), LayerCosine(), SquaredL2()):
        engine = engine_for(model, observation, distance=distance, way="exact")
        plain = PlainDoubleBackward(model, observation, distance=distance)
        found, expected = engine.evaluate(images), plain.evaluate(images)
        assert relative(found.gradient, expected.gradient) < 1e-9
        torch.testing.assert_close(found.matching, expected.matching, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("settings", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("way", ["exact", "frozen-pattern"])
def test_kernels_in_their_own_memory_order(way, settings, mode, monkeypatch):
    """As large ones are kept, so that there is no copy of them."""
    monkeypatch.setattr(op, "_LARGE_KERNEL", 0)
    model = network(settings, mode=mode, bias=True)
    for defense in ("none", "sparsify:0.5"):
        observation = update(model, shape=IMAGE, defense=defense)
        images = guesses(model, 2, shape=IMAGE)
        engine = engine_for(model, observation, distance=Cosine(), way=way)
        expected = PlainDoubleBackward(model, observation, distance=Cosine()).evaluate(images)
        found = engine.evaluate(images)
        assert relative(found.gradient, expected.gradient) < (1e-9 if way == "exact" else 1e-3)
        torch.testing.assert_close(found.matching, expected.matching, rtol=1e-9, atol=1e-12)


def test_large_kernels_and_their_observed_gradients_are_not_copied(monkeypatch):
    model = network(CONVOLUTIONS["same"], mode="eval", bias=True)
    observation = update(model, shape=IMAGE)
    name = "2.weight"
    for large, shared in ((0, True), (1e9, False)):
        monkeypatch.setattr(op, "_LARGE_KERNEL", large)
        engine = engine_for(model, observation, distance=Cosine(), way="exact")
        assert isinstance(engine, ExactROperator)
        kept = (engine.weights[name], engine.matcher.target.gradient[name])
        own = (model.get_parameter(name), observation.gradient[name])
        for copy, original in zip(kept, own, strict=True):
            assert (copy.data_ptr() == original.data_ptr()) is shared


def ghosts_of(engine, images) -> set[str]:
    run = engine.exact_run(len(images))
    with torch.no_grad():
        engine.first_order(run, images)
    return set(run.ghosts)


def test_ghosts_are_those_that_can_be(ghosts):
    model = network(CONVOLUTIONS["grouped"], mode="eval", bias=False)
    observation = update(model, shape=IMAGE)
    images = guesses(model, 1, shape=IMAGE)
    engine = engine_for(model, observation, distance=Cosine(), way="exact")
    assert ghosts_of(engine, images) == ({"0.weight", "7.weight"} if ghosts else set())
    # v is no sum of trial and observed gradient for these.
    engine = engine_for(model, observation, distance=L1(), way="exact")
    assert ghosts_of(engine, images) == set()
    masked = update(model, shape=IMAGE, defense="sparsify:0.5")
    engine = engine_for(model, masked, distance=Cosine(), way="exact")
    assert ghosts_of(engine, images) == set()


def test_a_weight_that_is_used_twice_is_no_ghost(ghosts):
    shared = nn.Conv2d(2, 2, 3, padding=1)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Flatten(), nn.Linear(84, CLASSES)).double()
    model.eval()
    observation = update(model, shape=IMAGE, bn="none")
    images = guesses(model, 2, shape=IMAGE)
    engine = engine_for(model, observation, distance=Cosine(), way="exact")
    assert ghosts_of(engine, images) == ({"4.weight"} if ghosts else set())
    expected = PlainDoubleBackward(model, observation, distance=Cosine()).evaluate(images)
    assert relative(engine.evaluate(images).gradient, expected.gradient) < 1e-9


def test_the_late_layers_of_a_residual_network_are_ghosts_and_the_early_ones_are_not():
    """ResNet18 on 4 images of 32 pixels: positions, lengths and weights of its layers."""
    assert weighted.ghost_pays(64, 512 + 512, 512 * 512 * 9, 1)
    assert weighted.ghost_pays(256, 256 + 256, 256 * 256 * 9, 1)
    assert not weighted.ghost_pays(1024, 128 + 128, 128 * 128 * 9, 1)
    assert not weighted.ghost_pays(4096, 64 + 64, 64 * 64 * 9, 1)
    # The calls that a ghost makes more are shared by the restarts.
    assert not weighted.ghost_pays(16, 128 + 1152, 128 * 128 * 9, 1)
    assert weighted.ghost_pays(16, 128 + 1152, 128 * 128 * 9, 4)


def geometry(batch: int, channels: int, size: int, kernel: int = 3, stride: int = 1) -> Geometry:
    shape = torch.Size((batch, channels, size, size))
    padding = (kernel // 2, kernel // 2)
    return Geometry(shape, (kernel, kernel), (stride, stride), padding, (1, 1), 1)


def test_the_form_follows_the_shapes():
    """ResNet18 on 4 images of 32 pixels, from its first layer to its last."""

    def form(place: Geometry, outputs: int) -> type:
        kernel = torch.empty(outputs, place.in_shape[1], *place.kernel)
        return type(products_of(place, kernel))

    assert form(geometry(4, 3, 32), 64) is FewChannels
    assert form(geometry(4, 64, 32), 64) is Direct
    assert form(geometry(4, 64, 32, stride=2), 128) is DirectButOuter
    assert form(geometry(4, 64, 32, kernel=1, stride=2), 128) is ByMatrix
    assert form(geometry(4, 256, 8), 256) is ByMatrix
    assert form(geometry(64, 512, 4), 512) is ByMatrix
    # ConvNet on single images, which PyTorch would convolve by another path.
    assert form(geometry(1, 3, 32), 32) is FewChannels
    assert form(geometry(1, 32, 32, stride=2), 32) is DirectButOuter
    assert form(geometry(1, 32, 16), 64) is ByMatrix
    assert form(geometry(2, 32, 16), 64) is Direct
