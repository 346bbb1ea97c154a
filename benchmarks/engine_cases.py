"""What the engine is timed on: clients, updates and points of the search."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradinv.attacks.search.regularizers import TotalVariation
from gradinv.data import ClientBatch
from gradinv.engine import Engine, Evaluated, PlainDoubleBackward, engine_for
from gradinv.engine.distances import Cosine
from gradinv.engine.rules.pointwise import ReLU
from gradinv.engine.rules.pooling import MaxPool
from gradinv.engine.traced import TracedEngine
from gradinv.federated import FedSGD, Observation, Reveal, observe, parse_defense
from gradinv.models import ConvNet, ResNet18
from gradinv.priors.dcgan import DCGAN

CLASSES = 10

WAYS = ("plain", "exact", "frozen-pattern", "exact, bf16 tangents")
ONE_GRAPH = "plain, one graph"


@dataclass(frozen=True)
class Case:
    """One setting of an attack's step.

    Attributes:
        network: "convnet", "resnet18", or "resnet18-imagenet" with the ImageNet stem.
        batch: images of the client.
        mode: of batch norm.
        size: of the images in pixels.
        restarts: searched at the same time.
        defense: of the update.
        generator: a DCGAN stands in front, so that the step ends at its latents.
    """

    network: Literal["convnet", "resnet18", "resnet18-imagenet"]
    batch: int
    mode: Literal["eval", "train"]
    size: int = 32
    restarts: int = 1
    defense: str = "none"
    generator: bool = False

    @property
    def name(self) -> str:
        """What tables call it."""
        parts = [f"{self.network}@{self.size} B={self.batch} {self.mode}"]
        parts += [self.defense] if self.defense != "none" else []
        parts += ["behind DCGAN"] if self.generator else []
        parts += [f"{self.restarts} restarts"] if self.restarts > 1 else []
        return ", ".join(parts)

    @property
    def ways(self) -> tuple[str, ...]:
        """What is measured: every way, and one that there is only where restarts are several."""
        return (*WAYS, ONE_GRAPH) if self.restarts > 1 else WAYS

    def model(self) -> nn.Module:
        """Returns the client's network with seeded weights."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if self.network == "convnet":
                model = ConvNet(CLASSES, 3, self.size)
            else:
                stem = "imagenet" if self.network == "resnet18-imagenet" else "cifar"
                model = ResNet18(CLASSES, stem=stem)
        return model.train(self.mode == "train")

    def observation(self, model: nn.Module) -> Observation:
        """Returns the update of seeded random images."""
        source = torch.Generator().manual_seed(1)
        images = torch.rand((self.batch, 3, self.size, self.size), generator=source)
        labels = torch.arange(self.batch) % CLASSES
        return observe(
            model,
            ClientBatch(images, labels, tuple(range(self.batch))),
            protocol=FedSGD(mode=self.mode),
            defenses=parse_defense(self.defense),
            reveal=Reveal(),
            generator=source,
        )

    def images(self, point: int = 0) -> Tensor:
        """Returns a point at which the step is taken."""
        source = torch.Generator().manual_seed(2 + 1000 * point)
        return torch.rand((self.restarts, self.batch, 3, self.size, self.size), generator=source)


CASES = (
    Case("convnet", 1, "train"),
    Case("convnet", 4, "train"),
    Case("convnet", 16, "train"),
    Case("convnet", 4, "eval"),
    Case("convnet", 4, "eval", defense="sparsify:0.95"),
    Case("resnet18", 1, "eval"),
    Case("resnet18", 4, "eval"),
    Case("resnet18", 16, "eval"),
    Case("resnet18", 4, "train"),
    Case("resnet18", 4, "eval", defense="sparsify:0.95"),
    Case("resnet18-imagenet", 4, "train", size=64),
    Case("resnet18", 4, "eval", generator=True),
    Case("resnet18", 1, "eval", restarts=4),
    Case("convnet", 1, "train", restarts=8),
    Case("convnet", 4, "eval", restarts=8),
)

# Passes over the network that a way cannot do without, in forward FLOPs: a forward, a backward
# to inputs and weights, and two tangent passes of two products each; or two first-order passes.
PASSES = {"plain": 7, "exact": 7, "frozen-pattern": 5, "exact, bf16 tangents": 7, ONE_GRAPH: 7}


class PlainInOneGraph(PlainDoubleBackward):
    """Double backward that holds all restarts at once, where plain holds one after the other.

    What the memory of restarts that are computed together is to be compared with.
    """

    way = ONE_GRAPH

    def evaluate(self, images: Tensor, labels: Tensor | None = None) -> Evaluated:
        """Returns cost, matching cost and dc/dx of every restart."""
        searched = images.detach().requires_grad_()
        with torch.enable_grad():
            each = zip(searched, self._labels(labels, len(searched)), strict=True)
            found = [self._cost(batch, y) for batch, y in each]
            cost, matching = (torch.stack(values) for values in zip(*found, strict=True))
        (gradient,) = torch.autograd.grad(cost.sum(), searched)
        return Evaluated(cost.detach(), matching.detach(), gradient)


class Step:
    """One step of an attack in one way, ready to be timed.

    Args:
        case: the setting.
        way: one of the case's.
        device: where it runs.
        dtype: of everything in it.
    """

    def __init__(
        self, case: Case, way: str, device: str, dtype: torch.dtype = torch.float32
    ) -> None:
        model = case.model()
        observation = case.observation(model).to(device, dtype)
        self._model = model.to(device, dtype)
        self.images = case.images().to(device, dtype)
        self.engine = _engine(way, self._model, observation)
        self._case = case
        self._latents: Tensor | None = None
        self._prior: DCGAN | None = None
        if case.generator:
            with torch.random.fork_rng():
                torch.manual_seed(3)
                prior = DCGAN(image_size=case.size, channels=3)
            self._prior = prior.eval().requires_grad_(False).to(device, dtype)
        self.move_to(0)

    def move_to(self, point: int) -> None:
        """Takes the next steps at another point of the search."""
        self.images = self._case.images(point).to(self.images)
        if self._prior is not None:
            source = torch.Generator().manual_seed(4 + 1000 * point)
            self._latents = self._prior.sample_latents(self._case.batch, source).to(self.images)

    @torch.no_grad()
    def kinks(self) -> list[Tensor]:
        """Returns where ReLUs are positive and maxima lie, as this way computes them at its point.

        At another pattern the cost has another derivative. One tensor for each layer, first those
        of a generator; restarts are folded into the batch.
        """
        found, images = [], self.images
        if self._prior is not None and self._latents is not None:
            prior, z = self._prior, self._latents
            found = _kinks_of(prior, lambda: prior(z))
            images = prior(z)[None]
        engine = self.engine
        if isinstance(engine, TracedEngine):
            run = engine.new_run(len(images))
            tape, _, _ = engine.first_order(run, images)
            for node, saved in zip(engine.program.nodes, tape, strict=True):
                found += [saved.y > 0] if isinstance(node.op, ReLU) else []
                found += [saved.indices] if isinstance(node.op, MaxPool) else []
            return found
        each = [_kinks_of(self._model, lambda batch=batch: self._model(batch)) for batch in images]
        return [*found, *map(torch.cat, zip(*each, strict=True))]

    def __call__(self) -> Tensor:
        """Returns the gradient with respect to what is searched."""
        if self._prior is None or self._latents is None:
            return self.engine.evaluate(self.images).gradient
        z = self._latents.requires_grad_()
        images = self._prior(z)
        directions = self.engine.evaluate(images[None]).gradient[0]
        return torch.autograd.grad(images, z, directions)[0]


def _engine(way: str, model: nn.Module, observation: Observation) -> Engine:
    settings = {"distance": Cosine(), "regularizers": (TotalVariation(1e-3),)}
    if way == ONE_GRAPH:
        return PlainInOneGraph(model, observation, **settings)
    return engine_for(
        model,
        observation,
        **settings,
        way=way.split(",", maxsplit=1)[0],
        tangent_dtype=torch.bfloat16 if "bf16" in way else None,
    )


def _kinks_of(network: nn.Module, work: Callable[[], Tensor]) -> list[Tensor]:
    """Returns the kinks of a network's own modules while something is computed with it."""
    found = []

    def record(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if isinstance(module, nn.ReLU):
            found.append(output > 0)
        elif isinstance(module, nn.MaxPool2d):
            (x,) = inputs
            settings = module.kernel_size, module.stride, module.padding
            found.append(functional.max_pool2d(x, *settings, return_indices=True)[1])

    handles = [module.register_forward_hook(record) for module in network.modules()]
    work()
    for handle in handles:
        handle.remove()
    return found
