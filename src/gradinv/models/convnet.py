"""A small client's network that a CPU attacks in minutes."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import no_type_check

from jaxtyping import Float
from torch import Tensor, nn

from gradinv.models.normalize import Normalize


class ConvNet(nn.Module):
    """Conv-BN-ReLU blocks, global average pooling and a linear head.

    Every second block halves the image, so six blocks take 32 pixels to 4. Pooling over what is
    left makes the head fit every image size. Convolutions have no bias: batch norm's shift does
    that work. ReLUs are modules and not in place, so that ``torch.fx`` can trace the network.

    Args:
        num_classes: number of logits.
        channels: channels of the images.
        widths: output channels of each block.
        mean: of the images in [0, 1], one for each channel; 0.5 when None.
        std: of the images in [0, 1], one for each channel; 0.25 when None.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 3,
        widths: Sequence[int] = (32, 32, 64, 64, 128, 128),
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean or [0.5] * channels, std or [0.25] * channels)
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        incoming = channels
        for number, width in enumerate(widths, start=1):
            stride = 2 if number % 2 == 0 else 1
            blocks[f"block{number}"] = nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(incoming, width, 3, stride=stride, padding=1, bias=False),
                    bn=nn.BatchNorm2d(width),
                    relu=nn.ReLU(),
                )
            )
            incoming = width
        self.blocks = nn.Sequential(blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(incoming, num_classes)
        initialize_convolutions(self)

    @no_type_check  # torch.fx hands in proxies, which the tests' shape checks would refuse
    def forward(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch class"]:
        """Returns the logits of images in [0, 1]."""
        features = self.blocks(self.normalize(images))
        return self.head(self.flatten(self.pool(features)))


def initialize_convolutions(model: nn.Module) -> None:
    """Draws every convolution's weights from N(0, 2 / fan_out), as published ResNets do.

    He et al. 2015, eq. 14. With batch norm in eval mode and its running statistics still at 0
    and 1, nothing else sets the scale of the activations: torch's own default (a variance six
    times too small after a ReLU) would let them fade layer by layer.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
