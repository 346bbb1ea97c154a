"""What every training of a prior is, whatever the architecture: a state and its step."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from gradinv.errors import ConfigError, DataError
from gradinv.priors.augment import flip
from gradinv.priors.generator import Generator
from gradinv.seeds import require_seed


@runtime_checkable
class Settings(Protocol):
    """How a prior is trained: a frozen dataclass with everything that changes the result.

    Attributes:
        architecture: the name that the generator is registered under.
    """

    architecture: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def batch_size(self) -> int:
        """Images a step."""
        ...

    def trainer(
        self, images: UInt8[Tensor, "n channel height width"], device: torch.device
    ) -> "Trainer":
        """Returns a new training."""
        ...

    def footprint(self, image_shape: tuple[int, int, int]) -> int:
        """Returns the bytes that a training takes at least."""
        ...


@runtime_checkable
class Trainer(Protocol):
    """State of one training.

    Attributes:
        images: 0..255, on the device.
        step_count: steps done, over all sessions.
        seconds: spent on them.
    """

    images: Tensor
    step_count: int
    seconds: float

    @property
    def average(self) -> Generator:
        """The running average of the generator, in eval mode: the prior."""
        ...

    def step(self) -> tuple[float, float]:
        """Trains on one batch; returns the losses of the generator and of what judges it."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Returns all tensors that the next step depends on."""
        ...

    def load_state(self, tensors: dict[str, Tensor], *, step: int, seconds: float) -> None:
        """Puts back what :meth:`state` returned."""
        ...


@runtime_checkable
class Averaged(Protocol):
    """Settings that every architecture has."""

    @property
    def ema(self) -> float:
        """Decay of the weight average that is kept as the prior."""
        ...

    @property
    def seed(self) -> int:
        """Decides all that is drawn."""
        ...


def require_settings(
    settings: Averaged, *, counts: Sequence[str], rates: Sequence[str], weights: Sequence[str]
) -> None:
    """Checks the numbers of a training.

    Args:
        settings: whose attributes they are; ``ema`` and ``seed`` are checked in any case.
        counts: at least 1.
        rates: above 0 and finite.
        weights: at least 0 and finite.

    Raises:
        ConfigError: a value that has no meaning.
    """
    for name in counts:
        if not (value := getattr(settings, name)) >= 1:
            raise ConfigError(f"expected {name} of at least 1, got {value}; raise it")
    for name in rates:
        if not 0 < (value := getattr(settings, name)) < math.inf:
            raise ConfigError(f"expected {name} above 0 and finite, got {value}; choose another")
    for name in weights:
        if not 0 <= (value := getattr(settings, name)) < math.inf:
            raise ConfigError(
                f"expected {name} of at least 0 and finite, got {value}; use 0 for none"
            )
    if not 0 <= settings.ema < 1:
        raise ConfigError(f"expected ema in [0, 1), got {settings.ema}; try 0.999")
    require_seed(settings.seed)


def require_enough(images: Tensor, batch_size: int) -> None:
    """Checks that images fill a batch.

    Raises:
        DataError: they do not.
    """
    if len(images) < batch_size:
        raise DataError(
            f"expected at least {batch_size} images to train a prior, "
            f"got {len(images)}; use a larger folder"
        )


def require_images(images: Tensor, batch_size: int) -> None:
    """Checks that images fill a batch of groups of four, whose spread a discriminator sees.

    Raises:
        ConfigError: a batch size that does not divide by 4.
        DataError: fewer images than a batch.
    """
    if batch_size % 4:
        raise ConfigError(f"expected a batch size that divides by 4, got {batch_size}; choose 64")
    require_enough(images, batch_size)


def draw_images(
    images: UInt8[Tensor, "n channel height width"],
    count: int,
    source: torch.Generator,
    *,
    flipped: bool,
) -> Float[Tensor, "batch channel height width"]:
    """Draws images with replacement, in [0, 1], half of them mirrored if asked to.

    Args:
        images: 0..255, on any device.
        count: how many.
        source: of chance, on the CPU.
        flipped: mirror half of them.
    """
    index = torch.randint(len(images), (count,), generator=source)
    batch = images[index.to(images.device)].float() / 255
    return flip(batch, source) if flipped else batch


@torch.no_grad()
def update_average(average: nn.Module, current: nn.Module, *, decay: float, step: int) -> None:
    """Moves a running average of weights towards the present ones.

    Args:
        average: changed in place.
        current: the network in training.
        decay: share of the average that stays.
        step: how many came before. A young average forgets faster, or the initial weights would
            stay in it.
    """
    decay = min(decay, (1 + step) / (10 + step))
    floating, present = [], []
    for kept, new in zip(average.state_dict().values(), current.state_dict().values(), strict=True):
        if kept.is_floating_point():
            floating.append(kept)
            present.append(new)
        else:
            kept.copy_(new)
    # One call for all tensors: a hundred small ones would take as long as the step on a GPU.
    torch._foreach_lerp_(floating, present, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
