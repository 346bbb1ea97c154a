"""The client's loss: against torch's own modules, through text and back, and its errors."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradinv.errors import ConfigError
from gradinv.federated.client import loss_gradient
from gradinv.federated.loss import Loss, parse_loss
from gradinv.federated.observation import Observation
from gradinv.federated.observing import observe
from gradinv.federated.protocol import FedSGD

WEIGHTS = (1.0, 2.0, 0.5, 3.0, 1.5)


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        (Loss(), nn.CrossEntropyLoss()),
        (Loss(reduction="sum"), nn.CrossEntropyLoss(reduction="sum")),
        (
            Loss(smoothing=0.1, weights=WEIGHTS),
            nn.CrossEntropyLoss(weight=torch.tensor(WEIGHTS), label_smoothing=0.1),
        ),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_gradient_is_that_of_the_module(loss, reference, scale, model, batch):
    loss = Loss(loss.kind, loss.reduction, loss.smoothing, loss.weights, scale)
    (scale * reference(model(batch.images), batch.labels)).backward()
    gradient = loss_gradient(model, batch.images, batch.labels, loss=loss)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, msg=name)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_bce_against_one_hot_labels(reduction):
    logits, labels = torch.randn(3, 4), torch.tensor([3, 0, 0])
    hot = functional.one_hot(labels, 4).float()
    expected = nn.BCEWithLogitsLoss(reduction=reduction)(logits, hot)
    torch.testing.assert_close(Loss("bce", reduction)(logits, labels), expected)
    torch.testing.assert_close(Loss("bce", reduction)(logits, hot), expected)


@pytest.mark.parametrize("classes", [1, 4])
def test_smoothing_of_bce_is_shared_between_the_classes(classes):
    """A smoothed label is still a distribution, as cross entropy has it."""
    several = max(classes, 2)
    logits, labels = torch.randn(3, classes), torch.tensor([several - 1, 0, 0])
    hot = 0.8 * functional.one_hot(labels, several).float() + 0.2 / several
    torch.testing.assert_close(hot.sum(dim=1), torch.ones(3))
    expected = nn.BCEWithLogitsLoss()(logits, hot[:, 1:] if classes == 1 else hot)
    torch.testing.assert_close(Loss("bce", smoothing=0.2)(logits, labels), expected)


def test_one_logit_is_that_of_the_second_class():
    logits, labels = torch.randn(3, 1), torch.tensor([1, 0, 1])
    expected = nn.BCEWithLogitsLoss()(logits[:, 0], labels.float())
    torch.testing.assert_close(Loss("bce")(logits, labels), expected)
    assert Loss("bce").classes(1) == 2
    assert Loss("bce").classes(3) == 3
    assert Loss().classes(1) == 1


@pytest.mark.parametrize(
    "loss",
    [
        Loss(),
        Loss("bce", scale=0.25),
        Loss(reduction="sum", smoothing=0.1, weights=(1.0, 2.5), scale=1e-3),
    ],
)
def test_text_and_back(loss):
    assert parse_loss(str(loss)) == loss


def test_text_of_the_usual_one():
    assert str(Loss()) == "cross-entropy"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hinge", "expected a loss among cross-entropy, bce or package.*factory, got .hinge."),
        ("bce:smooth=1", "expected settings among reduction, smoothing, .* got 'smooth'; did you"),
        ("bce:scale=1,scale=2", "expected scale once in"),
        ("bce:scale=x", "expected a number in 'bce:scale=x', got 'x'"),
        ("bce:scale=0", "expected a loss's scale above 0 and finite, got 0.0"),
        ("bce:smoothing=1", r"expected label smoothing in \[0, 1\), got 1.0"),
        ("bce:reduction=none", "expected the reduction mean or sum of a loss, got 'none'"),
        ("bce:weights=1/0", "expected class weights above 0 and finite"),
    ],
)
def test_wrong_texts(spec, message, without_type_checks):
    with pytest.raises(ConfigError, match=message):
        parse_loss(spec)


def test_wrong_number_of_weights():
    with pytest.raises(ConfigError, match=r"expected 3 class weights \(the network's logits\)"):
        Loss(weights=(1.0, 2.0))(torch.randn(2, 3), torch.tensor([0, 1]))


def test_factor_of_the_mean():
    assert Loss(scale=0.5).factor(4) == 0.5
    assert Loss(reduction="sum", scale=0.5).factor(4) == 2


OWN = """
import torch
from torch import nn
from torch.nn import functional

class Focal(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weights", torch.ones(5))
    def forward(self, logits, labels):
        p = logits.softmax(1).gather(1, labels[:, None])[:, 0]
        return (self.weights[labels] * (1 - p) ** 2 * -p.log()).mean()

def squares():
    return lambda logits, labels: (logits - functional.one_hot(labels, 5)).square().sum()

made = nn.CrossEntropyLoss(label_smoothing=0.1)

def needs(more): ...
def nothing(): ...
def each(): return nn.CrossEntropyLoss(reduction="none")
def number_(): return lambda logits, labels: 3.0
def fails(): return lambda logits: logits
value = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ownlosses.py").write_text(OWN)


class TestOwn:
    @pytest.mark.parametrize("name", ["Focal", "squares", "made"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_gradient(self, name, dtype, own, model, batch):
        loss = parse_loss(f"ownlosses:{name}:scale=0.5")
        assert str(loss) == f"ownlosses:{name}:scale=0.5"
        assert parse_loss(f"ownlosses:{name}") == Loss(f"ownlosses:{name}")
        import ownlosses  # type: ignore[import-not-found]

        value = getattr(ownlosses, name)
        criterion = (value if name == "made" else value()).to(dtype) if name != "squares" else (
            ownlosses.squares()
        )  # fmt: skip
        model, images = model.to(dtype), batch.images.to(dtype)
        (0.5 * criterion(model(images), batch.labels)).backward()
        gradient = loss_gradient(model, images, batch.labels, loss=loss)
        for parameter_name, parameter in model.named_parameters():
            torch.testing.assert_close(gradient[parameter_name], parameter.grad)

    def test_an_update_file_names_it(self, own, tmp_path, model, batch):
        protocol = FedSGD(loss=Loss("ownlosses:squares", scale=0.5))
        observed = observe(model.eval(), batch, protocol=protocol)
        observed.save(tmp_path / "update.safetensors")
        assert Observation.load(tmp_path / "update.safetensors").protocol == protocol

    def test_nothing_is_taken_for_proven(self, own):
        assert not Loss("ownlosses:Focal").proves_signs

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("ownlosses:Focl", "expected loss 'Focl' in ownlosses, got nothing .*mean 'Focal'"),
            ("ownlosses:value", "ownlosses:value to be a class of nn.Module or a .*, got int; "),
            ("os:abort", "expected os:abort to be a class of nn.Module or a function .*got abort"),
            ("ownlosses:Focal:smoothing=0.1", "expected scale alone as a setting of ownlosses:Foc"),
            ("ownlosses:Focal:gamma=2", "expected settings among reduction, .*, got 'gamma'"),
        ],
    )
    def test_wrong_texts(self, spec, message, own):
        with pytest.raises(ConfigError, match=message):
            parse_loss(spec)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("needs", "to make a loss from no arguments, got TypeError: .*; give what it needs"),
            ("nothing", "to make a function of logits and labels, got NoneType; return one"),
            ("each", r"to give one number, got shape \(2,\); take the mean or the sum"),
            ("number_", "to give one number, got float; take the mean"),
            ("fails", r"take logits of shape \(2, 5\) and labels of shape \(2,\), got TypeError"),
        ],
    )
    def test_what_is_no_loss(self, name, message, own):
        with pytest.raises(ConfigError, match=message):
            Loss(f"ownlosses:{name}")(torch.randn(2, 5), torch.tensor([0, 1]))
