"""A tiny world of updates and lists for candidate search."""

import torch
from torch import Tensor, nn

from gradinv.data import ClientBatch
from gradinv.data.tensors import TensorImages, of_tensors
from gradinv.evaluation.candidates import CandidateLists, candidate_lists
from gradinv.federated import Observation, Protocol, Reveal, observe, parse_defense


def images_of(count: int = 48, *, classes: int = 4, seed: int = 0) -> TensorImages:
    pixels = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return of_tensors(pixels, torch.arange(count) % classes, classes=classes)


def lists_of(images: TensorImages, *, batch: int = 3, count: int = 6, seed: int = 0):
    (own,) = images.batches(batch_size=batch, count=1, seed=seed)
    return own, candidate_lists(images, own, count=count, seed=seed)


def update_of(
    model: nn.Module,
    batch: ClientBatch,
    protocol: Protocol,
    defense: str = "none",
    *,
    seed: int = 0,
    reveal: Reveal = Reveal(),  # noqa: B008 -- a frozen value
) -> Observation:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return observe(
            model,
            batch,
            protocol=protocol,
            defenses=parse_defense(defense),
            reveal=reveal,
            generator=torch.Generator().manual_seed(seed),
        )


def other_client(lists: CandidateLists) -> ClientBatch:
    assert lists.others is not None
    return ClientBatch(lists.others, lists.labels)


def flat(gradient: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in gradient.values()])
