"""Small members of the families that edge devices run, from the update to a search."""

import pytest
import torch
from torch import Tensor, nn

from gradinv.attacks import invert, preset
from gradinv.attacks.search.regularizers import BatchNormMatching
from gradinv.engine import engine_for
from gradinv.engine.distances import Cosine
from tests.attacks.slopes import check_against_differences
from tests.attacks.tiny import tiny_batch, tiny_observation


class SqueezeExcite(nn.Module):
    """Howard et al. 2019, section 5.3: a gate for each channel, with hard sigmoid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce, self.expand = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)
        self.relu, self.gate = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.relu(self.reduce(self.pool(x)))))


class Inverted(nn.Module):
    """An inverted residual: expand, depthwise, squeeze and excite, project."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = 2 * width
        self.body = nn.Sequential(
            nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.Hardswish(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide),
            SqueezeExcite(wide), nn.Hardswish(),
            nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def mobile() -> nn.Module:
    """MobileNetV3 in small."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(),
        Inverted(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 12), nn.Hardswish(),
        nn.Dropout(0.2), nn.Linear(12, 4),
    )  # fmt: skip


class Transformer(nn.Module):
    """ViT in small (Dosovitskiy et al. 2021): patches, class token, positions, two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(0.1 * torch.randn(1, 5, 8))
        layer = nn.TransformerEncoderLayer(
            8, 2, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT
        whole = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.positions
        return self.head(self.norm(self.encoder(whole))[:, 0])


class NormAct(nn.BatchNorm2d):
    """Batch norm as a function with an activation behind it, as timm writes it."""

    def forward(self, input: Tensor) -> Tensor:
        torch._assert(input.ndim == 4, f"expected 4D input (got {input.ndim}D input)")
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        x = nn.functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, self.training,
            self.momentum or 0.0, self.eps,
        )  # fmt: skip
        return nn.functional.hardsigmoid(x)


def norm_act() -> nn.Module:
    """A convolution, batch norm and hard sigmoid in one module."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2, padding=1, bias=False), NormAct(6),
        nn.Conv2d(6, 8, 3, padding=1, bias=False), NormAct(8), nn.Flatten(), nn.Linear(128, 4),
    )  # fmt: skip


FAMILIES = {"mobile": mobile, "transformer": Transformer, "norm-act": norm_act}


def family(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FAMILIES[name]().eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_dc_dx_is_the_finite_difference_in_float64(name, generator):
    """PyTorch has no second derivative of a hard sigmoid, so double backward is no reference."""
    model = family(name).double()
    batch = tiny_batch()
    batch = type(batch)(batch.images.double(), batch.labels, batch.ids)
    observation = tiny_observation(model, batch)
    chosen = engine_for(model, observation, distance=Cosine())
    assert chosen.way == ("plain" if name == "transformer" else "exact")
    check_against_differences(chosen, 2, generator, directions=3, step=1e-4)
    assert float(chosen.matching(batch.images[None])) == pytest.approx(0, abs=1e-9)


def test_batch_norm_as_a_function_is_that_of_the_layer_in_train_mode(generator):
    model = family("norm-act").double().train()
    batch = tiny_batch()
    batch = type(batch)(batch.images.double(), batch.labels, batch.ids)
    observation = tiny_observation(model, batch, bn="exact")
    chosen = engine_for(
        model, observation, distance=Cosine(), regularizers=(BatchNormMatching(0.1),)
    )
    assert chosen.way == "exact"
    check_against_differences(chosen, 2, generator, directions=3, step=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_search_gets_going(name):
    model, batch = family(name), tiny_batch()
    found = invert(tiny_observation(model, batch), model, preset("gi-x:steps=15"), seed=0)
    assert found.cost_fell
    assert found.images.isfinite().all()
