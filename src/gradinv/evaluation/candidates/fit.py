"""How well a trial update explains the one that was seen, and what follows for its candidate."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from gradinv.federated.channel import channel_of
from gradinv.federated.observation import Observation

_EXACT = 1e-6
"""Of the squared length of an update: what float32 leaves where a trial is the client's batch."""


class Fit:
    """Squared distances between an update and trial updates behind the client's own defences.

    With Gaussian noise of known sigma added last that is the log likelihood, up to its factor
    -1 / (2 sigma²). Without noise the coordinates that a sparsification sends, and their values,
    both count, since a trial is sparsified as the client's update was. Where something follows the
    noise, the trial goes through the chain as it would on average.

    Args:
        observation: the update, with what is publicly known of its defences.
    """

    def __init__(self, observation: Observation) -> None:
        self.channel = channel_of(observation.defenses)
        self.shapes = {name: value.shape for name, value in observation.gradient.items()}
        self.target = flattened(observation.gradient)

    @property
    def sigma(self) -> float | None:
        """Standard deviation of the noise where distances are likelihoods; None where not."""
        return None if self.channel.refusal is not None else self.channel.sigma

    def sent(self, update: Float[Tensor, " coordinate"]) -> Float[Tensor, " coordinate"]:
        """Returns what of a trial update would arrive, without the noise."""
        if not self.channel.defenses:
            return update
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        parts = update.split(sizes)
        named = {
            name: part.view(shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
        return flattened(self.channel.expected(named))

    def distance(self, sent: Float[Tensor, " coordinate"]) -> float:
        """Returns |u - m|², summed in float64; infinite where a trial left the finite numbers."""
        found = float((self.target - sent).square().sum(dtype=torch.float64))
        return found if math.isfinite(found) else math.inf

    def explained(self, distance: float) -> bool:
        """Whether a trial leaves nothing of the update, which no other start can do better.

        Never behind noise: what a wrong candidate leaves can be less than what the noise does.
        """
        if any(defense.sigma > 0 for defense in self.channel.defenses):
            return False
        return distance <= _EXACT * float(self.target.square().sum(dtype=torch.float64))

    def posterior(self, distances: Float[Tensor, " candidate"]) -> Tensor | None:
        """Returns each candidate's probability, all as likely before the update was seen.

        p_i ∝ exp(-|u - m_i|² / (2 sigma²)); None where there is no likelihood.
        """
        if self.sigma is None:
            return None
        return torch.softmax(-distances.double() / (2 * self.sigma**2), dim=0)


def flattened(gradient: Mapping[str, Tensor]) -> Float[Tensor, " coordinate"]:
    """Returns all tensors of an update as one vector, in their order."""
    return torch.cat([value.flatten() for value in gradient.values()])
