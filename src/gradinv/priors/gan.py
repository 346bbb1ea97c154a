"""One training of a DCGAN that shares its generator with a VAE: its settings, state and step."""

import time
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from gradinv.errors import PriorError
from gradinv.priors.augment import augment
from gradinv.priors.dcgan import DCGAN, Discriminator, Encoder
from gradinv.priors.footprint import training_bytes, without_memory
from gradinv.priors.trainer import draw_images, require_images, require_settings, update_average
from gradinv.state import load_optimizer_tensors, optimizer_tensors, take_prefix, with_prefix


@dataclass(frozen=True)
class TrainingConfig:
    """How a DCGAN is trained; everything that changes the result.

    Attributes:
        base_channels: width of both networks.
        latent_dim: length of z.
        loss: ``hinge`` (Miyato et al. 2018) or ``non-saturating`` (Goodfellow et al. 2014).
        batch_size: images a step, a multiple of 4.
        lr: Adam's step size for the generator.
        lr_discriminator: Adam's step size for the discriminator.
        ema: decay of the weight average that is kept as the prior.
        r1: weight of the R1 penalty (Mescheder et al. 2018), applied every 16 steps; 0 for none.
        spectral_norm: in the discriminator; without it, use ``r1``.
        reconstruction: standard deviation of a pixel in the likelihood of a VAE that shares the
            generator (Larsen et al. 2016, VAE/GAN): an encoder and the term
            |x - G(E(x))|^2 / (2 sigma^2) + KL make G cover the data, which is what searching its
            latents needs, and learn in a fraction of the time. 0 trains a plain GAN.
        adversarial: weight of the adversarial loss beside the reconstruction term.
        flip: mirror half of the real images.
        precision: ``bf16`` runs convolutions under autocast (1.6 times as fast where the processor
            has the instructions); ``fp32`` does not.
        seed: of weights, order of images, latents and augmentation.

    Raises:
        ConfigError: a value that has no meaning.
    """

    base_channels: int = 48
    latent_dim: int = 128
    loss: Literal["hinge", "non-saturating"] = "hinge"
    batch_size: int = 64
    lr: float = 1e-3
    lr_discriminator: float = 4e-4
    ema: float = 0.999
    r1: float = 0.0
    spectral_norm: bool = True
    reconstruction: float = 0.1
    adversarial: float = 0.02
    flip: bool = False
    precision: Literal["bf16", "fp32"] = "fp32"
    seed: int = 0
    architecture: ClassVar[str] = "dcgan"

    def __post_init__(self) -> None:
        require_settings(
            self,
            counts=("base_channels", "latent_dim", "batch_size"),
            rates=("lr", "lr_discriminator"),
            weights=("r1", "reconstruction", "adversarial"),
        )

    def sizes(self, image_shape: tuple[int, int, int]) -> dict[str, int]:
        """Returns the sizes that all networks of a training share."""
        channels, image_size, _ = image_shape
        return {
            "image_size": image_size, "channels": channels, "base_channels": self.base_channels,
        }  # fmt: skip

    def footprint(self, image_shape: tuple[int, int, int]) -> int:
        """Returns the bytes that a training takes at least."""
        sizes = self.sizes(image_shape)
        generator = without_memory(DCGAN, **sizes, latent_dim=self.latent_dim)
        judge = without_memory(Discriminator, **sizes, spectral_norm=False)
        return training_bytes(generator, judge, (self.batch_size, *image_shape))

    def trainer(
        self, images: UInt8[Tensor, "n channel height width"], device: torch.device
    ) -> "GanTrainer":
        """Returns a new training."""
        return GanTrainer(images, self, device)


class GanTrainer:
    """State of one training and its step.

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
        config: TrainingConfig,
        device: torch.device,
    ) -> None:
        require_images(images, config.batch_size)
        self.images = images.to(device)
        self.config = config
        self.device = device
        _, channels, height, width = images.shape
        architecture = config.sizes((channels, height, width))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.generator = DCGAN(**architecture, latent_dim=config.latent_dim).to(device)
            self.discriminator = Discriminator(
                **architecture, spectral_norm=config.spectral_norm
            ).to(device)
        self.average = DCGAN(**architecture, latent_dim=config.latent_dim).to(device)
        self.average.load_state_dict(self.generator.state_dict())
        self.average.eval().requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed + 1)
            self.encoder = Encoder(**architecture, latent_dim=config.latent_dim).to(device)
        if device.type == "cpu":
            # With bf16 this layout is 1.7 times as fast as fp32 on the processors measured.
            for network in (self.generator, self.discriminator, self.encoder):
                network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        betas = (0.5, 0.999)
        learned = [*self.generator.parameters()]
        if config.reconstruction:
            learned += self.encoder.parameters()
        self.generator_optimizer = torch.optim.Adam(learned, lr=config.lr, betas=betas, fused=True)
        self.discriminator_optimizer = torch.optim.Adam(
            self.discriminator.parameters(), lr=config.lr_discriminator, betas=betas, fused=True
        )
        self.source = torch.Generator().manual_seed(config.seed)
        self.step_count = 0
        self.seconds = 0.0

    def _real(self) -> Float[Tensor, "batch channel height width"]:
        batch_size, flipped = self.config.batch_size, self.config.flip
        return draw_images(self.images, batch_size, self.source, flipped=flipped)

    def _fake(self) -> Float[Tensor, "batch channel height width"]:
        z = self.generator.sample_latents(self.config.batch_size, self.source)
        return self.generator(z)

    def _scores(self, images: Tensor) -> Float[Tensor, "batch"]:
        return self.discriminator(augment(images, self.source)).float()

    def _reconstruction_loss(self, real: Tensor) -> Float[Tensor, ""]:
        """Returns the negative ELBO per pixel of a Gaussian likelihood."""
        mean, log_variance = self.encoder(real)
        noise = torch.randn(mean.shape, generator=self.source).to(mean)
        rebuilt = self.generator(mean + noise * (0.5 * log_variance).exp()).float()
        error = (rebuilt - real).square().mean() / (2 * self.config.reconstruction**2)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)
        return error + divergence.mean() / real[0].numel()

    def _r1_penalty(self, real: Tensor) -> Float[Tensor, ""]:
        real = real.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.discriminator(real).sum(), real, create_graph=True)
        return gradient.square().sum(dim=(1, 2, 3)).mean()

    def step(self) -> tuple[float, float]:
        """Trains both networks on one batch.

        Returns:
            The losses of generator and discriminator.

        Raises:
            PriorError: a loss is no longer finite.
        """
        started = time.perf_counter()
        hinge = self.config.loss == "hinge"
        autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"
        )
        with autocast:
            with torch.no_grad():
                fake = self._fake()
            real = self._real()
            scores = self._scores(torch.cat([real, fake.to(real.dtype)]))
            real_score, fake_score = scores.chunk(2)
            if hinge:
                loss = F.relu(1 - real_score).mean() + F.relu(1 + fake_score).mean()
            else:
                loss = F.softplus(-real_score).mean() + F.softplus(fake_score).mean()
        discriminator_loss = loss.item()
        if self.config.r1 and self.step_count % 16 == 0:
            loss = loss + 0.5 * 16 * self.config.r1 * self._r1_penalty(real)
        self.discriminator_optimizer.zero_grad()
        loss.backward()
        self.discriminator_optimizer.step()

        self.discriminator.requires_grad_(False)
        with autocast:
            score = self._scores(self._fake())
            loss = -score.mean() if hinge else F.softplus(-score).mean()
            if self.config.reconstruction:
                loss = self.config.adversarial * loss + self._reconstruction_loss(real)
        generator_loss = loss.item()
        self.generator_optimizer.zero_grad()
        loss.backward()
        self.generator_optimizer.step()
        self.discriminator.requires_grad_(True)

        update_average(self.average, self.generator, decay=self.config.ema, step=self.step_count)
        self.step_count += 1
        self.seconds += time.perf_counter() - started
        if not (abs(generator_loss) < 1e6 and abs(discriminator_loss) < 1e6):
            raise PriorError(
                f"expected finite losses, got {generator_loss} and {discriminator_loss} at step "
                f"{self.step_count}; lower the learning rate or use another seed"
            )
        return generator_loss, discriminator_loss

    def state(self) -> dict[str, Tensor]:
        """Returns all tensors that the next step depends on."""
        return {
            **with_prefix("generator", self.generator.state_dict()),
            **with_prefix("discriminator", self.discriminator.state_dict()),
            **with_prefix("average", self.average.state_dict()),
            **with_prefix("encoder", self.encoder.state_dict()),
            **with_prefix("generator_optimizer", optimizer_tensors(self.generator_optimizer)),
            **with_prefix(
                "discriminator_optimizer", optimizer_tensors(self.discriminator_optimizer)
            ),
            "source": self.source.get_state(),
        }

    def load_state(self, tensors: dict[str, Tensor], *, step: int, seconds: float) -> None:
        """Puts back what :meth:`state` returned."""
        modules: tuple[tuple[str, nn.Module], ...] = (
            ("generator", self.generator),
            ("discriminator", self.discriminator),
            ("average", self.average),
            ("encoder", self.encoder),
        )
        for name, module in modules:
            module.load_state_dict(take_prefix(name, tensors))
        load_optimizer_tensors(
            self.generator_optimizer, take_prefix("generator_optimizer", tensors)
        )
        load_optimizer_tensors(
            self.discriminator_optimizer, take_prefix("discriminator_optimizer", tensors)
        )
        self.source.set_state(tensors["source"])
        self.step_count, self.seconds = step, seconds
