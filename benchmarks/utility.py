"""What a defence costs: the accuracy of a network that was trained from defended updates."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from gradinv.data import ClientBatch, ImageSet, load_images
from gradinv.federated import FedSGD, Reveal, observe, parse_defense
from gradinv.models import build_model

_STATISTICS = 1000  # training images that batch norm's statistics are taken from at the end
_AT_ONCE = 500


@dataclass(frozen=True)
class Training:
    """A federation that trains a network from its clients' defended updates.

    The server takes a step of Adam along the mean of the updates (FedAdam, Reddi et al. 2021,
    "Adaptive Federated Optimization"), whose length does not depend on how long the updates are: a
    clipped update is not punished for being short.

    Attributes:
        model: name of the network.
        rounds: steps of the server.
        clients: that send an update in every round.
        batch_size: images behind one update, each used once.
        lr: of Adam.
        seed: of the network's weights, the order of the images, and the defences' noise.
    """

    model: str = "convnet"
    rounds: int = 300
    clients: int = 10
    batch_size: int = 4
    lr: float = 1e-3
    seed: int = 0

    def accuracy(self, defense: str, train: str, test: str, *, image_size: int = 32) -> float:
        """Returns the share of the test images that the trained network labels correctly.

        Args:
            defense: of every client, as ``gradinv.federated.parse_defense`` reads it.
            train: path of the clients' images.
            test: path of the others.
            image_size: of both.
        """
        images = load_images(train, image_size=image_size)
        channels, side, _ = images.image_shape
        model = build_model(
            self.model,
            num_classes=images.num_classes,
            channels=channels,
            image_size=side,
            seed=self.seed,
        ).train()
        source = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(images), generator=source).tolist()
        batches = [
            images.batch(order[start : start + self.batch_size])
            for start in range(0, self.rounds * self.clients * self.batch_size, self.batch_size)
        ]
        server = torch.optim.Adam(model.parameters(), self.lr)
        for number in range(self.rounds):
            clients = batches[number * self.clients : (number + 1) * self.clients]
            mean = self._mean_update(model, clients, defense, source)
            for name, parameter in model.named_parameters():
                parameter.grad = mean[name]
            server.step()
        _take_statistics(model, images.images(order[-_STATISTICS:]))
        return _accuracy(model, load_images(test, image_size=image_size))

    def _mean_update(
        self, model: nn.Module, clients: list[ClientBatch], defense: str, source: torch.Generator
    ) -> Mapping[str, Tensor]:
        updates = [
            observe(
                model,
                batch,
                protocol=FedSGD(mode="train"),
                defenses=parse_defense(defense),
                reveal=Reveal(),
                generator=source,
            ).gradient
            for batch in clients
        ]
        return {
            name: torch.stack([update[name] for update in updates]).mean(0) for name in updates[0]
        }


def trained_weights(
    train: str, path: Path, *, model: str = "convnet", steps: int = 1000, seed: int = 0
) -> None:
    """Trains a network in one place and writes its weights, for audits of a trained network.

    Args:
        train: path of the images.
        path: of the safetensors file.
        model: name of the network.
        steps: of Adam at 1e-3, 64 images each.
        seed: of the first weights and the order of the images.
    """
    images = load_images(train, image_size=32)
    channels, side, _ = images.image_shape
    network = build_model(
        model, num_classes=images.num_classes, channels=channels, image_size=side, seed=seed
    ).train()
    source = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in track(range(steps), description=f"training {model}", console=Console(stderr=True)):
        batch = images.batch(torch.randint(len(images), (64,), generator=source).tolist())
        loss = functional.cross_entropy(network(batch.images), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(network.state_dict(), partial)
    partial.replace(path)


@torch.no_grad()
def _take_statistics(model: nn.Module, images: Tensor) -> None:
    """Sets batch norm's running statistics, which no client's update carries."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean over all batches
    for part in images.split(_AT_ONCE):
        model(part)
    model.eval()


@torch.no_grad()
def _accuracy(model: nn.Module, images: ImageSet) -> float:
    right = 0
    for part in torch.arange(len(images)).split(_AT_ONCE):
        right += int((model(images.images(part.tolist())).argmax(1) == images.labels[part]).sum())
    return right / len(images)
