"""Clients' networks by name, or from any importable factory."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gradinv.errors import ModelError
from gradinv.models.convnet import ConvNet
from gradinv.models.footprint import on_meta, required_bytes
from gradinv.models.leakynet import LeakyNet
from gradinv.models.lenet import LeNet
from gradinv.models.outputs import logits_in
from gradinv.models.resnet import ResNet18
from gradinv.models.wrappers import unwrapped_network
from gradinv.resolve import resolve
from gradinv.room import require_room
from gradinv.seeds import require_seed

# The largest image that gets the stride-1 stem: the paper uses it at 32 and 64 pixels.
_LARGEST_CIFAR_STEM = 64


def _convnet(*, num_classes: int, channels: int, image_size: int) -> nn.Module:
    return ConvNet(num_classes, channels, image_size)


def _lenet(*, num_classes: int, channels: int, image_size: int) -> nn.Module:
    return LeNet(num_classes, channels, image_size)


def _leakynet(*, num_classes: int, channels: int, image_size: int) -> nn.Module:
    return LeakyNet(num_classes, channels, image_size)


def _resnet18(*, num_classes: int, channels: int, image_size: int) -> nn.Module:
    stem = "cifar" if image_size <= _LARGEST_CIFAR_STEM else "imagenet"
    return ResNet18(num_classes, channels, stem)


def _resnet18_imagenet(*, num_classes: int, channels: int, image_size: int) -> nn.Module:
    del image_size
    return ResNet18(num_classes, channels, "imagenet")


MODELS: dict[str, Callable[..., nn.Module]] = {
    "convnet": _convnet,
    "lenet": _lenet,
    "leakynet": _leakynet,
    "resnet18": _resnet18,
    "resnet18-imagenet": _resnet18_imagenet,
}


def build_model(
    spec: str, *, num_classes: int, channels: int, image_size: int, seed: int
) -> nn.Module:
    """Builds a client's network in eval mode, its random weights drawn from ``seed``.

    The global random state is the same before and after.

    Args:
        spec: one of :data:`MODELS`, or ``package.module:factory``. The working directory is
            searched too. The factory is called with those of num_classes, channels and image_size
            that its signature accepts, by keyword, and returns an ``nn.Module`` that maps images
            in [0, 1] to logits of shape (batch, num_classes).
        num_classes: number of logits, at least 2.
        channels: channels of the images.
        image_size: height and width of the images in pixels.
        seed: of the random initialisation.

    Raises:
        ModelError: unknown name; fewer than 2 classes; a factory that cannot be imported or
            called; a network that does not map the images to logits.
        ConfigError: a seed that cannot be.
    """
    factory = _factory(spec)
    require_seed(seed, "the network's seed")
    if num_classes < 2:
        raise ModelError(
            f"expected a network of at least 2 classes, got {num_classes}; the cross entropy of a "
            "single logit is 0 and has no gradient: give images of more classes"
        )
    arguments = {"num_classes": num_classes, "channels": channels, "image_size": image_size}
    _require_room(spec, arguments)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        model = factory(**arguments) if spec in MODELS else _call(spec, factory, arguments)
        model.eval()
        if spec not in MODELS:
            _check_logits(spec, model, (2, channels, image_size, image_size), num_classes)
    return model


def _require_room(spec: str, arguments: dict[str, int]) -> None:
    """Checks, before memory is taken, that a network can fit; of a foreign one, only its outputs.

    Raises:
        ModelError: it cannot.
    """
    needed = 4 * arguments["num_classes"]
    lower = "the number of classes or the image size"
    require_room(needed, "a network", lower, ModelError)
    if spec not in MODELS:
        return
    size = arguments["image_size"]
    try:
        ghost = on_meta(MODELS[spec], **arguments)
        # With the update and the gradient that is compared with it, as for any batch.
        needed = required_bytes(ghost, (1, arguments["channels"], size, size))
    except (RuntimeError, TypeError, OverflowError) as error:
        # The number of elements does not fit into 64 bits.
        raise ModelError(
            f"expected a network whose size can be counted, got one for {size} pixels and "
            f"{arguments['num_classes']} classes; lower {lower}"
        ) from error
    require_room(needed, "a network", lower, ModelError)


def _factory(spec: str) -> Callable[..., Any]:
    named = resolve(
        spec,
        MODELS,
        kind="factory",
        expected=f"a model among {', '.join(MODELS)} or package.module:factory",
        error=ModelError,
    )
    if named.settings:
        raise ModelError(
            f"expected {named.name} without settings, got {named.settings!r}; write a factory that "
            "needs none"
        )
    if not callable(named.value):
        raise ModelError(
            f"expected a factory {named.name!r}, got {type(named.value).__name__}; name a function "
            "that returns the network"
        )
    return named.value


def _call(spec: str, factory: Callable[..., Any], arguments: dict[str, int]) -> nn.Module:
    try:
        parameters = inspect.signature(factory).parameters.values()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            accepted = {parameter.name for parameter in parameters}
            arguments = {name: value for name, value in arguments.items() if name in accepted}
        model = factory(**arguments)
    except Exception as error:  # the factory is foreign code, which may raise anything
        raise ModelError(
            f"expected {spec} to build a network from {', '.join(arguments) or 'no arguments'}, "
            f"got {type(error).__name__}: {error}; "
            "let it take num_classes, channels and image_size at most"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"expected {spec} to return a torch.nn.Module, got {type(model).__name__}; "
            "name a function that returns the network"
        )
    return unwrapped_network(model)


def _check_logits(spec: str, model: nn.Module, shape: tuple[int, ...], num_classes: int) -> None:
    expected = (
        f"expected {spec} to map images in [0, 1] of shape {shape} to logits of shape "
        f"({shape[0]}, {num_classes})"
    )
    try:
        with torch.no_grad():
            logits = logits_in(model(torch.zeros(shape)))
    except Exception as error:  # the network is foreign code, which may raise anything
        raise ModelError(
            f"{expected}, got {type(error).__name__}: {error}; mend the network's input"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape != (shape[0], num_classes):
        got = (
            f"shape {tuple(logits.shape)}"
            if isinstance(logits, Tensor)
            else f"a {type(logits).__name__}"
        )
        if isinstance(logits, Tensor) and logits.shape[1:] in {(), (1,)}:
            raise ModelError(
                f"{expected}, got {got}: one logit, as binary cross entropy takes it, and not one "
                "for each class; give the head one output for each class, also where there are two"
            )
        raise ModelError(f"{expected}, got {got}; give the network {num_classes} outputs")
