"""One training of a StyleGAN2: its settings, state and step."""

import copy
import math
import time
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from gradinv.errors import ConfigError, PriorError
from gradinv.priors.augment import augment
from gradinv.priors.footprint import training_bytes, without_memory
from gradinv.priors.stylegan2.discriminator import StyleDiscriminator
from gradinv.priors.stylegan2.generator import StyleGAN2
from gradinv.priors.trainer import draw_images, require_images, require_settings, update_average
from gradinv.state import load_optimizer_tensors, optimizer_tensors, take_prefix, with_prefix

_R1_EVERY, _PATH_EVERY = 16, 4
_AVERAGE_STYLE_DECAY = 0.998
_PATH_DECAY = 0.01


@dataclass(frozen=True)
class StyleGAN2Config:
    """How a StyleGAN2 is trained; everything that changes the result.

    Attributes:
        base_channels: of both networks at the image's size.
        latent_dim: length of z and of w.
        mapping_layers: of the mapping network.
        batch_size: images a step, a multiple of 4.
        lr: Adam's step size for the generator.
        lr_discriminator: Adam's step size for the discriminator.
        ema: decay of the weight average that is kept as the prior.
        r1: weight of the R1 penalty (Mescheder et al. 2018), every 16 steps and 16 times as heavy.
        mixing: share of the images that get the styles of a second z from some layer on.
        path_length: weight of the path length penalty (Karras et al. 2020, eq. 4), every 4 steps
            and 4 times as heavy; 0 for none.
        flip: mirror half of the real images.
        precision: ``bf16`` runs convolutions under autocast.
        seed: of weights, order of images, latents, noise and augmentation.

    Raises:
        ConfigError: a value that has no meaning.
    """

    base_channels: int = 32
    latent_dim: int = 256
    mapping_layers: int = 4
    batch_size: int = 64
    lr: float = 2e-3
    lr_discriminator: float = 2e-3
    ema: float = 0.999
    r1: float = 0.1
    mixing: float = 0.9
    path_length: float = 0.0
    flip: bool = False
    precision: Literal["bf16", "fp32"] = "fp32"
    seed: int = 0
    architecture: ClassVar[str] = "stylegan2"

    def __post_init__(self) -> None:
        require_settings(
            self,
            counts=("base_channels", "latent_dim", "mapping_layers", "batch_size"),
            rates=("lr", "lr_discriminator"),
            weights=("r1", "path_length"),
        )
        if not 0 <= self.mixing <= 1:
            raise ConfigError(f"expected mixing in [0, 1], got {self.mixing}; try 0.9")

    def sizes(self, image_shape: tuple[int, int, int]) -> dict[str, int]:
        """Returns the sizes that both networks share."""
        channels, image_size, _ = image_shape
        return {
            "image_size": image_size, "channels": channels, "base_channels": self.base_channels,
        }  # fmt: skip

    def footprint(self, image_shape: tuple[int, int, int]) -> int:
        """Returns the bytes that a training takes at least."""
        sizes = self.sizes(image_shape)
        generator = without_memory(
            StyleGAN2, **sizes, latent_dim=self.latent_dim, mapping_layers=self.mapping_layers
        )
        judge = without_memory(StyleDiscriminator, **sizes)
        return training_bytes(generator, judge, (self.batch_size, *image_shape))

    def trainer(
        self, images: UInt8[Tensor, "n channel height width"], device: torch.device
    ) -> "StyleGAN2Trainer":
        """Returns a new training."""
        return StyleGAN2Trainer(images, self, device)


class StyleGAN2Trainer:
    """State of one training and its step (Karras et al. 2020; augmented as Zhao et al. 2020).

    The non-saturating loss, lazy R1, style mixing, noise drawn anew for every image, a running
    average of the weights as the result. Real and generated images are augmented alike, so that
    the discriminator cannot learn few images by heart and no augmentation shows in the samples.

    Args:
        images: (n, channel, height, width) in 0..255, on any device.
        config: how to train.
        device: where to train.

    Raises:
        ConfigError: a batch size that does not divide by 4.
        DataError: fewer images than a batch.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n channel height width"],
        config: StyleGAN2Config,
        device: torch.device,
    ) -> None:
        require_images(images, config.batch_size)
        self.images = images.to(device)
        self.config = config
        self.device = device
        _, channels, height, width = images.shape
        sizes = config.sizes((channels, height, width))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.generator = StyleGAN2(
                image_size=height,
                channels=channels,
                base_channels=config.base_channels,
                latent_dim=config.latent_dim,
                mapping_layers=config.mapping_layers,
            ).to(device)
            self.discriminator = StyleDiscriminator(**sizes).to(device)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        # A lazy penalty changes every so many steps only; Adam's memory is shortened to match.
        self.generator_optimizer = self._adam(
            self.generator, config.lr, _PATH_EVERY if config.path_length else None
        )
        self.discriminator_optimizer = self._adam(
            self.discriminator, config.lr_discriminator, _R1_EVERY if config.r1 else None
        )
        self.source = torch.Generator().manual_seed(config.seed)
        # Noise is large and drawn where it is needed.
        self.noise_source = torch.Generator(device).manual_seed(config.seed)
        self.path_mean = torch.zeros((), device=device)
        self.step_count = 0
        self.seconds = 0.0

    @staticmethod
    def _adam(network: nn.Module, lr: float, every: int | None) -> torch.optim.Adam:
        share = 1.0 if every is None else every / (every + 1)
        return torch.optim.Adam(
            network.parameters(), lr=lr * share, betas=(0.0, 0.99**share), fused=True
        )

    def _real(self) -> Float[Tensor, "batch channel height width"]:
        batch_size, flipped = self.config.batch_size, self.config.flip
        return draw_images(self.images, batch_size, self.source, flipped=flipped)

    def _styles(self, count: int) -> Float[Tensor, "batch layer style"]:
        """Draws the styles of a batch; some change to those of another z from some layer on."""
        generator = self.generator
        first, second = generator.mapping(generator.sample_latents(2 * count, self.source)).chunk(2)
        layers = generator.layers
        mixed = torch.rand(count, generator=self.source) < self.config.mixing
        cut = torch.randint(1, layers, (count,), generator=self.source)
        cut = torch.where(mixed, cut, layers)
        other = (torch.arange(layers) >= cut[:, None]).to(self.device)
        self._track(first)
        return torch.where(other[:, :, None], second[:, None], first[:, None])

    @torch.no_grad()
    def _track(self, w: Float[Tensor, "batch style"]) -> None:
        """Moves the average style, which truncation starts from."""
        self.generator.mapping.average.lerp_(w.float().mean(dim=0), 1 - _AVERAGE_STYLE_DECAY)

    def _images(
        self, w: Float[Tensor, "batch layer style"]
    ) -> Float[Tensor, "batch channel height width"]:
        synthesis = self.generator.synthesis
        noise = [
            torch.randn((len(w), 1, size, size), generator=self.noise_source, device=self.device)
            for size in synthesis.noise_sizes
        ]
        return self.generator.bounded(synthesis(w, noise))

    def _scores(self, images: Tensor) -> Float[Tensor, "batch"]:
        return self.discriminator(augment(images, self.source)).float()

    def _r1_penalty(self, real: Tensor) -> Float[Tensor, ""]:
        """Returns the mean squared norm of the scores' gradient at real images."""
        real = real.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self._scores(real).sum(), real, create_graph=True)
        # In the units of the discriminator, which sees pixels from -1 to 1.
        return (gradient / 2).square().sum(dim=(1, 2, 3)).mean()

    def _path_penalty(self) -> Float[Tensor, ""]:
        """Returns the mean squared deviation of |J^T y| from its running mean, y ~ N(0, I)."""
        w = self._styles(max(1, self.config.batch_size // 2))
        images = self._images(w)
        y = torch.randn(images.shape, generator=self.noise_source, device=self.device)
        y = y / math.sqrt(images[0, 0].numel())
        (gradient,) = torch.autograd.grad((images * y).sum(), w, create_graph=True)
        lengths = gradient.square().sum(dim=2).mean(dim=1).sqrt()
        self.path_mean.lerp_(lengths.detach().mean(), _PATH_DECAY)
        return (lengths - self.path_mean).square().mean()

    def step(self) -> tuple[float, float]:
        """Trains both networks on one batch.

        Returns:
            The losses of generator and discriminator.

        Raises:
            PriorError: a loss is no longer finite.
        """
        started = time.perf_counter()
        config = self.config
        autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=config.precision == "bf16"
        )
        with autocast:
            with torch.no_grad():
                fake = self._images(self._styles(config.batch_size))
            real = self._real()
            scores = self._scores(torch.cat([real, fake.to(real.dtype)]))
            real_score, fake_score = scores.chunk(2)
            judged = F.softplus(-real_score).mean() + F.softplus(fake_score).mean()
        loss = judged
        if config.r1 and self.step_count % _R1_EVERY == 0:
            loss = loss + 0.5 * _R1_EVERY * config.r1 * self._r1_penalty(real)
        self.discriminator_optimizer.zero_grad()
        loss.backward()
        self.discriminator_optimizer.step()

        self.discriminator.requires_grad_(False)
        with autocast:
            made = F.softplus(-self._scores(self._images(self._styles(config.batch_size)))).mean()
        loss = made
        if config.path_length and self.step_count % _PATH_EVERY == 0:
            loss = loss + _PATH_EVERY * config.path_length * self._path_penalty()
        self.generator_optimizer.zero_grad()
        loss.backward()
        self.generator_optimizer.step()
        self.discriminator.requires_grad_(True)

        update_average(self.average, self.generator, decay=config.ema, step=self.step_count)
        self.step_count += 1
        losses = torch.stack([made.detach(), judged.detach()]).tolist()
        self.seconds += time.perf_counter() - started
        if not all(abs(value) < 1e6 for value in losses):
            raise PriorError(
                f"expected finite losses, got {losses[0]} and {losses[1]} at step "
                f"{self.step_count}; lower the learning rate or use another seed"
            )
        return losses[0], losses[1]

    def state(self) -> dict[str, Tensor]:
        """Returns all tensors that the next step depends on."""
        return {
            **with_prefix("generator", self.generator.state_dict()),
            **with_prefix("discriminator", self.discriminator.state_dict()),
            **with_prefix("average", self.average.state_dict()),
            **with_prefix("generator_optimizer", optimizer_tensors(self.generator_optimizer)),
            **with_prefix(
                "discriminator_optimizer", optimizer_tensors(self.discriminator_optimizer)
            ),
            "source": self.source.get_state(),
            "noise_source": self.noise_source.get_state(),
            "path_mean": self.path_mean,
        }

    def load_state(self, tensors: dict[str, Tensor], *, step: int, seconds: float) -> None:
        """Puts back what :meth:`state` returned."""
        for name in ("generator", "discriminator", "average"):
            getattr(self, name).load_state_dict(take_prefix(name, tensors))
        for name in ("generator_optimizer", "discriminator_optimizer"):
            load_optimizer_tensors(getattr(self, name), take_prefix(name, tensors))
        self.source.set_state(tensors["source"])
        self.noise_source.set_state(tensors["noise_source"])
        self.path_mean.copy_(tensors["path_mean"])
        self.step_count, self.seconds = step, seconds
