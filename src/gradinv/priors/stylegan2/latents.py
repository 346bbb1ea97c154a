"""W, W+ and noise of StyleGAN2 as generators of their own, in coordinates like those of z."""

import torch
from jaxtyping import Float
from torch import Tensor

from gradinv.priors.generator import Generator
from gradinv.priors.stylegan2.generator import StyleGAN2

SPACES = ("w", "w+", "w+n")
_SAMPLES = 4096


class LayeredLatents(Generator):
    """The synthesis network as a generator; latents are styles, centred and scaled.

    A latent u stands for w = mean + deviation * u, with the mean and the deviation of each
    coordinate over the styles of random z, so that learning rates for standard normal latents fit.
    The mapping network is no part of it: a search over this generator's weights leaves it alone,
    as Jeon et al. 2021 do.

    Args:
        generator: whose styles they are.
        name: "w", one style for all layers of an image; "w+", one for each; "w+n", one for each
            and the noise of all layers after them, in one vector.
    """

    mean: Float[Tensor, " style"]
    deviation: Float[Tensor, " style"]

    def __init__(self, generator: StyleGAN2, name: str) -> None:
        super().__init__()
        self.synthesis = generator.synthesis
        # Not a submodule: its mapping network is not to be searched.
        self._whole = (generator,)
        self.name = name
        style, layers = generator.latent_shape[0], generator.layers
        self._styles = layers * style
        self._noises = [size * size for size in generator.synthesis.noise_sizes]
        self.latent_shape = {
            "w": (style,),
            "w+": (layers, style),
            "w+n": (self._styles + sum(self._noises),),
        }[name]
        self.image_shape = generator.image_shape
        with torch.no_grad():
            source = torch.Generator().manual_seed(0)
            w = generator.styles(generator.sample_latents(_SAMPLES, source))
        self.register_buffer("mean", w.mean(dim=0))
        self.register_buffer("deviation", w.std(dim=0).clamp_min(1e-6))
        self.train(generator.training)

    def forward(
        self, z: Float[Tensor, "batch *latent"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Returns the images of such latents, in [0, 1]."""
        (generator,) = self._whole
        noise, styles = generator.noise, z
        if self.name == "w+n":
            styles = z[:, : self._styles].unflatten(1, (generator.layers, -1))
            flat = z[:, self._styles :].split(self._noises, dim=1)
            sizes = generator.synthesis.noise_sizes
            noise = [
                part.reshape(-1, 1, size, size) for part, size in zip(flat, sizes, strict=True)
            ]
        w = self.mean + self.deviation * styles
        if self.name == "w":
            w = w[:, None].expand(-1, generator.layers, -1)
        return generator.bounded(self.synthesis(w, noise))

    @torch.no_grad()
    def sample_latents(
        self, count: int, generator: torch.Generator
    ) -> Float[Tensor, "batch *latent"]:
        """Draws the latents of ``count`` random z: samples of the prior, noise included."""
        (whole,) = self._whole
        w = whole.styles(whole.sample_latents(count, generator))
        latents = (w - self.mean) / self.deviation
        if self.name == "w":
            return latents
        layered = latents[:, None].expand(-1, whole.layers, -1)
        if self.name == "w+":
            return layered.clone()
        noise = torch.randn((count, sum(self._noises)), generator=generator).to(latents)
        return torch.cat([layered.flatten(1), noise], dim=1)

    def untrained(self, generator: torch.Generator) -> Generator:
        """Returns the same space of the architecture with random weights."""
        (whole,) = self._whole
        return whole.untrained(generator).latent_space(self.name)
