"""How often label counts are recovered, in untrained and trained networks."""

import argparse
from collections.abc import Iterator
from statistics import fmean
from typing import Any

import torch
from torch import nn

from benchmarks.results import Section
from gradinv.attacks.evidence.labels import LabelMethod, recover_labels
from gradinv.data import ClientBatch, ImageSet, load_images
from gradinv.errors import ConfigError
from gradinv.evaluation.evaluate import label_accuracy
from gradinv.federated import FedSGD, Reveal, observe, parse_defense
from gradinv.models import build_model

BATCH = 8
PER_NETWORK = 10  # batches on one draw of the weights
TRAINED_STEPS = (30, 100, 400)
TRAINING_BATCH = 64


def measure_labels(options: argparse.Namespace) -> Section:
    """Recovers the labels of random batches with repeats; a row for each case.

    All batches for each untrained network, a quarter of them for every other case.
    """
    if options.data is None:
        raise ConfigError(
            "expected the training images for the section labels, got none; give --data"
        )
    train = load_images(options.data, image_size=32, channels=1)
    test = load_images(None, image_size=32, channels=1)
    trained = list(_trained(train, seed=options.seed))
    rows = []
    for model in ("convnet", "resnet18"):
        for mode in ("eval", "train"):
            rows += _case(test, options, model=model, mode=mode)
    options = argparse.Namespace(**vars(options) | {"batches": max(1, options.batches // 4)})
    rows += _case(test, options, model="convnet", mode="eval", bias=False)
    for defense in ("clip:1", "noise:0.01", "noise:0.1", "sparsify:0.5", "sparsify:0.95"):
        rows += _case(test, options, model="convnet", mode="eval", defense=defense)
    for steps, state in trained:
        for mode in ("eval", "train"):
            rows += _case(test, options, model="convnet", mode=mode, trained=(steps, state))
    return Section(
        settings={
            "batch_size": BATCH,
            "images": "embedded Fashion-MNIST test images, drawn so that labels repeat",
            "training": f"Adam 1e-3 on Fashion-MNIST's training images, batches of "
            f"{TRAINING_BATCH}, batch norm in train mode",
            "seed": options.seed,
        },
        figures={f"{key} {_name(row)}": row[key] for row in rows for key in ("exact", "accuracy")},
        rows=rows,
    )


def _name(row: dict[str, Any]) -> str:
    parts = [row["method"], row["model"], row["mode"]]
    parts += [f"trained {row['trained_steps']}"] if row["trained_steps"] else []
    parts += [row["defense"]] if row["defense"] != "none" else []
    return " ".join(parts + ([] if row["bias"] else ["without bias"]))


def _case(
    images: ImageSet,
    options: argparse.Namespace,
    *,
    model: str,
    mode: str,
    defense: str = "none",
    bias: bool = True,
    trained: tuple[int, dict[str, torch.Tensor]] | None = None,
) -> list[dict[str, Any]]:
    methods = [LabelMethod.COUNTS]
    if model == "convnet" and defense == "none" and bias:
        methods.append(LabelMethod.COLUMN_MINIMUM)
    accuracy: dict[LabelMethod, list[float]] = {method: [] for method in methods}
    source = torch.Generator().manual_seed(options.seed)
    for first in range(0, options.batches, PER_NETWORK):
        net = _network(model, images.num_classes, seed=options.seed + first, bias=bias)
        if trained is not None:
            net.load_state_dict(trained[1])
        net.train(mode == "train")
        for _ in range(min(PER_NETWORK, options.batches - first)):
            batch = _with_repeats(images, source)
            observation = observe(
                net,
                batch,
                protocol=FedSGD(mode="train" if mode == "train" else "eval"),
                defenses=parse_defense(defense),
                reveal=Reveal(labels=False),
                generator=source,
            )
            for method in methods:
                found = recover_labels(observation, net, method=method)
                accuracy[method].append(label_accuracy(found.labels, batch))
    rows = [
        {
            "method": method.value,
            "model": model,
            "mode": mode,
            "defense": defense,
            "bias": bias,
            "trained_steps": 0 if trained is None else trained[0],
            "batches": options.batches,
            "exact": sum(value == 1 for value in values),
            "accuracy": fmean(values),
        }
        for method, values in accuracy.items()
    ]
    for row in rows:
        print(f"{_name(row)}: {row['exact']} of {options.batches}, {row['accuracy']:.3f}")
    return rows


def _with_repeats(images: ImageSet, source: torch.Generator) -> ClientBatch:
    while True:
        batch = images.batch(torch.randint(len(images), (BATCH,), generator=source).tolist())
        if len(batch.labels.unique()) < BATCH:
            return batch


def _network(model: str, classes: int, *, seed: int, bias: bool) -> nn.Module:
    """Returns a network whose last layer alone sends a gradient: nothing else is read."""
    net = build_model(model, num_classes=classes, channels=1, image_size=32, seed=seed)
    net.requires_grad_(False)
    head = net.get_submodule("head" if model == "convnet" else "fc").requires_grad_(True)
    if not bias:
        head.register_parameter("bias", None)
    return net


def _trained(images: ImageSet, *, seed: int) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    net = build_model(
        "convnet", num_classes=images.num_classes, channels=1, image_size=32, seed=seed
    ).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    source = torch.Generator().manual_seed(seed)
    for step in range(1, max(TRAINED_STEPS) + 1):
        chosen = torch.randint(len(images), (TRAINING_BATCH,), generator=source)
        batch = images.batch(chosen.tolist())
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(batch.images), batch.labels).backward()
        optimizer.step()
        if step in TRAINED_STEPS:
            yield step, {name: value.clone() for name, value in net.state_dict().items()}
