"""How long the parts of an attack take: ``make bench``. Four images of 32x32, three channels."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from gradinv.attacks.attack import Attack
from gradinv.attacks.inversion import invert
from gradinv.attacks.presets import preset
from gradinv.data import ClientBatch
from gradinv.federated.client import loss_gradient
from gradinv.federated.defenses import parse_defense
from gradinv.federated.observing import observe
from gradinv.models import build_model
from gradinv.priors.dcgan import DCGAN

STEPS = 5


@pytest.fixture
def batch() -> ClientBatch:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return ClientBatch(images=images, labels=torch.arange(4), ids=(0, 1, 2, 3))


def with_steps(attack: Attack, steps: int) -> Attack:
    """Returns the attack with the same few steps in every stage and a single start."""
    stages = tuple(replace(stage, steps=steps) for stage in attack.stages)
    return replace(attack, stages=stages, restarts=1)


@pytest.mark.parametrize("name", ["convnet", "resnet18"])
def test_the_gradient_of_a_client(benchmark: Callable, batch: ClientBatch, name: str) -> None:
    model = build_model(name, num_classes=10, channels=3, image_size=32, seed=0)
    gradient = benchmark(loss_gradient, model, batch.images, batch.labels)
    assert all(torch.isfinite(value).all() for value in gradient.values())


@pytest.mark.parametrize("defense", ["none", "sparsify:0.95"])
@pytest.mark.parametrize("attack", ["gi-x", "gi-z", "gi-w", "gi-z/w"])
def test_a_few_steps_of_an_attack(
    benchmark: Callable, batch: ClientBatch, attack: str, defense: str
) -> None:
    model = build_model("convnet", num_classes=10, channels=3, image_size=32, seed=0)
    observation = observe(model, batch, defenses=parse_defense(defense))
    prior = DCGAN(image_size=32, channels=3).eval().requires_grad_(False)
    few = with_steps(preset(attack), STEPS)
    result = benchmark(invert, observation, model, few, prior=prior, seed=0)
    assert result.steps == STEPS * len(few.stages)
