"""Search spaces: what an attack's optimiser moves, and how it becomes images.

A space is opened for one stage from what the stage before left (a :class:`Solution`). It is an
``nn.Module`` whose ``forward`` gives the images of every restart. Every image owns its latent and,
where weights are searched, its own copy of the generator's weights (Jeon et al. 2021, eq. 7).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from gradinv.errors import AttackError, PriorError
from gradinv.priors.generator import Denoiser, Generator

_CULL_CHUNK = 64  # samples rendered at once

Images = Float[Tensor, "restart batch channel height width"]


@dataclass(frozen=True, eq=False)
class Scene:
    """Public facts that a space needs: shapes, pixel units, the prior.

    Attributes:
        batch_size: images to rebuild.
        image_shape: (channel, height, width).
        mean: of the network's normalisation, (channel, 1, 1).
        std: of the network's normalisation, (channel, 1, 1).
        prior: the generator, if the attacker has one.
        num_classes: of the network, for a search over labels.
        fits: images -> how well each one's features fit each image of the batch, (batch, image);
            None where the update does not tell or nobody asks.
    """

    batch_size: int
    image_shape: tuple[int, int, int]
    mean: Float[Tensor, "channel 1 1"]
    std: Float[Tensor, "channel 1 1"]
    prior: Generator | None = None
    num_classes: int = 1
    fits: Callable[[Tensor], Tensor] | None = None

    def generator(self) -> Generator:
        """Returns the prior.

        Raises:
            AttackError: there is none.
        """
        if self.prior is None:
            raise AttackError(
                "expected a prior for an attack over z or w, got none; give one with --prior, "
                "train one with 'gradinv prior train', or attack without a prior: gi-x"
            )
        return self.prior

    def denoiser(self) -> Denoiser:
        """Returns the prior as what tells an image from its noise.

        Raises:
            AttackError: there is none.
            PriorError: it does not denoise.
        """
        if self.prior is None:
            raise AttackError(
                "expected a prior that denoises for this attack, got none; train one with 'gradinv "
                "prior train --arch flow', or attack without a prior: gi-x"
            )
        if not isinstance(prior := self.prior, Denoiser):
            raise PriorError(
                f"expected a prior that denoises for this attack, got {type(prior).__name__}; "
                "train one with 'gradinv prior train --arch flow', or search its latents: gi-z/w"
            )
        return prior


@dataclass(frozen=True, eq=False)
class Solution:
    """Where a stage ended; the leading dimension of everything is the restart.

    Attributes:
        images: the pictures themselves, in [0, 1].
        latents: z of every image, where a generator was searched.
        weights: w of every image by parameter name, where it was searched.
        labels: soft labels, where they were searched.
        features: what goes into layer ``depth`` of the generator, where that was searched.
        depth: number of the generator's layers that lie before the features.
    """

    images: Images
    latents: Float[Tensor, "restart batch *latent"] | None = None
    weights: dict[str, Tensor] | None = None
    labels: Float[Tensor, "restart batch class"] | None = None
    features: Float[Tensor, "restart batch *feature"] | None = None
    depth: int = 0

    def select(self, restarts: Tensor) -> "Solution":
        """Returns the solution of the given restarts alone."""
        chosen = {
            name: value[restarts] for name, value in self.tensors().items() if name != "depth"
        }
        return replace(Solution.from_tensors(chosen), depth=self.depth)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the solution as named tensors, for a checkpoint."""
        named = {"images": self.images, "depth": torch.tensor(self.depth)}
        for name in ("latents", "labels", "features"):
            value = getattr(self, name)
            if value is not None:
                named[name] = value
        for name, value in (self.weights or {}).items():
            named[f"weights/{name}"] = value
        return named

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "Solution":
        """Returns the solution that :meth:`tensors` described."""
        weights = {
            name.removeprefix("weights/"): value
            for name, value in tensors.items()
            if name.startswith("weights/")
        }
        return cls(
            images=tensors["images"],
            latents=tensors.get("latents"),
            weights=weights or None,
            labels=tensors.get("labels"),
            features=tensors.get("features"),
            depth=int(tensors.get("depth", 0)),
        )


class SearchSpace(nn.Module):
    """Base class: parameters with a leading restart dimension, images out."""

    def forward(self) -> Images:
        """Returns the images in [0, 1] at the present point."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def latents(self) -> Float[Tensor, "restart batch *latent"] | None:
        """Returns the latents, where there are any."""
        return None

    def labels(self) -> Float[Tensor, "restart batch class"] | None:
        """Returns the soft labels, where they are searched."""
        return None

    def project(self) -> None:
        """Puts the point back into its set after a step."""

    @torch.no_grad()
    def solution(self) -> Solution:
        """Returns the present point."""
        return Solution(self().detach().clone())


class PixelSpace(SearchSpace):
    """Images as they are, held as u with x = mean + std u (normalised pixel units).

    Published learning rates and total-variation weights live in these units.

    Args:
        u: starting point.
        scene: the units.
        box: clip to [0, 1] after every step.
        logits: of the labels, where these are searched too.
    """

    mean: Float[Tensor, "channel 1 1"]
    std: Float[Tensor, "channel 1 1"]
    logits: nn.Parameter | None

    def __init__(
        self,
        u: Images,
        scene: Scene,
        *,
        box: bool,
        logits: Float[Tensor, "restart batch class"] | None = None,
    ) -> None:
        super().__init__()
        self.u = nn.Parameter(u)
        self.register_parameter("logits", None if logits is None else nn.Parameter(logits))
        self.register_buffer("mean", scene.mean)
        self.register_buffer("std", scene.std)
        self.box = box

    def forward(self) -> Images:
        """Returns mean + std u."""
        return self.mean + self.std * self.u

    def labels(self) -> Float[Tensor, "restart batch class"] | None:
        """Returns softmax(logits)."""
        return None if self.logits is None else self.logits.softmax(dim=2)

    @torch.no_grad()
    def move_to(self, images: Images) -> None:
        """Goes on from other images, in [0, 1]."""
        self.u.copy_((images - self.mean) / self.std)

    @torch.no_grad()
    def project(self) -> None:
        """Clips every pixel to [0, 1], unless the space was opened without a box."""
        if self.box:
            torch.clamp(self.u, -self.mean / self.std, (1 - self.mean) / self.std, out=self.u.data)

    @torch.no_grad()
    def solution(self) -> Solution:
        """Returns the present point, clipped to [0, 1] in any case: it is a picture."""
        return Solution(self().detach().clamp(0, 1), labels=self.labels())


class GeneratorSpace(SearchSpace):
    """Images of a generator: search over z, over one w per image, or over both.

    Args:
        generator: G_w in eval mode, frozen.
        latents: (restart, batch, *latent).
        weights: parameter name -> (restart, batch, *shape); None where all share G's own.
        search_latents: whether z moves.
        search_weights: whether w moves.
    """

    def __init__(
        self,
        generator: Generator,
        latents: Float[Tensor, "restart batch *latent"],
        weights: dict[str, Tensor] | None,
        *,
        search_latents: bool,
        search_weights: bool,
    ) -> None:
        super().__init__()
        # Not a submodule: its weights belong to the prior, not to this point of the search.
        self._generator = (generator,)
        self.z = nn.Parameter(latents.clone(), requires_grad=search_latents)
        weights = weights or {}
        # Sorted, because the order of a dict does not survive a checkpoint.
        self._names = sorted(weights)
        self.w = nn.ParameterList(
            nn.Parameter(weights[name].clone(), requires_grad=search_weights)
            for name in self._names
        )

    def latents(self) -> Float[Tensor, "restart batch *latent"]:
        """Returns z."""
        return self.z

    def forward(self) -> Images:
        """Returns G_w(z), every image through its own weights where there are copies."""
        (generator,) = self._generator
        restarts, batch = self.z.shape[:2]
        z = self.z.flatten(0, 1)
        if not self._names:
            return generator(z).unflatten(0, (restarts, batch))
        buffers = dict(generator.named_buffers())

        def image(weights: dict[str, Tensor], latent: Tensor) -> Tensor:
            return functional_call(generator, (weights, buffers), (latent[None],))[0]

        copies = {name: w.flatten(0, 1) for name, w in zip(self._names, self.w, strict=True)}
        return vmap(image)(copies, z).unflatten(0, (restarts, batch))

    @torch.no_grad()
    def solution(self) -> Solution:
        """Returns the present point."""
        weights = {name: w.detach().clone() for name, w in zip(self._names, self.w, strict=True)}
        return Solution(self().detach().clone(), self.z.detach().clone(), weights or None)


@runtime_checkable
class Space(Protocol):
    """What a stage searches: a value that opens a :class:`SearchSpace`."""

    @property
    def name(self) -> str:
        """The paper's letter: x, z, w or zw."""
        ...

    @property
    def needs_prior(self) -> bool:
        """Whether a generator is needed."""
        ...

    @property
    def soft_labels(self) -> bool:
        """Whether labels are searched too, so that none need be known."""
        ...

    def open(
        self, scene: Scene, previous: Solution | None, restarts: int, source: torch.Generator
    ) -> SearchSpace:
        """Returns the space at its starting point."""
        ...


@dataclass(frozen=True)
class Pixels:
    """x: starts from the previous stage's images, or from N(0, 1) in normalised units.

    Attributes:
        box: clip to [0, 1] after every step.
        soft_labels: search a label for each image too, as the softmax of logits that start from
            N(0, 1) (Zhu et al. 2019).
    """

    box: bool = True
    soft_labels: bool = False
    needs_prior: bool = False

    @property
    def name(self) -> str:
        """The paper's letters for what is searched."""
        return "xy" if self.soft_labels else "x"

    def open(
        self, scene: Scene, previous: Solution | None, restarts: int, source: torch.Generator
    ) -> PixelSpace:
        """Returns the pixel space at its starting point."""
        if previous is not None:
            u = (previous.images - scene.mean) / scene.std
        else:
            shape = (restarts, scene.batch_size, *scene.image_shape)
            u = torch.randn(shape, generator=source).to(scene.mean)
        logits = None
        if self.soft_labels:
            shape = (u.shape[0], scene.batch_size, scene.num_classes)
            logits = torch.randn(shape, generator=source).to(scene.mean)
        space = PixelSpace(u, scene, box=self.box, logits=logits)
        space.project()
        return space


@dataclass(frozen=True)
class OfGenerator:
    """z, w or both: starts from the previous stage's point, or from z ~ N(0, I) and G's own w.

    Attributes:
        latents: search z (Jeon et al. 2021, eq. 5).
        weights: search w, one copy for every image (Jeon et al. 2021, eq. 7).
        pretrained: start w from the prior's weights; otherwise from fresh random weights of the
            same architecture, so that only its structure is the prior (Ulyanov et al. 2018).
        culled: start z from the best of that many samples, judged image by image by their features
            (*ours*); from single samples when 0.
    """

    latents: bool = False
    weights: bool = False
    pretrained: bool = True
    culled: int = 0
    needs_prior: bool = True
    soft_labels: bool = False

    @property
    def name(self) -> str:
        """The paper's letters for what is searched."""
        return ("z" if self.latents else "") + ("w" if self.weights else "")

    def open(
        self, scene: Scene, previous: Solution | None, restarts: int, source: torch.Generator
    ) -> GeneratorSpace:
        """Returns the generator's space at its starting point."""
        generator = scene.generator()
        latents = None if previous is None else previous.latents
        weights = None if previous is None else previous.weights
        if latents is None and self.culled:
            latents = _cull(scene, self.culled, restarts, source)
        elif latents is None:
            drawn = generator.sample_latents(restarts * scene.batch_size, source).to(scene.mean)
            latents = drawn.unflatten(0, (restarts, scene.batch_size))
        if not self.pretrained:
            generator = generator.untrained(source).to(scene.mean).requires_grad_(False)
        if self.weights and weights is None:
            lead = (latents.shape[0], scene.batch_size)
            weights = {
                name: value.detach().expand(*lead, *value.shape)
                for name, value in generator.named_parameters()
            }
        return GeneratorSpace(
            generator, latents, weights, search_latents=self.latents, search_weights=self.weights
        )


@torch.no_grad()
def _cull(
    scene: Scene, samples: int, restarts: int, source: torch.Generator
) -> Float[Tensor, "restart batch *latent"]:
    """Returns, for restart r and every image, the sample whose features fit it r-th best.

    Images of one label share one clue; each of them gets samples of its own.
    """
    assert scene.fits is not None
    generator = scene.generator()
    latents = generator.sample_latents(samples, source).to(scene.mean)
    images = torch.cat([generator(chunk) for chunk in latents.split(_CULL_CHUNK)])
    order = scene.fits(images).argsort(dim=1, descending=True)
    rank = torch.arange(restarts, device=order.device)
    chosen = []
    for number, own in enumerate(order):
        twins = sum(torch.equal(own, other) for other in order[:number])
        chosen.append(own[(twins * restarts + rank) % samples])
    return latents[torch.stack(chosen, dim=1)]
