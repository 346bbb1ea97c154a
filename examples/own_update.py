"""Attacks an update that plain PyTorch made: no simulation of gradinv's is involved.

    python examples/own_update.py

A client trains as clients do; the server holds its weights before and after, and knows how it
trained. This audits data that you hold.
"""

import copy

import torch
from torch import nn

import gradinv
from gradinv.federated import LocalOptimizer, Loss

LR, STEPS = 0.02, 3


def make_model() -> nn.Module:
    """Stands for your network."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.Sigmoid(),
        nn.Flatten(), nn.Linear(8 * 8 * 8, 10),
    ).eval()  # fmt: skip


def train(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """A client's training, as it stands in your code."""
    model = copy.deepcopy(model)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_of(model(images), labels).backward()
        optimizer.step()
    return model


def main(steps: int = 300) -> gradinv.Found:
    """Lets a client train, and rebuilds its image from the two sets of weights."""
    source = torch.Generator().manual_seed(1)
    image = torch.nn.functional.interpolate(
        torch.rand(1, 1, 4, 4, generator=source), size=16, mode="bilinear"
    )
    label = torch.tensor([3])
    before = make_model()
    after = train(before, image, label)
    update = gradinv.from_state_dicts(
        before.state_dict(),
        after.state_dict(),
        before,
        lr=LR,
        image_shape=(1, 16, 16),
        num_classes=10,
        batch_size=1,
        labels=label,
        protocol=gradinv.FedAvg(
            local_epochs=STEPS,
            lr=LR,
            loss=Loss(smoothing=0.1),
            optimizer=LocalOptimizer("sgd", momentum=0.9, weight_decay=5e-4),
        ),
    )
    found = gradinv.invert(update, before, attack=f"gi-x:steps={steps}")
    error = (found.images - image).square().mean()
    print(f"{found.outcome}, matching cost {found.cost:.3g}, PSNR {-10 * error.log10():.1f} dB")
    return found


if __name__ == "__main__":
    main()
