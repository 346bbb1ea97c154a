"""Audits a network and images of your own: how much do its updates give away?

    python examples/own_model.py

Everything is in memory: any ``nn.Module`` and tensors will do. This audits data that you hold.
"""

import sys

import torch
from torch import nn

import gradinv


def make_model() -> nn.Module:
    """Stands for your network; it maps images in [0, 1] to logits."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.Sigmoid(),
        nn.Flatten(), nn.Linear(8 * 8 * 8, 10),
    )  # fmt: skip


def make_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Stands for your clients' data: 40 striped squares of 16x16 pixels in 10 classes."""
    labels = torch.arange(40) % 10
    place = torch.linspace(0, 6.28, 16)
    waves = torch.stack([torch.sin(place * (1 + label) / 2 + number)
                         for number, label in enumerate(labels)])  # fmt: skip
    return ((waves[:, None, :, None] * waves[:, None, None, :]) + 1) / 2, labels


def main(steps: int = 300) -> gradinv.AuditResult:
    """Audits the network in the mode that its clients use, here eval."""
    images, labels = make_images()
    result = gradinv.audit(
        make_model().eval(),
        images,
        labels,
        batch_size=2,
        batches=2,
        attack=f"gi-x:steps={steps}",
    )
    print(result.table())
    for verdict in result.verdicts:
        print(verdict)
    return result


if __name__ == "__main__":
    found = main()
    if len(sys.argv) > 1:
        print(found.save(sys.argv[1]))
