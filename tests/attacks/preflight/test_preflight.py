from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradinv.attacks import preset
from gradinv.attacks.preflight import Finding, Kind, Preflight, preflight
from gradinv.data import ClientBatch
from gradinv.federated import (
    FedAvg,
    FedSGD,
    LocalOptimizer,
    Loss,
    Reveal,
    loss_gradient,
    observe,
    parse_defense,
)
from gradinv.models import build_model
from tests.attacks.evidence.test_head import Again, Tied
from tests.attacks.preflight.networks import images, mlp, seen, trained
from tests.attacks.tiny import tiny_batch, tiny_victim
from tests.outside import Every, Laplace, Rounded

SGD = torch.optim.SGD


def one_hot_bce(z, y):
    return functional.binary_cross_entropy_with_logits(z, functional.one_hot(y, 10).float())


FAULTY = {
    "weight decay": (partial(SGD, weight_decay=5e-4), {"lr": 0.01}, {Kind.WEIGHT_DECAY}),
    "local steps": (partial(SGD, momentum=0.9), {"lr": 0.01, "steps": 3}, {Kind.TOO_LONG}),
    "all of it": (
        partial(SGD, momentum=0.9, weight_decay=5e-4),
        {"lr": 0.01, "steps": 3},
        {Kind.TOO_LONG, Kind.WEIGHT_DECAY},
    ),
    "adam": (torch.optim.Adam, {"lr": 1e-3, "steps": 3}, {Kind.ADAPTIVE}),
    "adamw": (
        partial(torch.optim.AdamW, weight_decay=0.01), {"lr": 1e-3, "steps": 3}, {Kind.ADAPTIVE}
    ),
    "bce": (SGD, {"lr": 1.0, "loss": one_hot_bce}, {Kind.OTHER_LOSS}),
    "sum": (
        SGD,
        {"lr": 1.0, "loss": partial(functional.cross_entropy, reduction="sum")},
        {Kind.TOO_LONG},
    ),
}  # fmt: skip


@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize("name", FAULTY)
def test_what_a_client_did_beside_one_gradient_is_named(name, hide):
    optimizer, settings, kinds = FAULTY[name]
    model, batch = mlp(), images(3)
    found = preflight(seen(trained(model, batch, optimizer, **settings), batch, hide=hide), model)
    assert {finding.kind for finding in found.findings} == kinds
    assert found.can_carry


def test_the_amount_of_weight_decay_is_told():
    model, batch = mlp(), images(3)
    update = trained(model, batch, partial(SGD, weight_decay=5e-4), lr=0.01)
    (finding,) = preflight(seen(update, batch), model).findings
    assert finding.numbers["decay"] == pytest.approx(5e-4, rel=0.05)


def test_an_update_that_was_altered_on_its_way_is_named():
    model, batch = mlp(), images(3)
    gradient = trained(model, batch, SGD, lr=1.0)
    dropped = parse_defense("sparsify:0.9")[0].apply(gradient, None)
    cases = {
        Kind.WRONG_SIGN: {name: -value for name, value in gradient.items()},
        Kind.SPARSE: dropped,
        Kind.COARSE: {name: value.bfloat16().float() for name, value in gradient.items()},
        Kind.ZERO: {name: value * 0 for name, value in gradient.items()},
        Kind.OTHER_WEIGHTS: trained(mlp(seed=1), batch, SGD, lr=1.0),
    }
    for kind, update in cases.items():
        for hide in (False, True):
            found = preflight(seen(update, batch, hide=hide), model)
            assert [finding.kind for finding in found.findings] == [kind]
            assert (kind is Kind.ZERO) == (not found.can_carry)
    others = images(3)
    shifted = seen(gradient, type(others)(others.images, others.labels + 5, others.ids))
    assert [f.kind for f in preflight(shifted, model).findings] == [Kind.OTHER_LABELS]


@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_images_that_the_client_normalised_outside_the_network_are_named(name, count, hide):
    model = mlp()
    if name == "lenet":
        model = build_model("lenet", num_classes=10, channels=1, image_size=8, seed=0).eval()
    batch = images(count)

    given = (batch.images - 0.485) / 0.229
    gradient = loss_gradient(model, given, batch.labels)
    found = preflight(seen(gradient, batch, hide=hide), model)
    assert [finding.kind for finding in found.findings] == [Kind.INPUT_RANGE]
    gradient = loss_gradient(model, batch.images, batch.labels)
    assert preflight(seen(gradient, batch, hide=hide), model).findings == ()


def test_the_wrong_sign_is_seen_without_a_bias_in_the_last_layer():
    batch = images(3)
    model = nn.Sequential(*list(mlp().children())[:-1], nn.Linear(32, 10, bias=False)).eval()
    gradient = loss_gradient(model, batch.images, batch.labels)
    assert preflight(seen(gradient, batch), model).findings == ()
    turned = {name: -value for name, value in gradient.items()}
    (found,) = preflight(seen(turned, batch), model).findings
    assert found.kind is Kind.WRONG_SIGN
    assert found.numbers["cosine"] < -0.2


def test_the_wrong_sign_is_told_from_other_labels_where_nearly_every_class_is_there():
    model = build_model("lenet", num_classes=10, channels=1, image_size=8, seed=0).eval()
    batch = images(9)
    gradient = loss_gradient(model, batch.images, batch.labels)
    turned = seen({name: -value for name, value in gradient.items()}, batch)
    assert [f.kind for f in preflight(turned, model).findings] == [Kind.WRONG_SIGN]
    assert preflight(seen(gradient, batch), model).findings == ()


def test_looking_changes_neither_the_network_nor_the_source_of_chance():
    model, batch = tiny_victim().train(), tiny_batch()
    update = observe(model, batch, protocol=FedSGD("train"))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    chance = torch.random.get_rng_state()
    preflight(update, model, attacks=[preset("gi-x"), preset("dlg")])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), chance)
    assert model.training


def test_every_finding_is_one_sentence_with_what_to_do():
    for kind in Kind:
        (line,) = Preflight((Finding(kind),)).lines()
        assert line.startswith(f"preflight, {Finding(kind).severity.value}: {kind.value}; ")
        assert len(Finding(kind).advice) > 20
        assert "\n" not in line


HONEST = ("none", "noise:0.001", "noise:0.1", "sparsify:0.9", "clip:0.1", "clip:1+noise:0.01")


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", ["tiny", "mlp", "lenet", "leakynet", "convnet"])
def test_honest_updates_raise_no_alarm(name, mode):
    built = {"tiny": tiny_victim, "mlp": mlp}
    model = (
        built[name]()
        if name in built
        else build_model(name, num_classes=10, channels=1, image_size=8, seed=0)
    ).train(mode == "train")
    protocols = [FedSGD(mode), FedAvg(2, None, lr=0.01, mode=mode)]
    if mode == "eval":
        protocols.append(FedAvg(2, 1, lr=0.1, momentum=0.9))
    for count in (2, 3):
        for protocol in protocols:
            for defense in HONEST:
                for labels in (True, False):
                    update = observe(
                        model,
                        images(count),
                        protocol=protocol,
                        defenses=parse_defense(defense),
                        reveal=Reveal(labels=labels),
                        generator=torch.Generator().manual_seed(77),
                    )
                    found = preflight(update, model)
                    assert found.findings == (), (count, protocol, defense, labels, found.lines())


STATED = {
    "bce": FedSGD(loss=Loss("bce")),
    "sum": FedSGD(loss=Loss(reduction="sum")),
    "smoothed": FedSGD(loss=Loss(smoothing=0.1)),
    "smoothed sum": FedSGD(loss=Loss(reduction="sum", smoothing=0.1)),
    "weighted": FedSGD(loss=Loss(weights=(1.0, 5.0, *[1.0] * 8))),
    "decay": FedAvg(1, lr=0.01, optimizer=LocalOptimizer(weight_decay=0.05)),
    "decay and momentum": FedAvg(
        3, lr=0.01, optimizer=LocalOptimizer(momentum=0.9, weight_decay=5e-4)
    ),
    "adam": FedAvg(3, lr=0.001, optimizer=LocalOptimizer("adam")),
    "adamw": FedAvg(3, lr=0.001, optimizer=LocalOptimizer("adamw", weight_decay=0.01)),
}


@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize("name", STATED)
def test_what_is_stated_raises_no_alarm(name, hide):
    for model in (mlp(), build_model("lenet", num_classes=10, channels=1, image_size=8, seed=0)):
        update = observe(model, images(3), protocol=STATED[name], reveal=Reveal(labels=not hide))
        assert preflight(update, model).findings == ()


@pytest.mark.parametrize("defense", [Rounded(0.01), Every(2.0), Laplace(0.01)])
def test_a_defence_from_outside_raises_no_alarm(defense):
    source = torch.Generator().manual_seed(0)
    update = observe(mlp(), images(3), defenses=(defense,), generator=source)
    assert preflight(update, mlp()).findings == ()


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("kind", [Again, Tied])
def test_a_last_layer_that_is_used_twice_raises_no_alarm(kind, count):
    """What holds of a last layer's gradient does not hold of a sum of two."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, pictures = kind().eval(), torch.rand(count, 1, 4, 4)
    batch = ClientBatch(pictures, torch.arange(count), tuple(range(count)))
    assert not preflight(observe(model, batch), model).findings
