"""The loss that a client trains with: cross entropy in its usual variants, or a sigmoid's."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from gradinv.errors import ConfigError, did_you_mean

Kind = Literal["cross-entropy", "bce"]
Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class Loss:
    """A loss of logits and labels, as ``torch.nn.functional`` computes it.

    Attributes:
        kind: "cross-entropy" of the softmax, or "bce", the binary cross entropy of each logit's
            sigmoid against one-hot labels. A single logit is that of the second of two classes.
        reduction: "mean" over the images (of bce over images and logits), or "sum".
        smoothing: share of every label that is spread evenly over all classes, in [0, 1).
        weights: of the classes; of bce, of the logits. All 1 when None.
        scale: that the loss is multiplied with.

    Raises:
        ConfigError: a value that has no meaning.
    """

    kind: Kind = "cross-entropy"
    reduction: Reduction = "mean"
    smoothing: float = 0.0
    weights: tuple[float, ...] | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(
                f"expected a loss among {', '.join(get_args(Kind))}, got {self.kind!r}; "
                f"{did_you_mean(str(self.kind), get_args(Kind))}"
            )
        if self.reduction not in get_args(Reduction):
            raise ConfigError(
                f"expected the reduction mean or sum of a loss, got {self.reduction!r}; choose one"
            )
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"expected label smoothing in [0, 1), got {self.smoothing}; try 0.1")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(
                f"expected a loss's scale above 0 and finite, got {self.scale}; leave it at 1"
            )
        if self.weights is not None and not (
            self.weights and all(math.isfinite(value) and value > 0 for value in self.weights)
        ):
            raise ConfigError(
                f"expected class weights above 0 and finite, got {self.weights}; "
                "give one for each class"
            )

    @property
    def proves_signs(self) -> bool:
        """Whether dl/dz_c is below zero for the label's class alone, whatever the image.

        A smoothed label asks for some of every class, so any class can fall short of it.
        """
        return self.kind == "cross-entropy" and self.smoothing == 0

    def classes(self, width: int) -> int:
        """Returns how many classes ``width`` logits tell apart."""
        return 2 if self.kind == "bce" and width == 1 else width

    def factor(self, batch: int) -> float:
        """Returns the loss over that of the mean with scale 1, where all weights are equal."""
        return self.scale * (batch if self.reduction == "sum" else 1)

    def __call__(
        self,
        logits: Float[Tensor, "batch logit"],
        labels: Int[Tensor, " batch"] | Float[Tensor, "batch class"],
    ) -> Float[Tensor, ""]:
        """Returns the loss of one batch.

        Args:
            logits: of the network.
            labels: as classes, or as one distribution over the classes for each image.

        Raises:
            ConfigError: another number of class weights than of logits.
        """
        width = logits.shape[1]
        weights = None
        if self.weights is not None:
            if len(self.weights) != width:
                raise ConfigError(
                    f"expected {width} class weights (the network's logits), got "
                    f"{len(self.weights)}; give one for each"
                )
            weights = logits.new_tensor(self.weights)
        if self.kind == "cross-entropy":
            value = functional.cross_entropy(
                logits,
                labels,
                weight=weights,
                reduction=self.reduction,
                label_smoothing=self.smoothing,
            )
        else:
            value = functional.binary_cross_entropy_with_logits(
                logits, self._targets(labels, logits), weight=weights, reduction=self.reduction
            )
        # A product with 1 changes no bit, but it is one more operation in every graph.
        return value if self.scale == 1 else self.scale * value

    def _targets(self, labels: Tensor, logits: Tensor) -> Tensor:
        classes = self.classes(logits.shape[1])
        hot = labels if labels.is_floating_point() else functional.one_hot(labels, classes)
        hot = (1 - self.smoothing) * hot.to(logits) + self.smoothing / classes
        return hot[:, 1:] if logits.shape[1] == 1 else hot

    def __str__(self) -> str:
        """Returns the text that :func:`parse_loss` reads as this loss."""
        settings: list[str] = []
        if self.reduction != "mean":
            settings.append(f"reduction={self.reduction}")
        if self.smoothing:
            settings.append(f"smoothing={self.smoothing!r}")
        if self.weights is not None:
            settings.append("weights=" + "/".join(repr(value) for value in self.weights))
        if self.scale != 1:
            settings.append(f"scale={self.scale!r}")
        return ":".join([self.kind, *([",".join(settings)] if settings else [])])


def parse_loss(spec: str) -> Loss:
    """Returns the loss that a text names, such as ``cross-entropy:smoothing=0.1,scale=0.5``.

    Class weights stand as ``weights=1/2/1``.

    Raises:
        ConfigError: no such loss or setting, or a value that has no meaning.
    """
    kind, settings = settings_of_spec(spec, ("reduction", "smoothing", "weights", "scale"))
    values: dict[str, Any] = {"kind": kind}
    for name, text in settings.items():
        if name == "reduction":
            values[name] = text
        elif name == "weights":
            values[name] = tuple(number(part, spec) for part in text.split("/"))
        else:
            values[name] = number(text, spec)
    return Loss(**values)


def settings_of_spec(spec: str, known: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Splits ``name:key=value,key=value``; a key alone has the value "true".

    Raises:
        ConfigError: a key that is not known, or one that is given twice.
    """
    name, _, rest = spec.partition(":")
    settings: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if key not in known:
            raise ConfigError(
                f"expected settings among {', '.join(known)} in {spec!r}, got {key!r}; "
                f"{did_you_mean(key, known)}"
            )
        if key in settings:
            raise ConfigError(f"expected {key} once in {spec!r}, got it twice; leave one out")
        settings[key] = value if equals else "true"
    return name, settings


def number(text: str, spec: str) -> float:
    """Returns a number of a spec.

    Raises:
        ConfigError: it is none.
    """
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(
            f"expected a number in {spec!r}, got {text!r}; write one such as 0.1"
        ) from error
