"""What an update proves about its labels: never more than what is there."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gradinv.attacks.evidence.head import Head, find_head, random_images
from gradinv.attacks.evidence.proofs import lone_images, proven_counts
from gradinv.federated import (
    FedAvg,
    FedSGD,
    LocalOptimizer,
    Loss,
    Reveal,
    observe,
    parse_defense,
)
from gradinv.models import build_model
from tests.attacks.evidence.test_labels import CLASSES, batch_of, network, update


def head_of(net: nn.Module) -> Head:
    return find_head(net, random_images(4, (1, 16, 16), torch.Generator().manual_seed(0)))


def counted(labels: list[int]) -> Tensor:
    return torch.bincount(torch.tensor(labels), minlength=CLASSES)


LABELS = [0, 0, 3, 5, 5, 5]


@pytest.mark.parametrize(
    "defense",
    ["none", "clip:0.01", "sparsify:0.9", "noise:0.001", "noise:0.05", "noise:0.01+clip:1"],
)
@pytest.mark.parametrize("model", ["convnet", "resnet18", "lenet"])
def test_no_more_is_proven_than_there_is(model, defense):
    net = build_model(model, num_classes=CLASSES, channels=1, image_size=16, seed=0)
    proven = proven_counts(update(net, batch_of(LABELS), defense), head_of(net))
    assert proven.dtype == torch.int64
    assert (proven <= counted(LABELS)).all()
    if defense in {"none", "clip:0.01"}:
        assert (proven >= counted(LABELS).clamp_max(1)).all()


@pytest.mark.parametrize("protocol", [FedAvg(1, lr=1e-3), FedAvg(4, lr=0.05, momentum=0.5)])
def test_local_training_proves_which_classes_are_there(protocol):
    net = network()
    sent = observe(net, batch_of(LABELS), protocol=protocol, reveal=Reveal(labels=False))
    proven = proven_counts(sent, head_of(net))
    assert (proven <= counted(LABELS)).all()
    assert (proven >= counted(LABELS).clamp_max(1)).all()


def test_features_of_both_signs_prove_nothing_but_the_bias_does():
    net = network()
    observed, head = update(net, batch_of(LABELS)), head_of(net)
    signed = replace(head, features=head.features - head.features.mean())
    proven = proven_counts(observed, signed)
    assert torch.equal(proven > 0, observed.gradient["head.bias"] < 0)
    assert 0 < proven.sum() < counted(LABELS).clamp_max(1).sum()
    weight = {"head.weight": observed.gradient["head.weight"]}
    assert proven_counts(replace(observed, gradient=weight), signed).sum() == 0


def test_an_update_that_contradicts_itself_proves_nothing():
    net = network()
    observed = update(net, batch_of(LABELS))
    assert proven_counts(replace(observed, batch_size=2), head_of(net)).sum() == 0


def factors(
    labels: list[int], *, features: int = 400, active: float = 0.3
) -> tuple[Tensor, Tensor]:
    """Returns d (class, image) of random posteriors and sparse features h (image, feature)."""
    source = torch.Generator().manual_seed(len(labels))
    logits = 2 * torch.randn(len(labels), CLASSES, generator=source, dtype=torch.float64)
    moves = logits.softmax(dim=1) - nn.functional.one_hot(torch.tensor(labels), CLASSES)
    size = torch.rand(len(labels), features, generator=source, dtype=torch.float64)
    on = torch.rand(len(labels), features, generator=source) < active
    return moves.T, size * on


@pytest.mark.parametrize("labels", [[2], [1, 1], [0, 0, 0, 4], LABELS, [1, 1, 1, 1, 1, 1]])
def test_images_with_features_of_their_own_are_told_apart(labels):
    moves, features = factors(labels)
    assert torch.equal(lone_images(moves @ features), counted(labels))
    # As an update is sent, in single precision.
    assert torch.equal(lone_images((moves @ features).float().double()), counted(labels))


def test_features_that_images_share_are_no_images():
    moves, features = factors(LABELS)
    features[:, :40] = 0.7  # an empty background: the same in all of them
    features[:2, 40:80] = 0.4
    features[2:, 40:80] = 0.0
    assert torch.equal(lone_images(moves @ features), counted(LABELS))
    dense = torch.rand(features.shape, generator=torch.Generator().manual_seed(1)).double() + 0.1
    assert lone_images(moves @ dense).sum() == 0


def test_a_sum_of_two_images_is_none_where_one_of_them_is_never_alone():
    """No other direction explains such a sum, whose rows of both labels are negative."""
    moves, features = factors([1, 4])
    features[1] = 2 * features[0]
    features[1, : features.shape[1] // 2] = 0
    assert lone_images(moves @ features).tolist() == [0, 1, 0, 0, 0, 0]


def test_a_gradient_of_zeros_proves_nothing():
    assert lone_images(torch.zeros(CLASSES, 50, dtype=torch.float64)).sum() == 0


def proven_of(weight: Tensor, *, batch: int, **changes) -> list[int]:
    """What a gradient of the last layer proves, behind features that are never negative."""
    observed = replace(
        update(network(), batch_of(LABELS)), gradient={"head.weight": weight}, batch_size=batch,
        **changes,
    )  # fmt: skip
    head = Head(
        "head",
        torch.zeros_like(weight),
        None,
        torch.ones(4, weight.shape[1]).to(weight),
        alone=True,
    )
    return proven_counts(observed, head).tolist()


def test_columns_that_a_sparsification_made_parallel_are_no_images():
    """One image's columns with other entries dropped look like several images of its class."""
    moves, features = factors([0, 3])
    (sparsify,) = parse_defense("sparsify:0.5")
    cut = sparsify.apply({"w": moves @ features}, None)["w"]
    assert lone_images(cut).tolist() == [2, 0, 0, 1, 0, 0], "the test says nothing"
    assert proven_of(cut, batch=8, defenses=(sparsify,)) == [1, 0, 0, 1, 0, 0]


def test_columns_of_several_local_steps_are_no_images():
    """An image whose features fade at different speeds over two steps is still one image."""
    moves, features = factors([2])
    later = factors([2, 2])[0][:, 1:]
    fading = torch.where(torch.arange(features.shape[1]) % 2 == 0, 1.0, 0.5)
    trained = moves @ features + later @ (features * fading)
    assert lone_images(trained).tolist() == [0, 0, 2, 0, 0, 0], "the test says nothing"
    assert proven_of(trained, batch=4, protocol=FedAvg(2, lr=0.1)) == [0, 0, 1, 0, 0, 0]
    assert proven_of(moves @ features, batch=4, protocol=FedAvg(1, lr=0.1))[2] == 1


@pytest.mark.parametrize(
    ("entry", "protocol", "proof"),
    [
        # Four units in the last place of the largest weight, 1/2, over the rate, for each step.
        (-4.1 * 2**-24 / 0.1, FedAvg(1, lr=0.1), True),
        (-3.9 * 2**-24 / 0.1, FedAvg(1, lr=0.1), False),
        (-4.1 * 2**-24 / 0.1, FedAvg(2, lr=0.1), False),
        (-8.1 * 2**-24 / 0.1, FedAvg(2, lr=0.1), True),
        (-4.1 * 2**-24 / 0.1, FedAvg(1, lr=0.01), False),
        (-1e-9, FedSGD(), True),
    ],
)
def test_what_the_rounding_of_weights_can_make_negative_proves_nothing(entry, protocol, proof):
    sent = torch.ones(CLASSES, 8)
    sent[4, 3] = entry
    start = torch.linspace(-0.5, 0.3, CLASSES * 8).reshape(CLASSES, 8)
    observed = replace(
        update(network(), batch_of(LABELS)), gradient={"head.weight": sent}, protocol=protocol
    )
    head = Head("head", start, None, torch.ones(4, 8), alone=True)
    assert proven_counts(observed, head).tolist() == [0, 0, 0, 0, int(proof), 0]


def test_too_many_images_take_nothing_from_the_classes_that_are_there():
    moves, features = factors(LABELS)
    assert proven_of(moves @ features, batch=6) == counted(LABELS).tolist()
    assert proven_of(moves @ features, batch=4) == [1, 0, 0, 1, 0, 1]


@pytest.mark.parametrize(
    "protocol",
    [
        FedSGD(loss=Loss(smoothing=0.1)),
        FedSGD(loss=Loss("bce")),
        FedAvg(1, optimizer=LocalOptimizer(weight_decay=0.1)),
        FedAvg(2, optimizer=LocalOptimizer("adam")),
    ],
)
def test_nothing_is_proven_where_signs_say_nothing(protocol):
    net = network()
    sent = observe(net, batch_of(LABELS), protocol=protocol, reveal=Reveal(labels=False))
    assert not proven_counts(sent, head_of(net)).any()


def test_the_sum_proves_as_much_as_the_mean():
    net = network()
    loss = Loss(reduction="sum", scale=0.5)
    sent = observe(net, batch_of(LABELS), protocol=FedSGD(loss=loss), reveal=Reveal(labels=False))
    assert (proven_counts(sent, head_of(net)) >= counted(LABELS).clamp_max(1)).all()
