"""Measures what the look before an attack says of updates that are not what they are said to be.

``python -m benchmarks.publish_preflight``. Every fault is planted in updates of the embedded
images, over networks, modes, batch sizes, known and hidden labels and seeds; ``right`` is how often
what is wrong was named, ``other`` how often something else was. Updates without a fault, with and
without defences that are given, must be told nothing but notes. Writes ``results/preflight.json``.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from rich.progress import track
from torch import nn

from benchmarks.results import ROOT, command_line, write_results
from gradinv.attacks.preflight import Kind, Severity, preflight
from gradinv.data import ClientBatch, load_images
from gradinv.federated import (
    FedAvg,
    FedSGD,
    Observation,
    Reveal,
    observe,
    parse_defense,
    parse_loss,
    parse_optimizer,
)
from gradinv.federated.client import loss_gradient
from gradinv.models import build_model
from gradinv.models.batchnorm import Mode

NETWORKS = ("convnet", "lenet", "leakynet")
MODES = ("eval", "train")
SIZES = (1, 4, 16)
LR = 0.02
STEPS = 3


@dataclass(frozen=True, eq=False)
class World:
    """One client, and what is planted in its update.

    Attributes:
        model: what the server believes that it sent.
        batch: what the client holds.
        other: images of somebody else.
        reveal: what the server knows beside the update.
        seed: of everything that is drawn.
    """

    model: nn.Module
    batch: ClientBatch
    other: ClientBatch
    reveal: Reveal
    seed: int

    @property
    def mode(self) -> Mode:
        """Of batch norm."""
        return "train" if self.model.training else "eval"

    def update(
        self,
        *,
        model: nn.Module | None = None,
        protocol: FedSGD | FedAvg | None = None,
        defense: str = "none",
    ) -> Observation:
        """Returns an update of the batch, by the server's own network unless told otherwise."""
        return observe(
            model or self.model,
            self.batch,
            protocol=protocol or FedSGD(mode=self.mode),
            defenses=parse_defense(defense),
            reveal=self.reveal,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def local(self, optimizer: str = "sgd") -> FedAvg:
        """Returns a few steps on the whole batch."""
        return FedAvg(
            local_epochs=STEPS,
            batch_size=len(self.batch.images),
            lr=LR,
            mode=self.mode,
            optimizer=parse_optimizer(optimizer),
        )

    def said(self, update: Observation, protocol: FedSGD | FedAvg | None = None) -> Observation:
        """Returns an update that is said to have come about in another way."""
        return replace(update, protocol=protocol or FedSGD(mode=self.mode))


Plant = Callable[[World], Observation]


def _moved(world: World, steps: int) -> Observation:
    """Returns an update at weights that are some steps further."""
    model = copy.deepcopy(world.model)
    for _ in range(steps):
        gradient = loss_gradient(model, world.other.images, world.other.labels)
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.sub_(gradient[name], alpha=LR)
    return world.update(model=model)


def _fresh(world: World, *, head: bool) -> Observation:
    """Returns an update at weights of another seed: all of them, or the last layer's."""
    model = copy.deepcopy(world.model)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.random.fork_rng():
        torch.manual_seed(world.seed + 1000)
        for layer in layers[-1:] if head else layers:
            layer.reset_parameters()
    return world.update(model=model)


def _turned(world: World) -> Observation:
    update = world.update()
    return replace(update, gradient={k: -v for k, v in update.gradient.items()})


def _other_loss(world: World, loss: str) -> Observation:
    return world.said(world.update(protocol=FedSGD(mode=world.mode, loss=parse_loss(loss))))


def _normalized(world: World) -> Observation:
    batch = world.batch
    gradient = loss_gradient(world.model, (batch.images - 0.5) / 0.25, batch.labels)
    return replace(world.update(), gradient={k: v.detach() for k, v in gradient.items()})


def _zero(world: World) -> Observation:
    update = world.update()
    return replace(update, gradient={k: 0 * v for k, v in update.gradient.items()})


SUM = "sum over the batch"

SOUND: Mapping[str, Plant] = {
    "no defence": lambda world: world.update(),
    "noise:0.01": lambda world: world.update(defense="noise:0.01"),
    "clip:1": lambda world: world.update(defense="clip:1"),
    "sparsify:0.95": lambda world: world.update(defense="sparsify:0.95"),
    "clip:1+noise:0.01": lambda world: world.update(defense="clip:1+noise:0.01"),
    "three local steps, given": lambda world: world.update(protocol=world.local()),
}
"""Updates that are what they are said to be."""

FAULTS: Mapping[str, tuple[Plant, set[Kind]]] = {
    "all zero": (_zero, {Kind.ZERO}),
    "wrong sign": (_turned, {Kind.WRONG_SIGN}),
    "weights of another seed": (lambda w: _fresh(w, head=False), {Kind.OTHER_WEIGHTS}),
    "last layer of another seed": (lambda w: _fresh(w, head=True), {Kind.OTHER_WEIGHTS}),
    "weights ten steps on": (lambda w: _moved(w, 10), {Kind.OTHER_WEIGHTS}),
    "weights one step on": (lambda w: _moved(w, 1), {Kind.OTHER_WEIGHTS}),
    "label smoothing 0.1": (
        lambda w: _other_loss(w, "cross-entropy:smoothing=0.1"),
        {Kind.OTHER_LABELS, Kind.OTHER_LOSS, Kind.SMOOTHED},
    ),
    "binary cross entropy": (lambda w: _other_loss(w, "bce"), {Kind.OTHER_LOSS}),
    SUM: (
        lambda w: _other_loss(w, "cross-entropy:reduction=sum"),
        {Kind.TOO_LONG},
    ),
    "three local steps": (
        lambda w: w.said(w.update(protocol=w.local())),
        {Kind.TOO_LONG, Kind.OTHER_WEIGHTS},
    ),
    "momentum and weight decay": (
        lambda w: w.said(
            w.update(protocol=w.local("sgd:momentum=0.9,weight-decay=5e-4")), w.local()
        ),
        {Kind.TOO_LONG, Kind.WEIGHT_DECAY},
    ),
    "Adam": (
        lambda w: w.said(w.update(protocol=w.local("adam")), w.local()),
        {Kind.ADAPTIVE},
    ),
    "normalised images": (_normalized, {Kind.INPUT_RANGE}),
    "sparsified": (lambda w: replace(w.update(defense="sparsify:0.95"), defenses=()),
                   {Kind.SPARSE}),
}  # fmt: skip
"""What is planted, and what says so."""


def worlds(seeds: int) -> list[tuple[dict[str, Any], World]]:
    """Returns the clients, with what they are."""
    images = load_images(None, image_size=32)
    made = []
    for network, mode, size, known, seed in product(
        NETWORKS, MODES, SIZES, (True, False), range(seeds)
    ):
        if mode == "train" and size == 1:
            continue  # batch norm needs more
        model = build_model(network, num_classes=10, channels=1, image_size=32, seed=seed)
        batch, other = images.batches(batch_size=size, count=2, seed=seed)
        case = {"network": network, "mode": mode, "batch_size": size, "labels": known, "seed": seed}
        reveal = Reveal(labels=known)
        made.append((case, World(model.train(mode == "train"), batch, other, reveal, seed)))
    return made


def look(world: World, update: Observation) -> list[Kind]:
    """Returns what is said of an update, but for notes."""
    found = preflight(update, world.model, seed=world.seed)
    return [one.kind for one in found.findings if one.severity is not Severity.NOTE]


def measure(seeds: int) -> list[dict[str, Any]]:
    """Returns one row for each client and fault, or soundness."""
    rows = []
    for case, world in track(worlds(seeds), description="updates"):
        for name, plant in SOUND.items():
            kinds = look(world, plant(world))
            rows.append({**case, "planted": name, "sound": True, "said": _names(kinds)})
        for name, (plant, expected) in FAULTS.items():
            if name == SUM and len(world.batch.images) == 1:
                continue  # the sum over one image is its mean
            kinds = look(world, plant(world))
            rows.append({**case, "planted": name, "sound": False, "said": _names(kinds),
                         "right": bool(expected & set(kinds))})  # fmt: skip
    return rows


def _names(kinds: list[Kind]) -> list[str]:
    return [kind.name.lower().replace("_", "-") for kind in kinds]


def figures_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the rate of false alarms, and for each fault how often it was named, or another."""
    figures = {"false_alarm": _rate(bool(row["said"]) for row in rows if row["sound"])}
    for name in FAULTS:
        own = [row for row in rows if row["planted"] == name]
        for labels, word in ((True, "labels known"), (False, "labels hidden")):
            some = [row for row in own if row["labels"] == labels]
            figures[f"right {name} | {word}"] = _rate(row["right"] for row in some)
            figures[f"other {name} | {word}"] = _rate(
                bool(row["said"]) and not row["right"] for row in some
            )
    return figures


def _rate(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def main(arguments: list[str] | None = None) -> int:
    """Plants every fault and writes ``results/preflight.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = measure(options.seeds)
    path = write_results(
        "preflight",
        command=command_line("publish_preflight", arguments or sys.argv[1:]),
        settings={"seeds": options.seeds, "networks": list(NETWORKS), "modes": list(MODES),
                  "batch_sizes": list(SIZES), "lr": LR, "steps": STEPS},
        figures=figures_of(rows),
        rows=rows,
    )  # fmt: skip
    print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
