"""Which chains of defences are a Gaussian with a known mean, and what that mean is."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from gradinv.errors import ConfigError
from gradinv.federated import Clip, Noise, Sparsify, parse_defense
from gradinv.federated.channel import NO_NOISE, NOT_LAST, channel_of, doubtful
from gradinv.federated.defense import Keeps, spec_of
from tests.outside import Every, Laplace, Rounded


def gradient(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(40, 5, generator=source).to(dtype),
        "b": 3 * torch.randn(30, generator=source).to(dtype),
    }


def flat(update: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in update.values()])


def sent(spec: str, generator: torch.Generator, draws: int) -> Tensor:
    """Returns what a client sends, draw by draw."""
    updates = []
    for _ in range(draws):
        update: Mapping[str, Tensor] = gradient()
        for defense in parse_defense(spec):
            update = defense.apply(update, generator)
        updates.append(flat(update))
    return torch.stack(updates)


@dataclass(frozen=True)
class Claimed:
    """Says that it adds noise and adds none."""

    keeps: ClassVar[Keeps] = "values"
    sigma: float = 1.0

    @property
    def spec(self) -> str:
        return spec_of(self)

    def apply(self, gradient, generator):
        return dict(gradient)

    def scaled(self, factor):
        return self


class Half(Noise):
    """Takes the package's place and adds half of its noise."""

    def apply(self, gradient, generator):
        return Noise(self.sigma / 2).apply(gradient, generator)


@pytest.mark.parametrize(
    ("spec", "sigma"),
    [
        ("noise:0.1", 0.1),
        ("clip:1+noise:0.01", 0.01),
        ("sparsify:0.9+clip:1+noise:0.03", 0.03),
        ("clip:2+noise:3+noise:4", 5.0),
        ("noise:0+clip:1+noise:0.2", 0.2),
        ("clip:1+noise:0.2+noise:0", 0.2),
    ],
)
def test_noise_last_is_a_gaussian(spec, sigma, generator):
    channel = channel_of(parse_defense(spec))
    assert channel.refusal is None
    assert channel.sigma == pytest.approx(sigma)
    assert channel.defenses == parse_defense(spec)
    residual = (sent(spec, generator, 200) - flat(channel.means(gradient()))) / sigma
    assert residual.mean().abs() < 4 / residual.numel() ** 0.5
    assert residual.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("spec", ["none", "noise:0", "clip:1", "sparsify:0.9", "clip:1+noise:0"])
def test_no_noise_is_refused_and_has_a_mean(spec, generator):
    channel = channel_of(parse_defense(spec))
    assert (channel.sigma, channel.refusal) == (0.0, NO_NOISE)
    assert torch.equal(flat(channel.means(gradient())), sent(spec, generator, 1)[0])


@pytest.mark.parametrize("spec", ["noise:0.1+sparsify:0.9", "noise:0.1+clip:1"])
@pytest.mark.parametrize("more", ["", "+noise:0.2"])
def test_noise_that_is_not_last_is_refused(spec, more):
    channel = channel_of(parse_defense(spec + more))
    assert channel.refusal == NOT_LAST
    assert channel.sigma == (0.2 if more else 0.0)
    with pytest.raises(
        ConfigError, match=r"expected defences of the package with their noise last, got 'noise.*'"
    ):
        channel.means(gradient())


def test_what_leaves_a_sparsification_of_noise_is_not_gaussian(generator):
    """The reason for the refusal: most entries are exactly zero, whatever sigma is."""
    draws = sent("noise:5+sparsify:0.9", generator, 20)
    assert (draws == 0).double().mean().item() == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize(
    ("outside", "what"),
    [
        (Laplace(0.1), "its noise"),
        (Claimed(), "its noise"),
        (Half(0.1), "its noise"),
        (Rounded(0.1), "what it leaves to chance"),
        (Every(2.0), "what it leaves to chance"),
    ],
)
def test_from_outside_is_claimed_not_known(outside, what):
    name = type(outside).__name__
    for chain in [(outside,), (outside, Noise(1.0)), (Clip(1.0), Noise(1.0), outside)]:
        channel = channel_of(chain)
        assert channel.refusal == doubtful(chain)
        assert channel.refusal == (
            f"{name} is no defence of the package, so {what} is claimed, not known"
        )
    with pytest.raises(ConfigError, match=f"{name} is no defence of the package"):
        channel_of([outside, Noise(1.0)]).means(gradient())


def test_of_the_package_is_not_doubtful():
    assert doubtful([Clip(1.0), Sparsify(0.5), Noise(1.0)]) is None


@pytest.mark.parametrize(
    "spec", ["clip:1+noise:0.1", "sparsify:0.9+clip:1", "sparsify:0.5+noise:1", "none"]
)
def test_expected_is_the_mean_where_there_is_one(spec):
    channel = channel_of(parse_defense(spec))
    assert torch.equal(flat(channel.expected(gradient())), flat(channel.means(gradient())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_clip_behind_noise_sees_the_length_of_both(dtype, generator):
    channel = channel_of(parse_defense("noise:2+clip:1"))
    expected = channel.expected(gradient(dtype))
    assert {value.dtype for value in expected.values()} == {dtype}
    mean = sent("noise:2+clip:1", generator, 400).mean(0)
    own = flat(gradient())
    factor = (mean @ own / own.square().sum()).item()
    assert (flat(expected).double() @ own / own.square().sum()).item() == pytest.approx(
        factor, rel=0.05
    )
    without = math.sqrt(own.square().sum().item())
    assert factor < 0.9 / without  # a clip that saw the gradient alone would leave 1 / |g|


def test_noise_behind_a_sparsification_is_that_of_the_survivors():
    """9 of 10 entries are gone, and their noise with them."""
    sigma, own = 4.0, gradient()
    kept = flat(Sparsify(0.9).apply(own, None))
    length = math.hypot(kept.norm().item(), sigma * math.sqrt(int((kept != 0).sum())))
    found = channel_of([Noise(sigma), Sparsify(0.9), Clip(1.0)]).expected(own)
    torch.testing.assert_close(flat(found), kept / length)


def test_expected_of_what_comes_from_outside():
    own = gradient()
    found = channel_of([Rounded(0.5), Every(2.0), Laplace(0.1)]).expected(own)
    rounded = {name: (value / 0.5).round() * 0.5 for name, value in own.items()}
    torch.testing.assert_close(found, Every(2.0).apply(rounded, None))
    assert channel_of([Claimed()]).expected(own).keys() == own.keys()
