"""A trial update is what the client would have sent, whichever way it is computed."""

import pytest
import torch
from torch import nn

from gradinv.data import ClientBatch
from gradinv.evaluation.candidates.trials import Dictionary, Simulated, trials_for
from gradinv.federated import FedAvg, FedSGD, Reveal
from gradinv.federated.loss import Loss, parse_loss
from tests.attacks.tiny import tiny_victim
from tests.evaluation.candidates.places import flat, images_of, lists_of, update_of

PROTOCOLS = {
    "eval": FedSGD(),
    "sum": FedSGD(loss=parse_loss("cross-entropy:reduction=sum")),
    "train": FedSGD(mode="train"),
    "fedavg": FedAvg(local_epochs=2, batch_size=2, lr=0.1),
}


def victim(protocol):
    return tiny_victim().train(protocol.mode == "train")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_trial_is_the_clients_own_update(name):
    protocol = PROTOCOLS[name]
    _, lists = lists_of(images_of())
    model = victim(protocol)
    reveal = Reveal(order=name == "fedavg")
    picks = [1, 0, 4]
    batch = ClientBatch(lists.batch(picks), lists.labels)
    seen = update_of(model, batch, protocol, reveal=reveal)
    trials = trials_for(model, lists, protocol, order=seen.order)
    assert isinstance(trials, Dictionary if name in {"eval", "sum"} else Simulated)
    torch.testing.assert_close(trials.update(picks), flat(dict(seen.gradient)))


def test_gradients_of_single_images_are_added_only_where_they_add_up():
    """Batch norm in train mode looks at the batch; its name is not what says so."""

    class Centred(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    model = tiny_victim(norm=False)
    _, lists = lists_of(images_of())
    assert isinstance(trials_for(model, lists, FedSGD()), Dictionary)
    behind = nn.Sequential(Centred(), model).eval()
    assert isinstance(trials_for(behind, lists, FedSGD()), Simulated)


def test_class_weights_do_not_add_up():
    weights = Loss(weights=(1.0, 2.0, 3.0, 9.0))
    _, lists = lists_of(images_of())
    assert isinstance(trials_for(tiny_victim(), lists, FedSGD(loss=weights)), Simulated)


def test_what_does_not_fit_into_memory_is_simulated():
    _, lists = lists_of(images_of())
    assert isinstance(trials_for(tiny_victim(), lists, FedSGD(), room=1000), Simulated)


def test_dropout_is_the_same_in_every_trial():
    model = nn.Sequential(nn.Dropout(0.5), tiny_victim(norm=False)).train()
    _, lists = lists_of(images_of())
    trials = trials_for(model, lists, FedSGD(mode="train"), seed=3)
    before = torch.random.get_rng_state()
    assert torch.equal(trials.update([0, 1, 2]), trials.update([0, 1, 2]))
    assert not torch.equal(trials.update([0, 1, 2]), trials.update([0, 1, 3]))
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_network_that_takes_no_single_image_is_simulated():
    """Batch norm behind global pooling has one value per channel, which train mode refuses."""
    pooled = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten(),
        nn.Linear(4, 4),
    ).train()  # fmt: skip
    _, lists = lists_of(images_of())
    protocol = FedSGD(mode="train")
    trials = trials_for(pooled, lists, protocol)
    assert isinstance(trials, Simulated)
    batch = ClientBatch(lists.batch([1, 0, 4]), lists.labels)
    seen = update_of(pooled, batch, protocol)
    torch.testing.assert_close(trials.update([1, 0, 4]), flat(dict(seen.gradient)))
