"""A small client's network that a CPU attacks in minutes."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import no_type_check

from jaxtyping import Float
from torch import Tensor, nn

from gradinv.models.normalize import Normalize


class ConvNet(nn.Module):
    """Conv-BN-ReLU blocks and a linear head over all that is left of the image.

    Every second block halves the image, so six blocks take 32 pixels to 4, and the head sees
    128 * 4 * 4 features, as the networks of Zhu et al. 2019 and Geiping et al. 2020 do. Global
    average pooling in front of the head would make a much harder victim, and hide what a network
    without it gives away. Weights start as torch draws them. Convolutions have no bias: batch
    norm's shift does that work. ReLUs are modules and not in place, so that ``torch.fx`` can trace
    the network.

    Args:
        num_classes: number of logits.
        channels: channels of the images.
        image_size: height and width of the images in pixels.
        widths: output channels of each block.
        mean: of the images in [0, 1], one for each channel; 0.5 when None.
        std: of the images in [0, 1], one for each channel; 0.25 when None.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 3,
        image_size: int = 32,
        *,
        widths: Sequence[int] = (32, 32, 64, 64, 128, 128),
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean or [0.5] * channels, std or [0.25] * channels)
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        incoming, side = channels, image_size
        for number, width in enumerate(widths, start=1):
            stride = 2 if number % 2 == 0 else 1
            blocks[f"block{number}"] = nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(incoming, width, 3, stride=stride, padding=1, bias=False),
                    bn=nn.BatchNorm2d(width),
                    relu=nn.ReLU(),
                )
            )
            incoming, side = width, (side + stride - 1) // stride
        self.blocks = nn.Sequential(blocks)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(incoming * side**2, num_classes)

    @no_type_check  # torch.fx hands in proxies, which the tests' shape checks would refuse
    def forward(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch class"]:
        """Returns the logits of images in [0, 1]."""
        features = self.blocks(self.normalize(images))
        return self.head(self.flatten(features))
