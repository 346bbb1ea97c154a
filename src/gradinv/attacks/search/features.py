"""Feature spaces of a generator's successive layers, each an L1 ball (Fang et al. 2023, GIFD)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradinv.attacks.search.spaces import Images, Scene, SearchSpace, Solution
from gradinv.errors import AttackError
from gradinv.priors.generator import Block


def project_to_l1_ball(
    points: Float[Tensor, "image size"],
    centres: Float[Tensor, "image size"],
    radii: Float[Tensor, " image"],
) -> Float[Tensor, "image size"]:
    """Returns the nearest point of each image's ball {h : |h - centre|_1 <= radius}.

    By sorting, as in Duchi et al. 2008, figure 1; a point inside stays as it is.
    """
    offset = points - centres
    size = offset.abs()
    ordered = size.sort(dim=1, descending=True).values
    count = torch.arange(1, size.shape[1] + 1, device=size.device, dtype=size.dtype)
    thresholds = (ordered.cumsum(dim=1) - radii[:, None]) / count
    kept = (ordered > thresholds).sum(dim=1, keepdim=True).clamp_min(1)
    threshold = thresholds.gather(1, kept - 1).clamp_min(0)
    shrunk = centres + offset.sign() * (size - threshold).clamp_min(0)
    inside = size.sum(dim=1, keepdim=True) <= radii[:, None]
    return torch.where(inside, points, shrunk)


class FeatureSpace(SearchSpace):
    """Images of the generator's last layers, from features that stay in a ball.

    Args:
        blocks: the layers from these features on.
        features: where the search starts; the centre of each image's ball.
        depth: number of layers before the features.
        radius: of each ball, as a fraction of the L1 norm of its centre.
    """

    centre: Tensor
    radii: Tensor

    def __init__(
        self,
        blocks: Sequence[Block],
        features: Float[Tensor, "restart batch *feature"],
        depth: int,
        radius: float,
    ) -> None:
        super().__init__()
        # A tuple, so that the prior's modules do not become part of this point.
        self._blocks = tuple(blocks)
        self.h = nn.Parameter(features.clone())
        self.register_buffer("centre", features.clone())
        self.register_buffer("radii", radius * features.flatten(2).abs().sum(dim=2))
        self.depth = depth

    def forward(self) -> Images:
        """Returns what the remaining layers make of the features."""
        lead = self.h.shape[:2]
        return _through(self._blocks, self.h.flatten(0, 1)).unflatten(0, lead)

    @torch.no_grad()
    def project(self) -> None:
        """Puts every image's features back into its ball."""
        flat = project_to_l1_ball(
            self.h.flatten(0, 1).flatten(1),
            self.centre.flatten(0, 1).flatten(1),
            self.radii.flatten(),
        )
        self.h.copy_(flat.view_as(self.h))

    @torch.no_grad()
    def solution(self) -> Solution:
        """Returns the present point."""
        return Solution(self().detach().clone(), features=self.h.detach().clone(), depth=self.depth)


@dataclass(frozen=True)
class Features:
    """h: what goes into one layer of the generator, in a ball round what the search so far gives.

    Attributes:
        depth: number of layers before the features; 1 is the output of the first.
        radius: of the L1 ball round each image's start, as a fraction of its L1 norm.
    """

    depth: int
    radius: float
    needs_prior: bool = True
    soft_labels: bool = False

    @property
    def name(self) -> str:
        """The letter h with the depth."""
        return f"h{self.depth}"

    def open(
        self, scene: Scene, previous: Solution | None, restarts: int, source: torch.Generator
    ) -> FeatureSpace:
        """Returns the space at what the previous point gives at this depth.

        Raises:
            PriorError: the generator does not say what its layers are.
            AttackError: it has no features at this depth, or the search so far is not one of
                latents or of earlier features of the same weights.
        """
        generator = scene.generator()
        blocks = generator.blocks()
        if not 0 < self.depth < len(blocks):
            raise AttackError(
                f"expected a generator with features at depth {self.depth}, got a "
                f"{type(generator).__name__} of {len(blocks)} layers; search depths from 1 to "
                f"{len(blocks) - 1}"
            )
        start, depth = self._start(scene, previous, restarts, source)
        with torch.no_grad():
            features = _through(blocks[depth : self.depth], start.flatten(0, 1))
        return FeatureSpace(
            blocks[self.depth :], features.unflatten(0, start.shape[:2]), self.depth, self.radius
        )

    def _start(
        self, scene: Scene, previous: Solution | None, restarts: int, source: torch.Generator
    ) -> tuple[Tensor, int]:
        """Returns the deepest features or latents that there are, and their depth."""
        if previous is None:
            drawn = scene.generator().sample_latents(restarts * scene.batch_size, source)
            return drawn.unflatten(0, (restarts, scene.batch_size)), 0
        start = previous.latents if previous.features is None else previous.features
        if start is None or previous.weights is not None or previous.depth > self.depth:
            raise AttackError(
                f"expected latents or features before depth {self.depth} from the stage before "
                f"{self.name}, got a search of other things; put the stages in the order z, h1, h2"
            )
        return start, previous.depth


def _through(blocks: Sequence[Block], features: Tensor) -> Tensor:
    for block in blocks:
        features = block(features)
    return features
