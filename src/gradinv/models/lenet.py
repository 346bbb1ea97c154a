"""The small sigmoid network on which DLG and iDLG were shown (Zhu et al. 2019)."""

from typing import no_type_check

from jaxtyping import Float
from torch import Tensor, nn


class LeNet(nn.Module):
    """Three 5x5 convolutions with strides 2, 2 and 1, sigmoids, and a linear head.

    Everything is smooth, nothing pools, and no layer throws a position away: the setting in which
    second-order gradient matching works at all. Weights and biases are drawn from U(-0.5, 0.5), as
    in the paper's code; with torch's own scale the sigmoids hardly leave their middle and the
    gradient says little about the image. There is no normalisation: pixels enter as they are.

    Args:
        num_classes: number of logits.
        channels: channels of the images.
        image_size: height and width in pixels, which the linear head depends on.
    """

    def __init__(self, num_classes: int, channels: int, image_size: int) -> None:
        super().__init__()
        side = (image_size + 3) // 4  # each stride of 2 rounds up
        self.body = nn.Sequential(
            nn.Conv2d(channels, 12, 5, stride=2, padding=2),
            nn.Sigmoid(),
            nn.Conv2d(12, 12, 5, stride=2, padding=2),
            nn.Sigmoid(),
            nn.Conv2d(12, 12, 5, padding=2),
            nn.Sigmoid(),
        )
        self.flatten = nn.Flatten()
        self.head = nn.Linear(12 * side**2, num_classes)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.5, 0.5)

    @no_type_check  # torch.fx hands in proxies, which the tests' shape checks would refuse
    def forward(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch class"]:
        """Returns the logits of images in [0, 1]."""
        return self.head(self.flatten(self.body(images)))
