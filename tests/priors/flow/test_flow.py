"""Against a distribution whose field is known, and losses by hand; resumption to the bit."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from gradinv.errors import ConfigError, DataError, PriorError
from gradinv.priors import load_generator
from gradinv.priors.flow import FlowConfig, FlowPrior
from gradinv.priors.generator import save_generator

TINY = FlowConfig(base_channels=4, batch_size=8, warmup=1)
IMAGES = torch.randint(0, 256, (16, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
MEAN, SPREAD = 0.3, 0.1


def trainer(**settings) -> Any:
    return dataclasses.replace(TINY, **settings).trainer(IMAGES, torch.device("cpu"))


class Gaussian(FlowPrior):
    """The field of pixels that are all N(MEAN, SPREAD^2), in closed form."""

    def velocity(self, x, t):
        t = t[:, None, None, None]
        variance = (1 - t) ** 2 + (t * SPREAD) ** 2
        off = x - t * MEAN
        image = MEAN + t * SPREAD**2 / variance * off
        noise = (1 - t) / variance * off
        return image - noise


def gaussian(steps: int = 8) -> Gaussian:
    return Gaussian(image_size=8, channels=1, base_channels=4, steps=steps).eval()


def test_denoising_gives_the_mean_of_what_the_image_may_have_been():
    torch.manual_seed(0)
    x = MEAN + SPREAD * torch.randn(2000, 1, 8, 8)
    t = torch.full((2000,), 0.7)
    noisy = 0.3 * torch.randn_like(x) + 0.7 * x
    found = gaussian().denoise(noisy, t)
    # The conditional mean of a Gaussian, by regression over the draws.
    slope = ((noisy - noisy.mean()) * (x - x.mean())).mean() / noisy.var()
    expected = x.mean() + slope * (noisy - noisy.mean())
    assert (found - expected).abs().mean() < 2e-3
    clean = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(gaussian().denoise(clean, torch.ones(2)), clean)


def test_ways_end_at_the_images():
    torch.manual_seed(0)
    images = 2 * gaussian(40)(torch.randn(500, 1, 8, 8)) - 1
    assert abs(images.mean().item() - MEAN) < 0.01
    assert abs(images.std().item() - SPREAD) < 0.02


def test_more_steps_are_closer():
    torch.manual_seed(0)
    z = torch.randn(50, 1, 8, 8)
    exact = gaussian(200)(z)
    errors = [(gaussian(steps)(z) - exact).abs().mean().item() for steps in (4, 16, 64)]
    assert errors[0] > errors[1] > errors[2]


def test_the_loss_is_the_error_of_the_velocity():
    training, other = trainer(), trainer()
    loss, judged = training.step()
    assert judged == 0.0
    x = other._real()
    z = torch.randn(x.shape, generator=other.noise_source)
    torch.rand((8,), generator=other.noise_source)
    # The field starts at zero.
    assert loss == pytest.approx((x - z).square().mean().item(), rel=1e-5)
    assert -1 <= x.min() < -0.9 < 0.9 < x.max() <= 1


def test_a_training_learns_where_images_are():
    images = torch.full((16, 1, 8, 8), 230, dtype=torch.uint8)
    training = dataclasses.replace(TINY, lr=3e-3, ema=0.9).trainer(images, torch.device("cpu"))
    z = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = (training.average(z) - 230 / 255).abs().mean()
    for _ in range(150):
        training.step()
    assert (training.average(z) - 230 / 255).abs().mean() < before / 2


@pytest.mark.parametrize("settings", [{}, {"flip": True, "precision": "bf16", "warmup": 4}])
def test_a_resumed_training_has_the_same_bits(settings):
    whole, first, second = (trainer(**settings) for _ in range(3))
    for _ in range(5):
        whole.step()
    for _ in range(2):
        first.step()
    state = {name: value.clone() for name, value in first.state().items()}
    second.load_state(state, step=first.step_count, seconds=first.seconds)
    for _ in range(3):
        second.step()
    for name, value in whole.state().items():
        assert torch.equal(value, second.state()[name]), name


def test_an_image_depends_on_its_own_latent_alone_and_it_is_saved(tmp_path):
    prior = trainer(lr=0.1)
    prior.step()
    generator = prior.average
    z = generator.sample_latents(3, torch.Generator().manual_seed(1))
    assert z.shape == (3, 1, 8, 8)
    torch.testing.assert_close(generator(z)[1:2], generator(z[1:2]), rtol=1e-4, atol=1e-5)
    save_generator(generator, tmp_path, {})
    assert torch.equal(load_generator(tmp_path)(z), generator(z))


def test_settings_that_cannot_be():
    with pytest.raises(ConfigError, match=r"^expected warmup of at least 1, got 0; raise it"):
        dataclasses.replace(TINY, warmup=0)
    with pytest.raises(ConfigError, match=r"^expected lr above 0 and finite, got inf; choose"):
        dataclasses.replace(TINY, lr=math.inf)
    with pytest.raises(ConfigError, match=r"^expected ema in \[0, 1\), got 1.0; try 0.999"):
        dataclasses.replace(TINY, ema=1.0)
    with pytest.raises(DataError, match=r"^expected at least 32 images to train a prior, got 16"):
        trainer(batch_size=32)
    with pytest.raises(PriorError, match=r"^expected an image size that is a multiple of 4 and an"):
        FlowPrior(image_size=30)
    with pytest.raises(PriorError, match=r"as whole numbers above 0, got image_size 32, chan"):
        FlowPrior(channels=0)


def test_a_loss_that_is_not_finite_ends_the_training():
    training = trainer()
    torch.nn.init.constant_(training.generator.field.start.bias, math.nan)
    with pytest.raises(PriorError, match=r"^expected a finite loss, got nan at step 1; lower"):
        training.step()
