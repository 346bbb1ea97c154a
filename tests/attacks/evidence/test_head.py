import pytest
import torch
from torch import nn

from gradinv.attacks.evidence.head import find_head, random_images
from gradinv.attacks.evidence.labels import recover_labels
from gradinv.attacks.evidence.penultimate import Clues
from gradinv.attacks.evidence.proofs import proven_counts
from gradinv.data import ClientBatch
from gradinv.errors import AttackError
from gradinv.federated import observe
from gradinv.models import ConvNet, ResNet18


class Branches(nn.Module):
    """Registers its layers in an order that has nothing to do with the order of use."""

    def __init__(self, *, behind: nn.Module | None = None) -> None:
        super().__init__()
        self.behind = behind or nn.Identity()
        self.classifier = nn.Linear(5, 3, bias=False)
        self.embed = nn.Linear(16, 5)
        self.unused = nn.Linear(5, 3)

    def forward(self, x):
        return self.behind(self.classifier(self.embed(x.flatten(1)).relu()))


@pytest.mark.parametrize(
    ("model", "name", "features"),
    [(ConvNet(4, 1, 16), "head", 512), (ResNet18(4, 1), "fc", 512), (Branches(), "classifier", 5)],
)
@pytest.mark.parametrize("training", [False, True])
def test_the_head_is_found_by_what_it_computes(model, name, features, training, generator):
    side = 4 if isinstance(model, Branches) else 16
    images = random_images(3, (1, side, side), generator)
    model.train(training)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    head = find_head(model, images)
    assert head.weight_name == f"{name}.weight"
    assert head.features.shape == (3, features)
    assert (head.bias is None) == isinstance(model, Branches)
    with torch.no_grad():
        rebuilt = head.features @ head.weight.T + (0 if head.bias is None else head.bias)
        assert torch.allclose(rebuilt, model(images), atol=1e-5)
    if not training:
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_buffers_stay_in_train_mode(generator):
    model = ConvNet(4, 1, 16).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    find_head(model, random_images(3, (1, 16, 16), generator))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "got"),
    [
        (Branches(behind=nn.Softmax(1)), "embed, classifier with something behind it"),
        (
            Branches(behind=nn.Threshold(1e9, 1.0, inplace=True)),
            "embed, classifier with something behind it",
        ),
        (nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten()), "no linear layer with something"),
    ],
)
def test_what_is_no_head_is_said(model, got, generator):
    with pytest.raises(AttackError, match=rf"ends in a linear layer.*got {got}.*reveal the labels"):
        find_head(model, random_images(2, (1, 4, 4), generator))


class Again(nn.Module):
    """A square layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 16)

    def forward(self, x):
        return self.head(self.head(x.flatten(1)).sigmoid())


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 16)
        self.head = nn.Linear(16, 16)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x.flatten(1)).sigmoid())


@pytest.mark.parametrize("model", [Again(), Tied()], ids=["called twice", "of one weight"])
def test_a_gradient_that_is_a_sum_over_two_uses_proves_nothing(model, generator):
    """The other use has signs of its own."""
    head = find_head(model, random_images(2, (1, 4, 4), generator))
    assert head.name == "head"
    assert not head.alone
    assert find_head(Branches(), random_images(2, (1, 4, 4), generator)).alone
    images = torch.rand((4, 1, 4, 4), generator=generator)
    for count in (1, 4):
        batch = ClientBatch(images[:count], torch.arange(count), tuple(range(count)))
        update = observe(model.eval(), batch)
        assert head.weight_name in update.gradient or isinstance(model, Tied)
        if head.weight_name in update.gradient:
            assert not proven_counts(update, head).any()
            assert not recover_labels(update, model).exact


def test_features_are_those_of_the_last_call(generator):
    model, images = Again().eval(), random_images(2, (1, 4, 4), generator)
    update = observe(model, ClientBatch(images, torch.arange(2), (0, 1)))
    found = Clues.of(update, model).features(model, images)
    assert torch.equal(found, model.head(images.flatten(1)).sigmoid())


@pytest.mark.parametrize("count", [1, 2, 7])
def test_random_images_are_images(count, generator):
    images = random_images(count, (3, 6, 5), generator)
    assert images.shape == (count, 3, 6, 5)
    assert 0 <= images.min() <= images.max() <= 1
    again = random_images(count, (3, 6, 5), torch.Generator().manual_seed(0))
    assert torch.equal(images, again)
