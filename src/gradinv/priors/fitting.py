"""Whether attacks can search a network that was made elsewhere, found out before one does.

A search over z needs images that depend on z smoothly, each on its own latent alone and the same at
every call; one over w needs that every image may have weights of its own.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from gradinv.environment import revision, versions
from gradinv.errors import PriorError
from gradinv.models.wrappers import unwrapped_network
from gradinv.priors.foreign import Adapted, Range
from gradinv.priors.generator import Generator, load_generator, save_generator
from gradinv.priors.samples import SAMPLES, save_sample_grid

NO_LAYERS = "gifd: it is no sequence of layers"
"""The limit that most generators have; the attack says it too."""

_SAMPLES = 16
_OUTSIDE = 0.05  # share of the pixels that may lie outside the range: they are clipped there
_FLAT = 0.01  # share of the range that images must span
_KNOWN_RANGES: tuple[Range, ...] = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
_STEP = 1e-3  # of the latents, for the slope that two values show
_SLOPE_ERROR = 0.2  # rough: kinks of a ReLU lie anywhere


@dataclass(frozen=True, eq=False)
class Wrapped:
    """A foreign network as a prior, and what cannot be done with it.

    Attributes:
        prior: in eval mode, its parameters not requiring gradients.
        limits: which attacks cannot search it and why, a phrase each; empty if all can.
    """

    prior: Adapted
    limits: tuple[str, ...]


def wrapped(
    module: nn.Module,
    *,
    latent_shape: tuple[int, ...],
    output_range: Range = (0.0, 1.0),
    method: str = "forward",
    latent_scale: float = 1.0,
    image_size: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Wrapped:
    """Returns a foreign network as a prior, once it is known that attacks can search it.

    Args:
        module: maps (batch, *latent_shape) to images; a copy of it is used, in eval mode and
            without the parts that images do not depend on, such as an encoder.
        latent_shape: shape of one latent, standard normal.
        output_range: the values that mean black and white.
        method: of the module that makes images.
        latent_scale: what latents are multiplied by before the module gets them.
        image_size: height and width to average its images to; its own by default.
        settings: the keyword arguments that made the module; needed for saving it.

    Raises:
        PriorError: what does not fit, all of it: the call, size, range, derivative, buffers.
    """
    low, high = output_range
    if not low < high:
        raise PriorError(
            f"expected the values of black and white, the lower first, got {low:g} and {high:g}; "
            "give --range=-1,1 for a tanh output"
        )
    if not latent_shape or min(latent_shape) < 1 or not latent_scale > 0:
        raise PriorError(
            f"expected the shape of one latent and a scale above 0, got {latent_shape} and "
            f"{latent_scale:g}; mend them"
        )

    def adapted(image_shape: tuple[int, int, int], dropped: tuple[str, ...] = ()) -> Adapted:
        own = copy.deepcopy(unwrapped_network(module))
        made = Adapted(
            own, latent_shape=latent_shape, image_shape=image_shape, output_range=output_range,
            method=method, latent_scale=latent_scale, dropped=dropped, settings=settings,
        )  # fmt: skip
        return made.eval().requires_grad_(False)

    # Its own size is not known before it was asked for images.
    first = adapted((1, 1, 1))
    latents = _latents(first)
    with torch.no_grad():
        raw = _tried(lambda: first.raw(latents), f"of shape {tuple(latents.shape)}")
    shape = _image_shape(raw, image_size)
    prior = adapted(shape)
    problems = [
        *_of_range(raw, output_range),
        *_of_calls(prior, raw, latents),
    ] or _of_derivative(prior, latents)
    if problems:
        raise PriorError(
            f"expected a generator that attacks can search, got {type(module).__name__}: "
            f"{'; '.join(problems)}; mend that, or wrap it in a module that does"
        )
    if unused := _unused(prior, latents):
        smaller = adapted(shape, unused)
        if _same(smaller, prior, latents):
            prior = smaller
    return Wrapped(prior, (*_of_weights(prior, latents), *_of_layers(prior, latents)))


def save_wrapped(found: Wrapped, folder: Path, *, command: str) -> None:
    """Saves a foreign network as a prior's folder, once it is known that it loads again.

    Args:
        found: what was wrapped.
        folder: where to.
        command: for the card.

    Raises:
        PriorError: its class cannot be imported, or, made of the same settings, is another network.
        StorageError: the folder cannot be written.
    """
    prior = found.prior
    card = {
        "state": "wrapped",
        "network": prior.config()["module"],
        "command": command,
        "revision": revision(),
        "versions": versions(),
        **({"cannot": "; ".join(found.limits)} if found.limits else {}),
    }
    with TemporaryDirectory() as scratch:
        save_generator(prior, Path(scratch), card)
        again = load_generator(Path(scratch))
    latents = _latents(again)
    with torch.no_grad():
        if not torch.equal(again(latents), prior(latents)):
            raise PriorError(
                f"expected {type(prior.module).__name__} made of the settings {prior.settings} to "
                "be the same network again, got other images; name its class and all settings that "
                "it was made with: --set NAME=VALUE"
            )
    save_generator(prior, folder, card)
    save_sample_grid(prior, folder / SAMPLES)


def _latents(prior: Generator) -> Float[Tensor, "batch *latent"]:
    """Returns standard normal latents; a module without parameters has them on the CPU."""
    drawn = torch.randn((_SAMPLES, *prior.latent_shape), generator=torch.Generator().manual_seed(0))
    return next((drawn.to(value) for value in prior.parameters()), drawn)


def _tried(call: Callable[[], Tensor], on: str) -> Tensor:
    """Returns what foreign code returns.

    Raises:
        PriorError: whatever it raises.
    """
    try:
        return call()
    except PriorError:
        raise
    except Exception as error:  # foreign code may raise anything
        raise PriorError(
            f"expected a generator that takes latents {on}, got {type(error).__name__}: "
            f"{' '.join(str(error).split())}; give --latent as one latent's shape, such as 100,1,1"
        ) from error


def _image_shape(raw: Tensor, image_size: int | None) -> tuple[int, int, int]:
    """Returns the shape of one image of the prior to be.

    Raises:
        PriorError: the module makes no square images of 1 or 3 channels, or smaller ones.
    """
    fits = raw.ndim == 4 and len(raw) == _SAMPLES and raw.shape[1] in {1, 3}
    if not fits or raw.shape[2] != raw.shape[3] or not raw.is_floating_point():
        raise PriorError(
            f"expected square images of 1 or 3 channels, ({_SAMPLES}, channel, height, width) of "
            f"floating point for {_SAMPLES} latents, got {tuple(raw.shape)} of {raw.dtype}; wrap "
            "it in a module that returns those"
        )
    _, channels, side, _ = raw.shape
    if image_size is not None and not 1 <= image_size <= side:
        raise PriorError(
            f"expected --image-size of at most the module's own {side}, got {image_size}; an image "
            "is averaged to a smaller one, never enlarged"
        )
    return channels, image_size or side, image_size or side


def _of_range(raw: Tensor, output_range: Range) -> list[str]:
    if not torch.isfinite(raw).all():
        return ["its images hold NaN or infinity"]
    low, high = output_range
    least, most = raw.min().item(), raw.max().item()
    span = f"its values lie from {least:.3g} to {most:.3g}"
    fitting = [r for r in _KNOWN_RANGES if r[0] <= least and most <= r[1] and r != output_range]
    advice = f": --range={fitting[0][0]:g},{fitting[0][1]:g}" if fitting else ""
    if ((raw < low) | (raw > high)).float().mean().item() > _OUTSIDE:
        return [f"{span}, and black to white is {low:g} to {high:g}{advice}"]
    if most - least < _FLAT * (high - low):
        return [f"{span}, hardly a part of {low:g} (black) to {high:g} (white){advice}"]
    return []


@torch.no_grad()
def _of_calls(prior: Adapted, raw: Tensor, latents: Tensor) -> list[str]:
    """Compares calls: the same again, one latent alone, and the state before and after."""
    before = {name: value.clone() for name, value in prior.module.state_dict().items()}
    again, alone = prior.raw(latents), prior.raw(latents[:1])
    after = prior.module.state_dict()
    problems = []
    # What rounding leaves where a batch is summed in another order than a single one.
    near = 1e-3 * (raw.max() - raw.min()).item()
    if not torch.allclose(again, raw, rtol=0, atol=near):
        problems.append("the same latents give other images at another call (dropout or noise?)")
    elif not torch.allclose(alone, raw[:1], rtol=0, atol=near):
        problems.append("an image depends on the others of its batch (batch statistics?)")
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    if changed:
        problems.append(f"a call changes its buffers ({', '.join(changed[:3])})")
    if torch.allclose(raw, raw[:1].expand_as(raw), rtol=0, atol=near):
        problems.append("its images do not depend on the latents")
    return problems


def _of_derivative(prior: Adapted, latents: Tensor) -> list[str]:
    """Compares the derivative with the slope that two values show, in double precision."""
    source = torch.Generator().manual_seed(1)
    double = copy.deepcopy(prior).double()
    z = latents.double().requires_grad_()
    direction = torch.randn(z.shape, generator=source, dtype=z.dtype).to(z)
    weights = torch.randn((1, *prior.image_shape), generator=source, dtype=z.dtype).to(z)

    def value(at: Tensor) -> Tensor:
        return (double(at) * weights).sum(dim=(1, 2, 3))

    try:
        with torch.enable_grad():
            images = value(z)
            if not images.requires_grad:
                return ["its images have no derivative by the latents (no_grad or detach inside?)"]
            (slope,) = torch.autograd.grad(images.sum(), z)
        found = (slope * direction).flatten(1).sum(dim=1)
        with torch.no_grad():
            ahead, behind = value(z + _STEP * direction), value(z - _STEP * direction)
    except Exception as error:  # foreign code may raise anything
        return [f"its derivative by the latents cannot be computed ({_line(error)})"]
    if not torch.isfinite(slope).all() or not slope.any():
        return ["its derivative by the latents is zero, NaN or infinity"]
    seen = (ahead - behind) / (2 * _STEP)
    if (found - seen).norm() > _SLOPE_ERROR * torch.maximum(found.norm(), seen.norm()):
        return ["its derivative by the latents is another than its values show (rounding inside?)"]
    return []


def _unused(prior: Adapted, latents: Tensor) -> tuple[str, ...]:
    """Returns the parts of the module on whose weights no image depends."""
    searched = copy.deepcopy(prior).requires_grad_(True)
    with torch.enable_grad():
        total = searched(latents[:2]).sum()
        if not total.requires_grad:
            return ()  # no weight at all
        total.backward()
    return tuple(
        name
        for name, part in searched.module.named_children()
        if list(part.parameters()) and all(value.grad is None for value in part.parameters())
    )


@torch.no_grad()
def _same(smaller: Adapted, prior: Adapted, latents: Tensor) -> bool:
    """Returns whether images are as they were."""
    try:
        return torch.equal(smaller(latents), prior(latents))
    except Exception:  # foreign code looks at a part that is gone
        return False


def _of_weights(prior: Adapted, latents: Tensor) -> list[str]:
    """Returns why no image can have weights of its own, if so: what a search over w does."""
    two = latents[:2]
    copies = {
        name: value.expand(2, *value.shape).clone().requires_grad_()
        for name, value in prior.named_parameters()
    }
    if not copies:
        return ["gi-w, gi-z/w: it has no weights to search"]
    buffers = dict(prior.named_buffers())

    def image(weights: dict[str, Tensor], latent: Tensor) -> Tensor:
        return functional_call(prior, (weights, buffers), (latent[None],))[0]

    try:
        with torch.enable_grad():
            images = vmap(image)(copies, two)
            grads = torch.autograd.grad(images.sum(), list(copies.values()), allow_unused=True)
    except Exception as error:  # foreign code may raise anything
        return [f"gi-w, gi-z/w: images cannot have weights of their own ({_line(error)})"]
    if all(grad is None or not grad.any() for grad in grads):
        return ["gi-w, gi-z/w: its images have no derivative by its weights"]
    with torch.no_grad():
        if not torch.allclose(images, prior(two), rtol=0, atol=1e-3):
            return ["gi-w, gi-z/w: images with weights of their own differ from those without"]
    return []


def _of_layers(prior: Adapted, latents: Tensor) -> list[str]:
    """Returns why the features of no layer can be searched, if so."""
    try:
        layers = prior.blocks()
    except PriorError:
        return [NO_LAYERS]
    try:
        with torch.no_grad():
            features, whole = layers[0](latents[:2]), prior(latents[:2])
        features = features.clone().requires_grad_()
        images = features
        with torch.enable_grad():
            for layer in layers[1:]:
                images = layer(images)
            (slope,) = torch.autograd.grad(images.sum(), features)
    except Exception as error:  # foreign code may raise anything
        return [f"gifd: its layers cannot be searched one by one ({_line(error)})"]
    if not slope.any() or not torch.allclose(images, whole, rtol=0, atol=1e-3):
        return ["gifd: its layers one by one make other images"]
    return []


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
