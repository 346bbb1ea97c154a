"""The loss that a client trains with: cross entropy, a sigmoid's, or one of a user's own."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from gradinv.errors import ConfigError, did_you_mean
from gradinv.resolve import names_object, resolve

Kind = Literal["cross-entropy", "bce"]
Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class Loss:
    """A loss of logits and labels, as ``torch.nn.functional`` computes it, or as its owner does.

    Attributes:
        kind: "cross-entropy" of the softmax, or "bce", the binary cross entropy of each logit's
            sigmoid against one-hot labels. A single logit is that of the second of two classes.
            Or ``package.module:object``, a class of ``nn.Module`` or a function, which is called
            without arguments and gives what maps logits and labels to a scalar; of the settings
            below it takes the scale alone.
        reduction: "mean" over the images (of bce over images and logits), or "sum".
        smoothing: share of every label that is spread evenly over all classes, in [0, 1).
        weights: of the classes; of bce, of the logits. All 1 when None.
        scale: that the loss is multiplied with.

    Raises:
        ConfigError: a value that has no meaning.
    """

    kind: str = "cross-entropy"
    reduction: Reduction = "mean"
    smoothing: float = 0.0
    weights: tuple[float, ...] | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.own:
            _factory(self.kind)
            if (self.reduction, self.smoothing, self.weights) != ("mean", 0, None):
                raise ConfigError(
                    f"expected scale alone as a setting of {self.kind}, got {self}; let the loss "
                    "itself do the rest"
                )
        elif self.kind not in get_args(Kind):
            raise ConfigError(
                f"expected a loss among {', '.join(get_args(Kind))} or package.module:factory, "
                f"got {self.kind!r}; {did_you_mean(str(self.kind), get_args(Kind))}"
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
    def own(self) -> bool:
        """Whether it comes from outside the package, so that nothing is known of it."""
        return names_object(self.kind)

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
        """Returns the loss over that of the mean with scale 1, where all weights are equal.

        One of a user's own counts as a mean.
        """
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
            ConfigError: another number of class weights than of logits, or a loss of a user's own
                that fails or gives no single number.
        """
        if self.own:
            value = _computed(self.kind, logits, labels)
            return value if self.scale == 1 else self.scale * value
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


@cache
def _factory(spec: str) -> Callable[[], Any]:
    """Returns what makes a user's own loss, or the loss itself where it is an ``nn.Module``.

    Update files name their loss, and can come from anybody: nothing is called but a class of
    modules or a function of Python without arguments.

    Raises:
        ConfigError: there is no such thing.
    """
    value = resolve(spec, {}, kind="loss").value
    if isinstance(value, nn.Module):
        return lambda: value
    is_class = isinstance(value, type) and issubclass(value, nn.Module)
    if not (is_class or inspect.isfunction(value)):
        got = getattr(value, "__name__", type(value).__name__)
        raise ConfigError(
            f"expected {spec} to be a class of nn.Module or a function without arguments that "
            f"makes a loss, got {got}; write one"
        )
    return value


@cache
def _criterion(spec: str) -> Callable[..., Any]:
    """Returns a user's own loss.

    Raises:
        ConfigError: its factory fails, or makes something that cannot be called.
    """
    try:
        made = _factory(spec)()
    except Exception as error:  # foreign code, which may raise anything
        raise ConfigError(
            f"expected {spec} to make a loss from no arguments, got {type(error).__name__}: "
            f"{error}; give what it needs a default"
        ) from error
    if not callable(made):
        raise ConfigError(
            f"expected {spec} to make a function of logits and labels, got "
            f"{type(made).__name__}; return one"
        )
    return made


def _computed(spec: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Returns a user's own loss of one batch.

    Raises:
        ConfigError: it fails, or gives no single number.
    """
    made = _criterion(spec)
    if isinstance(made, nn.Module):
        made.to(logits)  # what class weights it holds
    try:
        value = made(logits, labels)
    except Exception as error:  # foreign code, which may raise anything
        raise ConfigError(
            f"expected the loss {spec} to take logits of shape {tuple(logits.shape)} and labels of "
            f"shape {tuple(labels.shape)}, got {type(error).__name__}: {error}; mend it"
        ) from error
    if not isinstance(value, Tensor) or value.ndim != 0:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(
            f"expected the loss {spec} to give one number, got {got}; take the mean or the sum"
        )
    return value


def parse_loss(spec: str) -> Loss:
    """Returns the loss that a text names, such as ``cross-entropy:smoothing=0.1,scale=0.5``.

    Class weights stand as ``weights=1/2/1``; ``package.module:factory`` or
    ``package.module:factory:scale=0.5`` is one of a user's own.

    Raises:
        ConfigError: no such loss or setting, or a value that has no meaning.
    """
    known = ("reduction", "smoothing", "weights", "scale")
    kind, settings = settings_of_spec(spec, known, own=True)
    values: dict[str, Any] = {"kind": kind}
    for name, text in settings.items():
        if name == "reduction":
            values[name] = text
        elif name == "weights":
            values[name] = tuple(number(part, spec) for part in text.split("/"))
        else:
            values[name] = number(text, spec)
    return Loss(**values)


def settings_of_spec(
    spec: str, known: tuple[str, ...], *, own: bool = False
) -> tuple[str, dict[str, str]]:
    """Splits ``name:key=value,key=value``; a key alone has the value "true".

    Args:
        spec: the text.
        known: keys that there can be.
        own: whether the name can be ``package.module:object``.

    Raises:
        ConfigError: a key that is not known, or one that is given twice.
    """
    name, _, rest = spec.partition(":")
    if own and names_object(spec) and name not in get_args(Kind):
        thing, _, rest = rest.partition(":")
        name = f"{name}:{thing}"
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
