"""Random small networks from all operations that have a rule, and what to attack them with."""

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from gradinv.data import ClientBatch
from gradinv.engine.distances import Target, is_signal
from gradinv.federated import FedSGD, Observation, Reveal, observe, parse_defense
from gradinv.models.normalize import Normalize

IMAGE = (3, 9, 9)
BATCH = 3
CLASSES = 4

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.2),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "gelu-tanh": lambda: nn.GELU(approximate="tanh"),
    "none": nn.Identity,
}
POOLS = {
    "none": nn.Identity,
    "max": lambda: nn.MaxPool2d(2),
    "max-overlap": lambda: nn.MaxPool2d(3, stride=2, padding=1),
    "max-ceil": lambda: nn.MaxPool2d(2, ceil_mode=True),
    "avg": lambda: nn.AvgPool2d(2),
    "avg-padded": lambda: nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
}


class Block(nn.Module):
    """Convolution, perhaps batch norm, activation; perhaps added to or joined with the input."""

    def __init__(self, incoming: int, settings: dict, *, dropout: bool) -> None:
        super().__init__()
        self.joint = settings["joint"]
        width = settings["width"]
        groups = settings["groups"] if incoming % 2 == 0 and width % 2 == 0 else 1
        stride = 1 if self.joint != "none" else settings["stride"]
        kernel, dilation = settings["kernel"], settings["dilation"]
        self.conv = nn.Conv2d(
            incoming,
            incoming if self.joint == "add" else width,
            kernel,
            stride=stride,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            groups=groups,
            bias=settings["bias"],
        )
        channels = self.conv.out_channels
        self.norm = nn.BatchNorm2d(channels) if settings["norm"] else nn.Identity()
        self.act = ACTIVATIONS[settings["activation"]]()
        self.drop = nn.Dropout(0.5) if dropout else nn.Identity()
        self.channels = channels + incoming if self.joint == "cat" else channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.act(self.norm(self.conv(x))))
        if self.joint == "add":
            return y + x
        return torch.cat([x, y], dim=1) if self.joint == "cat" else y


class Network(nn.Module):
    """Blocks, a pool, a head."""

    def __init__(self, blocks: list[dict], pool: str, head: str, *, dropout: bool) -> None:
        super().__init__()
        self.normalize = Normalize([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
        channels = IMAGE[0]
        layers = []
        for settings in blocks:
            layers.append(Block(channels, settings, dropout=dropout))
            channels = layers[-1].channels
        self.blocks = nn.Sequential(*layers)
        self.pool = POOLS[pool]()
        self.head = head
        if head in {"flatten", "view"}:
            with torch.no_grad():
                self.eval()
                features = self.pool(self.blocks(torch.zeros(1, *IMAGE))).numel()
                self.train()
        else:
            features = channels * (4 if head == "adaptive" else 1)
        self.adaptive = nn.AdaptiveAvgPool2d(2 if head == "adaptive" else 1)
        self.hidden = nn.Linear(features, 5)
        self.norm = nn.BatchNorm1d(5)
        self.fc = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.blocks(self.normalize(x)))
        if self.head == "mean":
            x = x.mean(dim=[2, 3])
        elif self.head == "view":
            x = x.view(x.size(0), -1)
        elif self.head == "flatten":
            x = torch.flatten(x, 1)
        else:
            x = functional.relu(self.adaptive(x)).flatten(1)
        return self.fc(torch.tanh(self.norm(self.hidden(x))))


block = st.fixed_dictionaries({
    "width": st.sampled_from([4, 5]),
    "kernel": st.sampled_from([1, 3]),
    "stride": st.sampled_from([1, 2]),
    "dilation": st.sampled_from([1, 1, 2]),
    "groups": st.sampled_from([1, 1, 2]),
    "bias": st.booleans(),
    "norm": st.booleans(),
    "activation": st.sampled_from(sorted(ACTIVATIONS)),
    "joint": st.sampled_from(["none", "none", "add", "cat"]),
})  # fmt: skip

plans = st.fixed_dictionaries({
    "blocks": st.lists(block, min_size=1, max_size=4),
    "pool": st.sampled_from(sorted(POOLS)),
    "head": st.sampled_from(["mean", "view", "flatten", "adaptive", "global"]),
    "mode": st.sampled_from(["eval", "train"]),
    "seed": st.integers(0, 1000),
})  # fmt: skip


def network(plan: dict, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Returns the network of a plan, its batch norm with numbers that are not the trivial ones."""
    with torch.random.fork_rng():
        torch.manual_seed(plan["seed"])
        # Only an audit in eval mode has dropout that does nothing.
        dropout = plan["mode"] == "eval"
        model = Network(plan["blocks"], plan["pool"], plan["head"], dropout=dropout)
        shake(model)
    model.train(plan["mode"] == "train")
    return model.to(dtype)


def shake(model: nn.Module) -> None:
    """Gives batch norm random parameters and statistics."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
            assert layer.running_mean is not None
            assert layer.running_var is not None
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)


def update(
    model: nn.Module,
    *,
    defense: str = "none",
    bn: str = "exact",
    shape: tuple[int, ...] = (BATCH, *IMAGE),
) -> Observation:
    """Returns the update of a random batch in the model's mode and type."""
    source = torch.Generator().manual_seed(11)
    like = next(model.parameters())
    images = torch.rand(shape, generator=source).to(like)
    batch = ClientBatch(images, torch.arange(shape[0]) % CLASSES, tuple(range(shape[0])))
    return observe(
        model,
        batch,
        protocol=FedSGD(mode="train" if model.training else "eval"),
        defenses=parse_defense(defense),
        reveal=Reveal(bn_statistics=bn),  # pyright: ignore[reportArgumentType]
        generator=source,
    )


def without_rounding_errors(observation: Observation) -> Target:
    """Returns what is observed without tensors whose gradient is zero and computed as 1e-17.

    L1 moves such a bias in front of batch norm by the sign of a rounding error: by nothing in the
    R-operator, but a difference quotient loses digits over it.
    """
    squares = torch.stack([value.square().sum() for value in observation.gradient.values()])
    kept = [n for n, used in zip(observation.gradient, is_signal(squares), strict=True) if used]
    return Target({name: observation.gradient[name] for name in kept})


def guesses(model: nn.Module, restarts: int = 2, *, shape: tuple[int, ...] = (BATCH, *IMAGE)):
    """Returns random images of some restarts."""
    source = torch.Generator().manual_seed(12)
    return torch.rand((restarts, *shape), generator=source).to(next(model.parameters()))


def relative(found: Tensor, expected: Tensor) -> float:
    """Returns the norm of the difference over that of what was expected, if that is not zero."""
    scale = float(expected.norm()) or 1.0
    return float((found - expected).norm()) / scale
