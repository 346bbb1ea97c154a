"""A network that was made elsewhere as a prior: any module from latents to images."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from gradinv.errors import PriorError
from gradinv.priors.generator import Block, Generator, register
from gradinv.resolve import resolve

Range = tuple[float, float]


@register("adapted")
class Adapted(Generator):
    """A foreign network as a prior: any module from latents to images.

    It can be saved where its class can be imported. The folder then names that class, and loading
    it imports the module that the class lies in: load priors of those you trust.
    :func:`~gradinv.priors.fitting.wrapped` makes one and checks that attacks can search it.

    Args:
        module: maps (batch, *latent_shape) to (batch, channel, height, width), or to a tuple or an
            object with a ``sample`` that is that.
        latent_shape: shape of one latent, standard normal.
        image_shape: (channel, height, width) of one image; averaged to that if the module's are
            larger.
        output_range: the values that mean black and white; (-1, 1) for a tanh output.
        method: of the module that gives images: ``decode`` for the decoder of an autoencoder.
        latent_scale: what latents are multiplied by before the module gets them: their standard
            deviation there.
        dropped: parts of the module that images do not need, such as an encoder.
        settings: the keyword arguments that made the module, as JSON holds them.

    Raises:
        PriorError: the module has no such method or part.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        latent_shape: tuple[int, ...],
        image_shape: tuple[int, int, int],
        output_range: Range = (0.0, 1.0),
        method: str = "forward",
        latent_scale: float = 1.0,
        dropped: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if method.startswith("_") or not callable(getattr(type(module), method, None)):
            raise PriorError(
                f"expected a method of {type(module).__name__} that makes images, got {method!r}; "
                "name it, for example decode"
            )
        for name in dropped:
            if name not in dict(module.named_children()):
                raise PriorError(
                    f"expected the part {name!r} in {type(module).__name__}, got none of that "
                    "name; make the prior again"
                )
            delattr(module, name)
        for part in module.modules():
            # In place, a layer would write over the features that an attack searches.
            if getattr(part, "inplace", False):
                setattr(part, "inplace", False)  # noqa: B010 -- of a class that is not known
        self.module = module
        self.latent_shape = latent_shape
        self.image_shape = image_shape
        self.output_range = output_range
        self.method = method
        self.latent_scale = latent_scale
        self.dropped = tuple(dropped)
        self.settings = dict(settings or {})

    def raw(self, z: Float[Tensor, "batch *latent"]) -> Tensor:
        """Returns what the module makes of latents, in its own range and size.

        Raises:
            PriorError: no tensor is found in what it returns.
        """
        return _pictures(getattr(self.module, self.method)(self._scaled(z)))

    def _scaled(self, z: Tensor) -> Tensor:
        return z if self.latent_scale == 1 else z * self.latent_scale

    def _developed(self, raw: Tensor) -> Tensor:
        """Returns images in [0, 1], of the size that was asked for."""
        low, high = self.output_range
        images = ((raw - low) / (high - low)).clamp(0, 1)
        size = self.image_shape[1:]
        return images if images.shape[2:] == size else F.adaptive_avg_pool2d(images, size)

    def forward(
        self, z: Float[Tensor, "batch *latent"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Returns the module's output, rescaled to [0, 1] and averaged to the image's size."""
        return self._developed(self.raw(z))

    def blocks(self) -> tuple[Block, ...]:
        """Returns the layers of a sequential module, with what makes images of the last one.

        Raises:
            PriorError: the module is no sequence of layers.
        """
        layers = _layers(self.module) if self.method == "forward" else []
        if len(layers) < 2:
            return super().blocks()
        first, *between, last = layers
        return (
            lambda z: first(self._scaled(z)),
            *between,
            lambda x: self._developed(last(x)),
        )

    def config(self) -> dict[str, Any]:
        """Returns the name of the module's class and what else makes this value.

        Raises:
            PriorError: nothing of that name can be imported, or it is another class.
        """
        kind = type(self.module)
        spec = f"{kind.__module__}:{kind.__qualname__}"
        if _module_class(spec) is not kind:
            raise PriorError(
                f"expected the class of the adapted module under its own name, got another at "
                f"{spec}; define the class once in its module"
            )
        return {
            "module": spec,
            "settings": self.settings,
            "latent_shape": list(self.latent_shape),
            "image_shape": list(self.image_shape),
            "output_range": list(self.output_range),
            "method": self.method,
            "latent_scale": self.latent_scale,
            "dropped": list(self.dropped),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Adapted":
        """Returns the same with random weights.

        Raises:
            PriorError: the class of the module cannot be imported, or is none.
            TypeError: settings that it does not take.
        """
        rest = dict(config)
        kind, settings = _module_class(str(rest.pop("module", ""))), rest.pop("settings", {})
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in rest.items()
        }
        return cls(kind(**settings), settings=settings, **values)


def _layers(module: nn.Module) -> list[nn.Module]:
    """Returns the layers of a sequence, also where it is all that a module holds."""
    children = list(module.children())
    if isinstance(module, nn.Sequential):
        return children
    lone = len(children) == 1 and not list(module.parameters(recurse=False))
    return _layers(children[0]) if lone else []


def _pictures(output: Any) -> Tensor:
    """Returns the images in what a module returned.

    Raises:
        PriorError: there is no tensor.
    """
    found = output
    if isinstance(found, tuple | list) and found:
        found = found[0]
    elif isinstance(found, Mapping):
        found = found.get("sample")
    if not isinstance(found, Tensor):
        found = getattr(found, "sample", found)
    if not isinstance(found, Tensor):
        raise PriorError(
            "expected images as a tensor, a tuple's first or a field 'sample', got "
            f"{type(output).__name__}; write a module that returns the images alone"
        )
    return found


def module_named(spec: str, settings: Mapping[str, Any]) -> nn.Module:
    """Returns the network that ``package.module:object`` names: a class or a function is called.

    Args:
        spec: of the user's own command; what it names is run.
        settings: the keyword arguments of the call.

    Raises:
        PriorError: nothing of that name, it cannot be made of these settings, or it is no network.
    """
    named = resolve(
        spec,
        {},
        kind="generator",
        expected="a generator as package.module:Class",
        error=PriorError,
    )
    value = named.value
    if named.settings:
        raise PriorError(
            f"expected {named.name} without {named.settings!r}; give settings with --set NAME=VALUE"
        )
    if not isinstance(value, nn.Module) and callable(value):
        try:
            value = value(**settings)
        except Exception as error:  # foreign code may raise anything
            raise PriorError(
                f"expected {spec} to be made of the settings {dict(settings)}, got "
                f"{type(error).__name__}: {' '.join(str(error).split())}; give what it takes with "
                "--set NAME=VALUE"
            ) from error
    if not isinstance(value, nn.Module):
        raise PriorError(
            f"expected {spec} to be a torch.nn.Module, or what makes one, got "
            f"{type(value).__name__}; name the network's class"
        )
    return value


_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def _module_class(spec: str) -> type[nn.Module]:
    """Returns the class that a config names; nothing else is ever called."""
    if not _CLASS.fullmatch(spec):
        raise PriorError(
            f"expected a generator class as package.module:Class, got {spec!r}; define it at the "
            "top of a module that can be imported"
        )
    named = resolve(
        spec,
        {},
        kind="generator class",
        expected="a generator class as package.module:Class",
        error=PriorError,
    )
    if not (isinstance(named.value, type) and issubclass(named.value, nn.Module)):
        raise PriorError(
            f"expected a subclass of torch.nn.Module named {spec!r}, got "
            f"{type(named.value).__name__}; make the prior again"
        )
    return named.value
