"""One training of a flow: its settings, state and step."""

import copy
import time
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gradinv.errors import PriorError
from gradinv.priors.flow.prior import FlowPrior
from gradinv.priors.footprint import training_bytes, without_memory
from gradinv.priors.trainer import draw_images, require_enough, require_settings, update_average
from gradinv.state import load_optimizer_tensors, optimizer_tensors, take_prefix, with_prefix

_LONGEST_GRADIENT = 1.0


@dataclass(frozen=True)
class FlowConfig:
    """How a flow is trained; everything that changes the result.

    Attributes:
        base_channels: of the U-Net at the image's size.
        batch_size: images a step.
        lr: Adam's step size.
        warmup: steps over which it rises to that.
        ema: decay of the weight average that is kept as the prior.
        flip: mirror half of the images.
        precision: ``bf16`` runs convolutions under autocast.
        seed: of weights, order of images, noise and times.

    Raises:
        ConfigError: a value that has no meaning.
    """

    base_channels: int = 48
    batch_size: int = 64
    lr: float = 1e-3
    warmup: int = 200
    ema: float = 0.999
    flip: bool = False
    precision: Literal["bf16", "fp32"] = "fp32"
    seed: int = 0
    architecture: ClassVar[str] = "flow"

    def __post_init__(self) -> None:
        require_settings(
            self, counts=("base_channels", "batch_size", "warmup"), rates=("lr",), weights=()
        )

    def footprint(self, image_shape: tuple[int, int, int]) -> int:
        """Returns the bytes that a training takes at least, the network's features left out."""
        channels, image_size, _ = image_shape
        generator = without_memory(
            FlowPrior, image_size=image_size, channels=channels, base_channels=self.base_channels
        )
        return training_bytes(generator, None, (self.batch_size, *image_shape))

    def trainer(
        self, images: UInt8[Tensor, "n channel height width"], device: torch.device
    ) -> "FlowTrainer":
        """Returns a new training."""
        return FlowTrainer(images, self, device)


class FlowTrainer:
    """State of one training and its step (Lipman et al. 2023, straight ways).

    At x_t = (1 - t) z + t x, t uniform, the field learns x - z. Times are uniform because an attack
    asks for all of them, from noise to almost clean.

    Args:
        images: (n, channel, height, width) in 0..255, on any device.
        config: how to train.
        device: where to train.

    Raises:
        DataError: fewer images than a batch.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n channel height width"],
        config: FlowConfig,
        device: torch.device,
    ) -> None:
        require_enough(images, config.batch_size)
        self.images = images.to(device)
        self.config = config
        self.device = device
        _, channels, height, _ = images.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.generator = FlowPrior(
                image_size=height, channels=channels, base_channels=config.base_channels
            ).to(device)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.generator.parameters(), lr=config.lr, fused=True)
        self.source = torch.Generator().manual_seed(config.seed)
        # Noise is large and drawn where it is needed.
        self.noise_source = torch.Generator(device).manual_seed(config.seed)
        self.step_count = 0
        self.seconds = 0.0

    def _real(self) -> Float[Tensor, "batch channel height width"]:
        """Draws images, with pixels from -1 to 1."""
        batch_size, flipped = self.config.batch_size, self.config.flip
        return 2 * draw_images(self.images, batch_size, self.source, flipped=flipped) - 1

    def _loss(self, x: Float[Tensor, "batch channel height width"]) -> Float[Tensor, ""]:
        """Returns the mean squared error of the field at random times on random ways to x."""
        z = torch.randn(x.shape, generator=self.noise_source, device=self.device)
        t = torch.rand((len(x),), generator=self.noise_source, device=self.device)
        share = t[:, None, None, None]
        autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"
        )
        with autocast:
            velocity = self.generator.velocity((1 - share) * z + share * x, t)
        return (velocity.float() - (x - z)).square().mean()

    def step(self) -> tuple[float, float]:
        """Trains on one batch.

        Returns:
            The loss, and 0: nothing judges it.

        Raises:
            PriorError: the loss is no longer finite.
        """
        started = time.perf_counter()
        rate = self.config.lr * min(1.0, (self.step_count + 1) / self.config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss(self._real())
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.generator.parameters(), _LONGEST_GRADIENT)
        self.optimizer.step()
        update_average(self.average, self.generator, decay=self.config.ema, step=self.step_count)
        self.step_count += 1
        value = loss.item()
        self.seconds += time.perf_counter() - started
        if not abs(value) < 1e6:
            raise PriorError(
                f"expected a finite loss, got {value} at step {self.step_count}; lower the "
                "learning rate or use another seed"
            )
        return value, 0.0

    def state(self) -> dict[str, Tensor]:
        """Returns all tensors that the next step depends on."""
        return {
            **with_prefix("generator", self.generator.state_dict()),
            **with_prefix("average", self.average.state_dict()),
            **with_prefix("optimizer", optimizer_tensors(self.optimizer)),
            "source": self.source.get_state(),
            "noise_source": self.noise_source.get_state(),
        }

    def load_state(self, tensors: dict[str, Tensor], *, step: int, seconds: float) -> None:
        """Puts back what :meth:`state` returned."""
        self.generator.load_state_dict(take_prefix("generator", tensors))
        self.average.load_state_dict(take_prefix("average", tensors))
        load_optimizer_tensors(self.optimizer, take_prefix("optimizer", tensors))
        self.source.set_state(tensors["source"])
        self.noise_source.set_state(tensors["noise_source"])
        self.step_count, self.seconds = step, seconds
