"""Tiny victims, priors and updates that every attack can be run on in a fraction of a second."""

import torch
from torch import Tensor, nn

from gradinv.data import ClientBatch
from gradinv.federated import FedSGD, Observation, Reveal, observe, parse_defense
from gradinv.models.normalize import Normalize
from gradinv.priors.dcgan import DCGAN
from gradinv.priors.flow import FlowPrior
from gradinv.priors.generator import Block, Generator


class TinyVictim(nn.Module):
    """One smooth convolution block: differentiable twice everywhere, so finite differences hold."""

    def __init__(self, *, channels: int = 1, classes: int = 4, norm: bool = True) -> None:
        super().__init__()
        self.normalize = Normalize([0.5] * channels, [0.25] * channels)
        self.conv = nn.Conv2d(channels, 4, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.act = nn.Tanh()
        self.head = nn.Linear(4 * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.bn(self.conv(self.normalize(x)))).flatten(1))


def tiny_victim(*, channels: int = 1, norm: bool = True, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyVictim(channels=channels, norm=norm).eval()


def tiny_prior(*, channels: int = 1, seed: int = 0) -> Generator:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        prior = DCGAN(image_size=8, channels=channels, base_channels=4, latent_dim=6)
    return prior.eval().requires_grad_(False)


class DeepPrior(Generator):
    """Four small layers, as many as the methods over successive features need."""

    latent_shape = (6,)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.image_shape = (channels, 8, 8)
        self.start = nn.Linear(6, 64)
        self.middle = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.last = nn.ConvTranspose2d(4, channels, 4, 2, 1)

    def blocks(self) -> tuple[Block, ...]:
        def first(z: Tensor) -> Tensor:
            return self.start(z).relu().unflatten(1, (4, 4, 4))

        def to_image(h: Tensor) -> Tensor:
            return self.last(h).sigmoid()

        return (first, *(nn.Sequential(layer, nn.ReLU()) for layer in self.middle), to_image)

    def forward(self, z: Tensor) -> Tensor:
        for block in self.blocks():
            z = block(z)
        return z


def deep_prior(*, channels: int = 1, seed: int = 0) -> Generator:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DeepPrior(channels).eval().requires_grad_(False)


def tiny_flow(*, channels: int = 1, seed: int = 0) -> FlowPrior:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        prior = FlowPrior(image_size=8, channels=channels, base_channels=4, steps=2)
    return prior.eval().requires_grad_(False)


def tiny_batch(*, channels: int = 1, batch: int = 2, seed: int = 3) -> ClientBatch:
    source = torch.Generator().manual_seed(seed)
    images = torch.rand((batch, channels, 8, 8), generator=source)
    return ClientBatch(images, torch.arange(batch), tuple(range(batch)))


def tiny_observation(
    model: nn.Module, batch: ClientBatch, *, defense: str = "none", bn: str = "none"
) -> Observation:
    mode = "train" if model.training else "eval"
    return observe(
        model,
        batch,
        protocol=FedSGD(mode=mode),
        defenses=parse_defense(defense),
        reveal=Reveal(bn_statistics=bn),  # pyright: ignore[reportArgumentType]
        generator=torch.Generator().manual_seed(0),
    )
