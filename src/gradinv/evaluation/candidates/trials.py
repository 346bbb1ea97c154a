"""What a client would have sent for a trial batch, before its defences."""

from collections.abc import Sequence
from typing import Protocol as Interface
from typing import runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradinv.attacks.search.chance import dropout_from, dropping
from gradinv.evaluation.candidates.lists import CandidateLists
from gradinv.federated.client import local_update, loss_gradient, trainable
from gradinv.federated.protocol import FedAvg, FedSGD, Order, Protocol

DICTIONARY_BYTES = 512 * 2**20
"""Memory that the gradients of all candidates may take."""
_SAME = 1e-3  # of a gradient's length: what float32 leaves of a mean of single gradients


@runtime_checkable
class Trials(Interface):
    """Recomputes updates of trial batches."""

    def update(self, picks: Sequence[int]) -> Float[Tensor, " coordinate"]:
        """Returns the update of the batch with the given candidate in each place."""
        ...


class Simulated:
    """Runs the client's own computation for every trial batch.

    Args:
        model: the network, in the protocol's mode.
        lists: the candidates.
        protocol: what the client computes.
        order: of the local steps of FedAvg; a guess when None.
        seed: of that guess, and of what dropout leaves out, which is the same in every trial.
    """

    def __init__(
        self,
        model: nn.Module,
        lists: CandidateLists,
        protocol: Protocol,
        *,
        order: Order | None,
        seed: int,
    ) -> None:
        self.model = model
        self.device = next(iter(trainable(model).values())).device
        self.lists = lists
        self.labels = lists.labels.to(self.device)
        self.protocol = protocol
        self.seed = seed
        if order is None and isinstance(protocol, FedAvg):
            # A guess, as good as any other.
            guess = torch.Generator().manual_seed(seed)
            order = protocol.order(len(lists.counts), guess)
        self.order = order
        self.drops = bool(dropping(model))

    def update(self, picks: Sequence[int]) -> Float[Tensor, " coordinate"]:
        """Returns the update of the batch with the given candidate in each place."""
        return self.update_of(self.lists.batch(picks), self.labels)

    def update_of(self, images: Tensor, labels: Tensor) -> Float[Tensor, " coordinate"]:
        """Returns the update of a batch."""
        images = images.to(self.device)
        if not self.drops:
            return self._computed(images, labels)
        with dropout_from((self.seed, 0, 0), self.device):
            return self._computed(images, labels)

    def _computed(self, images: Tensor, labels: Tensor) -> Tensor:
        protocol = self.protocol
        if isinstance(protocol, FedSGD):
            update = loss_gradient(self.model, images, labels, loss=protocol.loss)
        else:
            assert self.order is not None
            update = local_update(self.model, images, labels, protocol, self.order)
        return torch.cat([value.detach().flatten() for value in update.values()])


class Dictionary:
    """Adds up the gradients of single images, each computed once.

    Right where a batch's gradient is the mean (or the sum) of its images' own: one gradient in
    eval mode, of a loss that weighs all images alike.

    Args:
        simulated: computes the single ones.
        share: of one image's gradient in that of the batch.
    """

    def __init__(self, simulated: Simulated, share: float) -> None:
        lists, labels = simulated.lists, simulated.labels
        self.rows = [
            torch.stack([simulated.update_of(image[None], labels[place, None]) for image in images])
            for place, images in enumerate(lists.images)
        ]
        self.share = share

    def update(self, picks: Sequence[int]) -> Float[Tensor, " coordinate"]:
        """Returns the update of the batch with the given candidate in each place."""
        total = self.rows[0][picks[0]].clone()
        for rows, pick in zip(self.rows[1:], picks[1:], strict=True):
            total += rows[pick]
        return total.mul_(self.share)


def trials_for(
    model: nn.Module,
    lists: CandidateLists,
    protocol: Protocol,
    *,
    order: Order | None = None,
    seed: int = 0,
    room: int = DICTIONARY_BYTES,
) -> Trials:
    """Returns the fastest way of recomputing updates that is right for this network.

    Whether the gradients of single images add up is asked of the network itself, on one batch:
    layers that look at a whole batch, and losses that weigh images, are not known by their names.

    Args:
        model: the network, in the protocol's mode.
        lists: the candidates.
        protocol: what the client computes.
        order: of the local steps of FedAvg, where it is known.
        seed: of a guess where it is not, and of what dropout leaves out.
        room: bytes that the gradients of all candidates may take.
    """
    simulated = Simulated(model, lists, protocol, order=order, seed=seed)
    weights = trainable(model).values()
    size = sum(value.numel() * value.element_size() for value in weights)
    if not isinstance(protocol, FedSGD) or simulated.drops or sum(lists.counts) * size > room:
        return simulated
    share = 1.0 if protocol.loss.reduction == "sum" else 1 / len(lists.counts)
    return Dictionary(simulated, share) if _adds_up(simulated, share) else simulated


def _adds_up(simulated: Simulated, share: float) -> bool:
    """Returns whether a batch's gradient is that of its images, added up."""
    lists = simulated.lists
    together = simulated.update([0] * len(lists.counts))
    try:
        alone = sum(
            simulated.update_of(images[:1], simulated.labels[place, None])
            for place, images in enumerate(lists.images)
        )
    except ValueError:
        # Batch norm in train mode refuses a single value per channel, as behind global pooling.
        return False
    apart = torch.linalg.vector_norm(share * alone - together)
    return bool(apart <= _SAME * torch.linalg.vector_norm(together))
