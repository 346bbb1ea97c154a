"""The features that the last linear layer gives away, and a cheap search that matches them.

Row c of that layer's weight gradient is (1/B) sum_j (p_jc - [y_j = c]) h_j, with h_j the features
of image j. An image's label is the row that counts the image with a large weight, so -dW_{y_j}
points nearly along h_j: exactly for one image, and the better the less sure the network is of the
others. Matching that direction needs one forward and one backward pass, a third of what a step on
gradients costs, and its cost has far fewer kinks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from gradinv.attacks.evidence.head import find_head, random_images
from gradinv.engine import Evaluated, pixel_units
from gradinv.engine.distances import Target
from gradinv.engine.terms import ImageTerm, Regularizer, seeing
from gradinv.errors import AttackError
from gradinv.federated.client import logits
from gradinv.federated.observation import Observation

_CHUNK = 64  # images in one forward pass


@dataclass(frozen=True, eq=False)
class Clues:
    """What the last layer's gradient says about each image.

    Attributes:
        layer: the last linear layer.
        directions: -dW of each image's label, along that image's features.
        known: which coordinates of it survived a known sparsification.
    """

    layer: nn.Linear
    directions: Float[Tensor, "batch feature"]
    known: Bool[Tensor, "batch feature"]

    @classmethod
    def of(cls, observation: Observation, model: nn.Module) -> "Clues":
        """Returns the clues of an update whose labels are known.

        Raises:
            AttackError: the network does not end in a linear layer, its gradient is not in the
                update, or a label's row of it is zero.
        """
        assert observation.labels is not None
        parameter = next(model.parameters())
        probe = random_images(1, observation.image_shape, torch.Generator().manual_seed(0))
        # Two equal images: batch norm in train mode refuses one value for each channel.
        head = find_head(model, probe.to(parameter).expand(2, -1, -1, -1))
        target = Target.of(observation)
        gradient = target.gradient.get(head.weight_name)
        if gradient is None:
            raise AttackError(
                f"expected the gradient of {head.weight_name}, the last linear layer, in the "
                "update, got none (a frozen layer); attack without matching features: gi-z/w"
            )
        directions = -gradient[observation.labels]
        if not (directions != 0).any(dim=1).all():
            raise AttackError(
                f"expected the row of every label in the gradient of {head.weight_name}, got a row "
                "of zeros; attack without matching features: gi-z/w"
            )
        known = torch.ones_like(directions, dtype=torch.bool)
        if target.mask is not None:
            known = target.mask[head.weight_name][observation.labels].bool()
        layer = model.get_submodule(head.name)
        assert isinstance(layer, nn.Linear)
        return cls(layer, directions, known)

    def features(
        self, model: nn.Module, images: Float[Tensor, "image channel height width"]
    ) -> Float[Tensor, "image feature"]:
        """Returns h of images, with its graph."""
        seen: list[Tensor] = []
        handle = self.layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
        try:
            logits(model, images)
        finally:
            handle.remove()
        return seen[-1]

    def distance(self, features: Float[Tensor, "batch feature"]) -> Float[Tensor, " batch"]:
        """Returns 1 - cosine between each image's features and its direction, where it is known."""
        return 1 - functional.cosine_similarity(features * self.known, self.directions, dim=1)

    @torch.no_grad()
    def fits(
        self, model: nn.Module, images: Float[Tensor, "image channel height width"]
    ) -> Float[Tensor, "batch image"]:
        """Returns the cosine of every image's features with each direction of the batch."""
        features = torch.cat([self.features(model, chunk) for chunk in images.split(_CHUNK)])
        return torch.stack([
            functional.cosine_similarity(features * known, direction[None], dim=1)
            for known, direction in zip(self.known, self.directions, strict=True)
        ])  # fmt: skip


class FeatureEngine:
    """The mean over images of 1 - cosine of their features, in place of a distance of gradients.

    Args:
        model: f_theta in the observation's mode.
        observation: g; labels must be known.
        clues: what its last layer gives away.
        regularizers: those on images are used here.
    """

    way = "features"
    reason = None

    def __init__(
        self,
        model: nn.Module,
        observation: Observation,
        clues: Clues,
        regularizers: Sequence[Regularizer] = (),
    ) -> None:
        self.model = model
        self.clues = clues
        self.terms: tuple[ImageTerm, ...] = seeing(regularizers, "images")
        self.mean, self.std = pixel_units(model, observation.image_shape, clues.directions)

    def evaluate(self, images: Float[Tensor, "restart batch channel height width"]) -> Evaluated:
        """Returns cost, matching cost and dc/dx of every restart."""
        x = images.detach().requires_grad_()
        with torch.enable_grad():
            matching = self._distances(x)
            cost = matching
            normalised = (x - self.mean) / self.std
            for term in self.terms:
                cost = cost + torch.stack([term(batch) for batch in normalised])
        (gradient,) = torch.autograd.grad(cost.sum(), x)
        return Evaluated(cost.detach(), matching.detach(), gradient)

    @torch.no_grad()
    def matching(
        self, images: Float[Tensor, "restart batch channel height width"]
    ) -> Float[Tensor, " restart"]:
        """Returns the matching cost alone; infinity where it is not finite."""
        return torch.nan_to_num(self._distances(images), nan=torch.inf, posinf=torch.inf)

    def _distances(self, images: Tensor) -> Float[Tensor, " restart"]:
        # One pass for each restart: in train mode the images of a batch act on each other.
        return torch.stack([
            self.clues.distance(self.clues.features(self.model, batch)).mean() for batch in images
        ])  # fmt: skip
