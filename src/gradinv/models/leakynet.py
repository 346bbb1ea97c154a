"""A network without pooling and with a strictly monotone activation: what R-GAP can peel."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import no_type_check

from jaxtyping import Float
from torch import Tensor, nn

from gradinv.models.normalize import Normalize


class LeakyNet(nn.Module):
    """5x5 convolutions of stride 2 with LeakyReLU, and a linear head on everything that is left.

    With the default widths every linear system of R-GAP (Zhu and Blaschko 2021) has full rank; a
    narrower first layer leaves part of the image open.

    Args:
        num_classes: number of logits.
        channels: channels of the images.
        image_size: height and width of the images.
        widths: output channels of each convolution; (4 channels, 12) when None.
        mean: of the images in [0, 1], one for each channel; 0.5 when None.
        std: of the images in [0, 1], one for each channel; 0.25 when None.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 3,
        image_size: int = 32,
        widths: Sequence[int] | None = None,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean or [0.5] * channels, std or [0.25] * channels)
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        incoming, side = channels, image_size
        for number, width in enumerate(widths or (4 * channels, 12), start=1):
            blocks[f"conv{number}"] = nn.Conv2d(incoming, width, 5, stride=2, padding=2)
            blocks[f"leaky{number}"] = nn.LeakyReLU(0.2)
            incoming, side = width, (side + 1) // 2
        self.blocks = nn.Sequential(blocks)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(incoming * side**2, num_classes)

    @no_type_check  # torch.fx hands in proxies, which the tests' shape checks would refuse
    def forward(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch class"]:
        """Returns the logits of images in [0, 1]."""
        return self.head(self.flatten(self.blocks(self.normalize(images))))
