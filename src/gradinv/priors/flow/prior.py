"""A flow as a prior: samples by integration, and what a noisy image was before."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from gradinv.errors import PriorError
from gradinv.priors.flow.network import UNet
from gradinv.priors.generator import Generator, register

Images = Float[Tensor, "batch channel height width"]


@register("flow")
class FlowPrior(Generator):
    """Noise carried to images along a learned velocity field (Lipman et al. 2023).

    A point on the way is x_t = (1 - t) z + t x, with noise z and an image x whose pixels are taken
    from -1 to 1; the field is the mean of x - z there. As a generator it maps z, of the image's
    shape, to the end of its way; as a denoiser it tells the mean of all x that x_t may come from.

    Args:
        image_size: height and width in pixels, a multiple of 4.
        channels: 1 or 3.
        base_channels: of the U-Net at the image's size.
        steps: of Heun's method from noise to image, two evaluations each.

    Raises:
        PriorError: sizes that cannot be.
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        channels: int = 3,
        base_channels: int = 48,
        steps: int = 8,
    ) -> None:
        super().__init__()
        sizes = {
            "image_size": image_size, "channels": channels, "base_channels": base_channels,
            "steps": steps,
        }  # fmt: skip
        if any(type(size) is not int or size < 1 for size in sizes.values()):
            raise PriorError(
                f"expected {', '.join(sizes)} as whole numbers above 0, got "
                f"{', '.join(f'{name} {size}' for name, size in sizes.items())}; mend the settings"
            )
        if image_size % 4 or base_channels % 2:
            raise PriorError(
                "expected an image size that is a multiple of 4 and an even base_channels for "
                f"flow, got {image_size} and {base_channels}; choose --image-size 32 or 64"
            )
        self.field = UNet(channels, base_channels)
        self.image_shape = (channels, image_size, image_size)
        self.latent_shape = self.image_shape
        self.base_channels, self.steps = base_channels, steps

    def config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            "image_size": self.image_shape[1],
            "channels": self.image_shape[0],
            "base_channels": self.base_channels,
            "steps": self.steps,
        }

    def velocity(self, x: Images, t: Float[Tensor, " batch"]) -> Images:
        """Returns the field at pixels from -1 to 1 and at times from 0 (noise) to 1 (image)."""
        return self.field(x, t)

    def denoise(self, x: Images, t: Float[Tensor, " batch"]) -> Images:
        """Returns the mean of the images that x = (1 - t) z + t image may come from.

        Args:
            x: pixels from -1 to 1, with noise.
            t: share of the image in each.
        """
        return x + (1 - t)[:, None, None, None] * self.velocity(x, t)

    def forward(self, z: Images) -> Images:
        """Returns the images in [0, 1] at the ends of the ways that start in z.

        Heun's method with equal steps; the last is Euler's, because it needs the field at its
        start alone, where an image is not yet whole.
        """
        x, size = z, 1 / self.steps
        for step in range(self.steps):
            now = x.new_full((len(x),), step * size)
            slope = self.velocity(x, now)
            if step < self.steps - 1:
                slope = (slope + self.velocity(x + size * slope, now + size)) / 2
            x = x + size * slope
        return (x / 2 + 0.5).clamp(0, 1)
