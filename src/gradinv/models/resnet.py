"""ResNet18 (He et al. 2016) with the stem of its CIFAR or of its ImageNet form."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, no_type_check

from jaxtyping import Float
from torch import Tensor, nn

from gradinv.errors import ModelError
from gradinv.models.normalize import Normalize

Stem = Literal["cifar", "imagenet"]

_WIDTHS = (64, 128, 256, 512)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; no ReLU is in place, so ``torch.fx`` can trace it."""

    def __init__(self, incoming: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(incoming, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or incoming != width:
            self.shortcut = nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(incoming, width, 1, stride=stride, bias=False),
                    bn=nn.BatchNorm2d(width),
                )
            )

    @no_type_check  # torch.fx hands in proxies, which the tests' shape checks would refuse
    def forward(
        self, features: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel2 height2 width2"]:
        """Returns relu(conv(relu(conv(features))) + shortcut(features))."""
        inner = self.relu1(self.bn1(self.conv1(features)))
        return self.relu2(self.bn2(self.conv2(inner)) + self.shortcut(features))


class ResNet18(nn.Module):
    """Four stages of two basic blocks.

    Args:
        num_classes: number of logits.
        channels: channels of the images.
        stem: "cifar" is a 3x3 convolution of stride 1 without pooling (the paper's setting, Jeon
            et al. 2021, section 5); "imagenet" is a 7x7 convolution of stride 2 and max-pooling.
        mean: of the images in [0, 1], one for each channel; 0.5 when None.
        std: of the images in [0, 1], one for each channel; 0.25 when None.

    Raises:
        ModelError: the stem is neither of the two.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 3,
        stem: Stem = "cifar",
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if stem not in ("cifar", "imagenet"):
            raise ModelError(f"expected stem 'cifar' or 'imagenet', got {stem!r}; choose one")
        self.normalize = Normalize(mean or [0.5] * channels, std or [0.25] * channels)
        width = _WIDTHS[0]
        kernel, stride = (3, 1) if stem == "cifar" else (7, 2)
        self.conv1 = nn.Conv2d(
            channels, width, kernel, stride=stride, padding=kernel // 2, bias=False
        )
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if stem == "cifar" else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(width, _WIDTHS[0], stride=1)
        self.layer2 = _stage(_WIDTHS[0], _WIDTHS[1], stride=2)
        self.layer3 = _stage(_WIDTHS[1], _WIDTHS[2], stride=2)
        self.layer4 = _stage(_WIDTHS[2], _WIDTHS[3], stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(_WIDTHS[3], num_classes)
        initialize_convolutions(self)

    @no_type_check  # torch.fx hands in proxies, which the tests' shape checks would refuse
    def forward(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch class"]:
        """Returns the logits of images in [0, 1]."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(self.normalize(images)))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        return self.fc(self.flatten(self.pool(features)))


def _stage(incoming: int, width: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(incoming, width, stride), BasicBlock(width, width, 1))


def initialize_convolutions(model: nn.Module) -> None:
    """Draws every convolution's weights from N(0, 2 / fan_out), as published ResNets do.

    He et al. 2015, eq. 14. With batch norm in eval mode and its running statistics still at 0
    and 1, nothing else sets the scale of the activations, which would otherwise fade layer by
    layer.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
