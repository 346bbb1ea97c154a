"""Observations of FedAvg: what is sent, what is revealed, how it is stored."""

import dataclasses

import pytest
import torch

from gradinv.errors import ConfigError, ObservationError
from gradinv.federated import (
    Clip,
    FedAvg,
    FedSGD,
    Noise,
    Observation,
    Reveal,
    Sparsify,
    check_fits,
    local_update,
    logits,
    observe,
)
from gradinv.models.batchnorm import record_batch_statistics
from gradinv.models.weights import fingerprint
from tests.federated.test_observation import (
    EVERYTHING,
    bytes_hold_pixels,
    everything_the_same,
    holds_pixels,
    rewrite,
)

SPLIT = FedAvg(local_epochs=2, batch_size=2, lr=0.1, momentum=0.5)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_it_is_local_training_in_the_order_that_was_drawn(model, batch, mode):
    protocol = dataclasses.replace(SPLIT, mode=mode)
    model.train(mode == "train")
    before = fingerprint(model)
    observation = observe(model, batch, protocol=protocol, generator=source())
    order = protocol.order(3, source())
    expected = local_update(model, batch.images, batch.labels, protocol, order)
    assert all(torch.equal(observation.gradient[n], value) for n, value in expected.items())
    assert observation.protocol == protocol
    assert observation.order is None
    assert fingerprint(model) == before
    check_fits(observation, model)
    seed = next(seed for seed in range(1, 50) if protocol.order(3, source(seed)) != order)
    other = observe(model, batch, protocol=protocol, generator=source(seed))
    assert not torch.equal(other.gradient["head.bias"], observation.gradient["head.bias"])


def test_the_order_is_there_when_it_is_revealed(model, batch):
    found = observe(model, batch, protocol=SPLIT, reveal=Reveal(order=True), generator=source())
    assert found.order == SPLIT.order(3, source())
    with pytest.raises(ConfigError, match="expected FedAvg for an order of local steps to reveal"):
        observe(model, batch, reveal=Reveal(order=True))


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("defenses", [(), (Sparsify(0.5), Noise(0.1))], ids=["none", "noise"])
def test_one_local_step_is_fedsgd(model, batch, defenses, mode):
    model = model.double().train(mode == "train")
    batch = type(batch)(batch.images.double(), batch.labels, batch.ids)
    once = FedAvg(local_epochs=1, lr=0.05, momentum=0.9, mode=mode)
    trained = observe(model, batch, protocol=once, defenses=defenses, generator=source())
    graded = observe(model, batch, protocol=FedSGD(mode), defenses=defenses, generator=source())
    for name, value in graded.gradient.items():
        torch.testing.assert_close(trained.gradient[name], value, rtol=1e-9, atol=1e-12)
    as_gradient = trained.as_one_gradient()
    assert as_gradient.protocol == graded.protocol
    assert all(torch.equal(as_gradient.gradient[n], v) for n, v in trained.gradient.items())


def test_as_one_gradient_is_right_to_first_order(model, batch):
    """The smaller the steps, the nearer all gradients are to the one at theta_0."""
    model = model.double()
    batch = type(batch)(batch.images.double(), batch.labels, batch.ids)
    graded = observe(model, batch)
    assert graded.as_one_gradient() is graded
    distances = []
    for lr in (1e-3, 1e-4):
        protocol = FedAvg(local_epochs=3, lr=lr, momentum=0.5)
        sent = observe(model, batch, protocol=protocol, reveal=Reveal(order=True))
        one = sent.as_one_gradient()
        assert one.order is None
        whole = one.gradient["head.bias"] * protocol.gradients(3)
        torch.testing.assert_close(whole, sent.gradient["head.bias"])
        distances.append((one.gradient["head.weight"] - graded.gradient["head.weight"]).norm())
    assert distances[1] < 0.2 * distances[0]
    assert distances[0] < 0.01 * graded.gradient["head.weight"].norm()


def test_as_one_gradient_has_the_defences_in_its_own_units(model, batch):
    """A clip and a noise are so large beside the update, and so large beside a part of it."""
    model = model.double()
    batch = type(batch)(batch.images.double(), batch.labels, batch.ids)
    protocol = FedAvg(local_epochs=4, lr=1e-7)
    defenses = (Sparsify(0.5), Clip(0.01), Noise(1e-5))
    one = observe(
        model, batch, protocol=protocol, defenses=defenses, generator=source()
    ).as_one_gradient()
    again = observe(model, batch, defenses=one.defenses, generator=source())
    for name, value in one.gradient.items():
        torch.testing.assert_close(value, again.gradient[name], rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_exact_statistics_are_of_the_whole_batch_at_the_first_weights(model, batch, mode):
    model.train(mode == "train")
    protocol = dataclasses.replace(SPLIT, mode=mode)
    sent = observe(model, batch, protocol=protocol, reveal=EVERYTHING, generator=source())
    with record_batch_statistics(model) as recorded, torch.no_grad():
        logits(model, batch.images)
    assert sent.bn_statistics is not None
    assert list(sent.bn_statistics) == list(recorded.statistics)
    for name, value in recorded.statistics.items():
        assert torch.equal(sent.bn_statistics[name].mean, value.mean)
        assert torch.equal(sent.bn_statistics[name].var, value.var)
    silent = observe(model, batch, protocol=protocol, generator=source())
    assert silent.bn_statistics is None
    assert torch.equal(silent.gradient["head.bias"], sent.gradient["head.bias"])


def test_no_pixel_of_the_batch(model, batch, tmp_path):
    reveal = dataclasses.replace(EVERYTHING, order=True)
    observation = observe(model, batch, protocol=SPLIT, reveal=reveal, generator=source())
    assert not holds_pixels(observation, batch.images)
    observation.save(tmp_path / "update.safetensors")
    assert not bytes_hold_pixels((tmp_path / "update.safetensors").read_bytes(), batch.images)


@pytest.mark.parametrize("order", [False, True])
def test_round_trip_bit_for_bit(model, batch, tmp_path, order):
    reveal = dataclasses.replace(EVERYTHING, order=order)
    observation = observe(model, batch, protocol=SPLIT, reveal=reveal, generator=source())
    observation.save(tmp_path / "update.safetensors")
    loaded = Observation.load(tmp_path / "update.safetensors")
    assert everything_the_same(loaded, observation)
    assert loaded.order == observation.order
    assert (loaded.order is not None) == order
    assert loaded.protocol == SPLIT
    assert not everything_the_same(loaded, dataclasses.replace(loaded, protocol=FedAvg(2, 2)))


def test_an_update_from_before_fedavg_still_loads(model, batch, tmp_path):
    observation = observe(model, batch, reveal=EVERYTHING)
    observation.save(tmp_path / "update.safetensors")
    rewrite(tmp_path / "update.safetensors", order=None)  # as an older version left it: no entry
    assert everything_the_same(Observation.load(tmp_path / "update.safetensors"), observation)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"protocol": {"name": "fedavg", "lr": 0.0}}, "local learning rate above 0 .*, got 0.0"),
        ({"protocol": {"name": "fedavg", "drop": 1}}, "readable header .*'drop'"),
        ({"order": [[0, 1], [2]]}, r"expected an order of 4 local steps .*, got 2 steps over"),
        ({"order": [[0, 1], [2], [0, 1], []]}, "expected an order of 4 local steps"),
        ({"order": [[0, 1], [2], [0, 1], [3]]}, r"over images 0 to 2, got 4 .* \[0, 1, 2, 3\]"),
        ({"order": 3}, "expected a readable header"),
        ({"protocol": {"name": "fedsgd"}}, "expected an order of 0 local steps"),
    ],
)
def test_headers_that_cannot_be(model, batch, tmp_path, header, message):
    path = tmp_path / "update.safetensors"
    reveal = dataclasses.replace(EVERYTHING, order=True)
    observe(model, batch, protocol=SPLIT, reveal=reveal, generator=source()).save(path)
    rewrite(path, **header)
    with pytest.raises(ObservationError, match=message):
        Observation.load(path)


def test_an_order_needs_a_source_of_chance(model, batch):
    with pytest.raises(
        ConfigError, match=r"expected a torch\.Generator for the order of the local"
    ):
        observe(model, batch, protocol=SPLIT)


def test_local_training_that_diverges_says_so(model, batch):
    with pytest.raises(
        ObservationError,
        match=r"stays finite, got NaN or infinity after 30 local steps of lr 1e\+30 and momentum 0",
    ):
        observe(model, batch, protocol=FedAvg(local_epochs=30, lr=1e30))
