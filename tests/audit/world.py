"""A tiny world below the working directory: images, a network and a prior."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gradinv.attacks import Outcome, Reconstruction, StageResult
from gradinv.audit.plan import AuditConfig
from gradinv.priors.dcgan import DCGAN
from gradinv.priors.generator import save_generator

NETWORK = '''
import torch
from torch import nn

def make(num_classes, channels, image_size):
    side = image_size // 8
    return nn.Sequential(
        nn.Conv2d(channels, 4, 8, stride=8), nn.BatchNorm2d(4), nn.Sigmoid(),
        nn.Flatten(), nn.Linear(4 * side * side, num_classes),
    )

def headless(num_classes, channels, image_size):
    return nn.Sequential(make(num_classes, channels, image_size), nn.Softmax(1))

def leaky(num_classes, channels, image_size):
    return nn.Sequential(
        nn.Conv2d(channels, 2, 8, stride=8), nn.LeakyReLU(0.2),
        nn.Flatten(), nn.Linear(2 * (image_size // 8) ** 2, num_classes),
    )

def pooling(num_classes, channels, image_size):
    return nn.Sequential(
        nn.Conv2d(channels, 2, 4, stride=4), nn.LeakyReLU(0.2), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2 * (image_size // 8) ** 2, num_classes),
    )

def frozen(num_classes, channels, image_size):
    return plain(num_classes, channels, image_size).requires_grad_(False)

def empty(num_classes, channels, image_size):
    return nn.Sequential(nn.AdaptiveAvgPool2d((1, num_classes)), nn.Flatten())

def gated(num_classes, channels, image_size):
    net = make(num_classes, channels, image_size)
    net.insert(3, nn.Softmax(1))
    return net

def hard(num_classes, channels, image_size):
    net = gated(num_classes, channels, image_size)
    net[2] = nn.Hardsigmoid()
    return net

def mobile(num_classes, channels, image_size):
    net = make(num_classes, channels, image_size)
    net[2] = nn.Hardsigmoid()
    return net

class Blind(nn.Module):
    """Takes away the derivative of what is computed, or nothing of it with ``how="sees"``."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        if self.how == "rounds":
            return (x * 255).round() / 255
        if self.how == "detaches":
            return x.detach()
        return (x * 255).to(torch.uint8).float() / 255 if self.how == "casts" else x

def _behind(how, sizes):
    return nn.Sequential(Blind(how), plain(*sizes))

def sees(num_classes, channels, image_size):
    return _behind("sees", (num_classes, channels, image_size))

def rounds(num_classes, channels, image_size):
    return _behind("rounds", (num_classes, channels, image_size))

def detaches(num_classes, channels, image_size):
    return _behind("detaches", (num_classes, channels, image_size))

def casts(num_classes, channels, image_size):
    return _behind("casts", (num_classes, channels, image_size))

def plain(num_classes, channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, num_classes))
'''


def build(folder: Path) -> None:
    """Writes ``images/`` (3 classes of 6), ``tiny_net.py`` and ``prior/`` into a folder."""
    source = np.random.default_rng(0)
    for name in ("cat", "dog", "eel"):
        (folder / "images" / name).mkdir(parents=True)
        for index in range(6):
            pixels = source.integers(0, 256, (32, 32), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{index}.png")
    (folder / "tiny_net.py").write_text(NETWORK)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = DCGAN(image_size=32, channels=1, base_channels=4, latent_dim=8)
    save_generator(generator.eval(), folder / "prior", {"data": "nothing", "steps": 0})


def config(**settings: Any) -> AuditConfig:
    """Returns an audit of the tiny world that takes a second."""
    tiny: dict[str, Any] = {
        "data": "images",
        "channels": 1,
        "model": "tiny_net:make",
        "batch_size": 2,
        "batches": 2,
        "attack": ("gi-x",),
        "defense": ("none",),
        "steps_scale": 0.01,
        "workers": 1,
        "device": "cpu",
    }
    return AuditConfig(**(tiny | settings))


def rebuilt(images: Tensor, *, steps: int = 3) -> Reconstruction:
    """Returns what an attack of two restarts might have found, the second one not finite."""
    stage = StageResult("x", images, torch.arange(2.0 * steps).view(steps, 2), steps, 1.5, 0.5)
    return Reconstruction(
        images=images,
        labels=torch.zeros(len(images), dtype=torch.long),
        objective=torch.tensor([0.5, float("inf")]),
        matching=0.5,
        best=0,
        stages=(stage,),
        outcome=Outcome.COMPLETED,
        seconds=1.5,
    )
