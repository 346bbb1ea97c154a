"""What a prior is: a network from latents to images in [0, 1], and how it lies on disk.

A prior is a folder with ``model.safetensors`` (weights), ``config.json`` (architecture) and
``card.json`` (data, command, seed, revision, quality).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradinv.errors import ConfigError, PriorError, did_you_mean
from gradinv.files import load_tensors, read_json, save_tensors, write_json
from gradinv.resolve import resolve
from gradinv.room import require_room

Block = Callable[[Tensor], Tensor]
"""One layer of a generator: features of the layer before to its own."""

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "card.json"


class Generator(nn.Module):
    """Base class of generators G_w: latents z to images x (Jeon et al. 2021, section 3).

    A subclass sets the two shapes, defines ``forward`` and returns from ``config`` what its
    constructor needs. In eval mode every image must depend on its own latent alone, because the
    w stage gives each image a copy of the weights.

    Attributes:
        latent_shape: shape of one latent.
        image_shape: (channel, height, width) of one image.
        default_space: the latents that attacks search when nobody asks for others.
    """

    latent_shape: tuple[int, ...]
    image_shape: tuple[int, int, int]
    default_space: str = "z"

    def forward(
        self, z: Float[Tensor, "batch *latent"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Returns the images in [0, 1] that belong to the latents."""
        raise TypeError(f"{type(self).__name__} does not map {tuple(z.shape)} to images")

    def blocks(self) -> tuple[Block, ...]:
        """Returns the successive layers whose composition is ``forward``.

        The first takes latents and the last gives images; between them lie the feature spaces that
        GIFD searches (Fang et al. 2023). Every image must depend on its own features alone.

        Raises:
            PriorError: the generator does not say what its layers are.
        """
        raise PriorError(
            f"expected a generator of successive layers, got {type(self).__name__}, which names "
            "none; define blocks(), or use an attack that does not search features: gi-z/w"
        )

    def latent_space(self, name: str) -> "Generator":
        """Returns the generator from other latents than z, for example from the layers' styles.

        Raises:
            PriorError: the generator has no such latents.
        """
        if name == "z":
            return self
        raise PriorError(
            f"expected latents that {type(self).__name__} has, z, got '{name}'; leave it out "
            "or take a prior with layered latents: gradinv prior train --arch stylegan2"
        )

    def config(self) -> dict[str, Any]:
        """Returns the constructor's keyword arguments, as JSON holds them."""
        raise PriorError(
            f"expected a generator that can be rebuilt from a config, got {type(self).__name__}; "
            "define config() and register the class, or use an attack that does not need that"
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Generator":
        """Returns a generator with random weights from what ``config`` returned."""
        return cls(**config)

    def sample_latents(
        self, count: int, generator: torch.Generator
    ) -> Float[Tensor, "batch *latent"]:
        """Draws ``count`` standard normal latents, on the device of the weights."""
        parameter = next(self.parameters())
        latents = torch.randn((count, *self.latent_shape), generator=generator)
        return latents.to(parameter)

    def untrained(self, generator: torch.Generator) -> "Generator":
        """Returns the same architecture with fresh random weights, in eval mode (for GI-w).

        Raises:
            PriorError: the generator cannot be rebuilt from a config.
        """
        config = self.config()
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = type(self).from_config(config)
        return fresh.to(next(self.parameters())).eval()


@runtime_checkable
class Denoiser(Protocol):
    """A prior that also tells what a noisy image was before, for attacks that denoise."""

    def denoise(
        self, x: Float[Tensor, "batch channel height width"], t: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Returns the mean of the images that x = (1 - t) noise + t image may come from.

        Args:
            x: pixels from -1 to 1, with noise of variance 1.
            t: share of the image in each, 0 to 1.
        """
        ...


ARCHITECTURES: dict[str, type[Generator]] = {}
_Class = TypeVar("_Class", bound=type[Generator])


def register(name: str) -> Callable[[_Class], _Class]:
    """Makes a generator class loadable from a prior's folder under ``name``."""

    def add(cls: _Class) -> _Class:
        ARCHITECTURES[name] = cls
        return cls

    return add


def architecture_of(generator: Generator) -> str:
    """Returns the name that the generator's class is registered under."""
    for name, cls in ARCHITECTURES.items():
        if type(generator) is cls:
            return name
    raise PriorError(
        f"expected a registered generator class, got {type(generator).__name__}; "
        "decorate the class with gradinv.priors.generator.register"
    )


def save_generator(generator: Generator, folder: Path, card: Mapping[str, Any]) -> None:
    """Saves a prior's folder; the weights come last, so that a folder with weights is whole."""
    folder = Path(folder)
    architecture = architecture_of(generator)
    write_json(folder / CONFIG, {"architecture": architecture, **generator.config()})
    write_json(folder / CARD, dict(card))
    save_tensors(folder / WEIGHTS, generator.state_dict(), {"kind": "prior", "schema": 1})


def require_no_prior(folder: Path, checkpoint: Path) -> None:
    """Checks that a new training in a folder overwrites no prior.

    Args:
        folder: of the prior to come.
        checkpoint: the file in it that the training would continue from, and that is not there.

    Raises:
        ConfigError: the folder holds a prior.
    """
    found = [name for name in (WEIGHTS, CONFIG) if (folder / name).exists()]
    if found:
        raise ConfigError(
            f"expected a new folder, or one of a training, at {folder}, got {found[0]} of a prior "
            f"without {checkpoint}, which would be overwritten; use another --out"
        )


def load_generator(folder: Path) -> Generator:
    """Loads a prior in eval mode, its parameters not requiring gradients.

    Raises:
        PriorError: no such folder, an unknown architecture, settings that it cannot have, or
            weights that do not fit it or are not finite.
        StorageError: a pickle, a truncated or a foreign file.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        got = "a file" if folder.is_file() else f"no {CONFIG} there"
        if folder.is_file():
            load_tensors(folder, what="a prior")
        raise PriorError(
            f"expected a prior's folder with {WEIGHTS} and {CONFIG} at {folder}, got {got}; "
            "make one with 'gradinv prior train'"
        )
    config = _read_object(folder / CONFIG)
    name = config.pop("architecture", None)
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise PriorError(
            f"expected a known generator architecture in {folder / CONFIG}, got '{name}'; "
            + did_you_mean(str(name), ARCHITECTURES)
        )
    try:
        with torch.device("meta"):
            ghost = ARCHITECTURES[name].from_config(config)
        needed = sum(value.numel() * value.element_size() for value in ghost.state_dict().values())
        lower = f"the sizes in {folder / CONFIG}, or make the prior again"
        require_room(needed, "a prior", lower, PriorError)
        generator = ARCHITECTURES[name].from_config(config)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise PriorError(
            f"expected the settings of {name} in {folder / CONFIG}, got '{error}'; "
            "make the prior again"
        ) from error
    tensors, _ = load_tensors(folder / WEIGHTS, what="a prior")
    broken = [key for key, value in tensors.items() if not torch.isfinite(value).all()]
    if broken:
        raise PriorError(
            f"expected finite weights in {folder / WEIGHTS}, got NaN or infinity in "
            f"{', '.join(broken)}; make the prior again"
        )
    try:
        generator.load_state_dict(tensors)
    except RuntimeError as error:
        raise PriorError(
            f"expected weights of the {name} in {folder / CONFIG}, got others "
            f"({' '.join(str(error).split())}); keep the files of one prior together"
        ) from error
    return generator.eval().requires_grad_(False)


def load_card(folder: Path) -> dict[str, Any]:
    """Returns the card of a prior: where it comes from and how good it is.

    Raises:
        PriorError: it is no JSON object.
        StorageError: it is missing or no JSON.
    """
    return _read_object(Path(folder) / CARD)


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise PriorError(
            f"expected a JSON object in {path}, got {type(content).__name__}; make the prior again"
        )
    return content


def prior_named(spec: str) -> Generator:
    """Returns the prior that ``package.module:object`` names: a generator, or what makes one.

    A function, or a class, is called without arguments.

    Raises:
        PriorError: nothing of that name, or no generator.
    """
    named = resolve(
        spec,
        {},
        kind="prior",
        expected="a prior's folder, 'embedded' or package.module:object",
        error=PriorError,
    )
    value = named.value
    if named.settings:
        raise PriorError(
            f"expected {named.name} without settings, got {named.settings!r}; name a function that "
            "needs none"
        )
    if not isinstance(value, Generator) and callable(value):
        value = value()
    if not isinstance(value, Generator):
        raise PriorError(
            f"expected {spec} to be a Generator, got {type(value).__name__}; wrap a network in "
            "gradinv.priors.Adapted, or with 'gradinv prior wrap'"
        )
    return value.eval().requires_grad_(False)
