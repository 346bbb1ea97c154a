"""Chance inside the network: dropout in train mode, which draws from the global source."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from gradinv.errors import AttackError


def dropping(model: nn.Module) -> list[str]:
    """Returns the names of the layers that drop values at random."""
    return [
        name for name, layer in model.named_modules()
        if isinstance(layer, _DropoutNd) and layer.training and layer.p > 0
    ]  # fmt: skip


def require_steady(model: nn.Module, attack: str) -> None:
    """Checks that a line search compares costs of one and the same network.

    Raises:
        AttackError: a layer drops values at random.
    """
    layers = dropping(model)
    if layers:
        raise AttackError(
            f"expected the same gradient at every evaluation for {attack}, whose line search "
            f"compares them, got dropout in train mode in {', '.join(layers)}; "
            "let the client compute in eval mode, or attack with gi-x"
        )


@contextmanager
def dropout_from(place: tuple[int, int, int], device: torch.device) -> Iterator[None]:
    """Lets dropout do the same at one place of a search in every run and resumption.

    Args:
        place: seed of the search, stage and step.
        device: of the network.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(_seed_of(place))
        yield


def source_of(place: tuple[int, int, int]) -> torch.Generator:
    """Returns a source that draws the same at one place of a search, as :func:`dropout_from`."""
    return torch.Generator().manual_seed(_seed_of(place))


def _seed_of(place: tuple[int, int, int]) -> int:
    seed, stage, step = place
    return ((seed * 1_000 + stage) * 1_000_000 + step) % 2**63
