import pytest
import torch
from torch import nn

from gradinv.attacks.evidence.head import find_head, random_images
from gradinv.errors import AttackError
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
        (nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten()), "no linear layer with something"),
    ],
)
def test_what_is_no_head_is_said(model, got, generator):
    with pytest.raises(AttackError, match=rf"ends in a linear layer.*got {got}.*reveal the labels"):
        find_head(model, random_images(2, (1, 4, 4), generator))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_random_images_are_images(count, generator):
    images = random_images(count, (3, 6, 5), generator)
    assert images.shape == (count, 3, 6, 5)
    assert 0 <= images.min() <= images.max() <= 1
    again = random_images(count, (3, 6, 5), torch.Generator().manual_seed(0))
    assert torch.equal(images, again)
