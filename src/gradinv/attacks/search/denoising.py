"""Plug-and-play (*ours* for gradients): a denoiser's step between those of a search over pixels.

The matching cost says nothing about what the update does not show; a denoiser that was trained on
images does. Every few steps each picture is put under noise, the less the later, and moved a part
of the way to what the denoiser takes it for. After Martin et al. 2025, PnP-Flow (Algorithm 1), who
restore single images with a known linear operator.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gradinv.errors import ConfigError
from gradinv.priors.generator import Denoiser

_CHUNK = 64  # pictures denoised at once

Images = Float[Tensor, "restart batch channel height width"]


@dataclass(frozen=True)
class Denoising:
    """What is done to the pictures of a stage between its steps.

    Attributes:
        every: steps of the search from one to the next.
        share: of the way to the denoised picture that is gone, above 0 and at most 1.
        first: share of the picture in what the denoiser sees, when the stage begins; the rest is
            noise.
        last: the same when it ends; in between it grows evenly.

    Raises:
        ConfigError: numbers outside of these.
    """

    every: int = 5
    share: float = 0.3
    first: float = 0.05
    last: float = 0.95

    def __post_init__(self) -> None:
        whole = self.every >= 1 and float(self.every).is_integer()
        if not (whole and 0 < self.share <= 1 and 0 <= self.first <= self.last <= 1):
            raise ConfigError(
                "expected denoising every 1 or more whole steps, by a share above 0 and at most 1, "
                "with first <= last share of the picture from 0 to 1, got "
                f"{self.every:g}, {self.share:g}, {self.first:g}, {self.last:g}; write "
                "denoise=5,0.3,0.05,0.95"
            )

    def due(self, step: int) -> bool:
        """Returns whether the pictures are denoised before this step of the stage; 0 is none."""
        return step > 0 and step % self.every == 0

    @torch.no_grad()
    def __call__(
        self, images: Images, denoiser: Denoiser, *, progress: float, source: torch.Generator
    ) -> Images:
        """Returns the pictures after it.

        Args:
            images: of all restarts, in [0, 1].
            denoiser: trained on pixels from -1 to 1.
            progress: of the stage, 0 to 1.
            source: of the noise, on the CPU, so that every device draws the same.
        """
        t = self.first + (self.last - self.first) * min(1.0, progress)
        own = images.flatten(0, 1)
        noise = torch.randn(own.shape, generator=source).to(own)
        seen = (1 - t) * noise + t * (2 * own - 1)
        clean = torch.cat(
            [denoiser.denoise(part, part.new_full((len(part),), t)) for part in seen.split(_CHUNK)]
        )
        clean = (clean.clamp(-1, 1) + 1) / 2
        return (own + self.share * (clean - own)).view_as(images)
