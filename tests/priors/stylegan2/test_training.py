"""The losses by hand, the penalties by autograd in another way, resumption to the bit."""

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from gradinv.errors import ConfigError, DataError, PriorError
from gradinv.priors.stylegan2 import StyleGAN2Config
from gradinv.priors.stylegan2 import training as module

TINY = StyleGAN2Config(base_channels=4, latent_dim=6, mapping_layers=2, batch_size=8)
IMAGES = torch.randint(0, 256, (16, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte()


def trainer(**settings) -> Any:
    return dataclasses.replace(TINY, **settings).trainer(IMAGES, torch.device("cpu"))


@pytest.fixture
def _plain(monkeypatch):
    monkeypatch.setattr(module, "augment", lambda images, _source: images)


@pytest.mark.usefixtures("_plain")
def test_losses_are_the_non_saturating_ones():
    training = trainer(r1=0.0, mixing=0.0)
    other = trainer(r1=0.0, mixing=0.0)
    made, judged = training.step()
    # The same draws in the same order, with the losses written out.
    with torch.no_grad():
        fake = other._images(other._styles(8))
        real = other._real()
        score = other.discriminator(torch.cat([real, fake]))
    expected = -torch.sigmoid(score[:8]).log().mean() - torch.sigmoid(-score[8:]).log().mean()
    assert judged == pytest.approx(expected.item(), rel=1e-5)
    # The generator was judged by the discriminator after its step.
    with torch.no_grad():
        fake = other._images(other._styles(8))
        judge = training.discriminator(fake)
    assert made == pytest.approx(-torch.sigmoid(judge).log().mean().item(), rel=1e-4)


@pytest.mark.usefixtures("_plain")
def test_each_side_moves_its_own_way():
    """A step of the generator raises the scores of its images, a discriminator's lowers them."""
    training = trainer(r1=0.0, lr=1e-9, lr_discriminator=1e-2)
    for _ in range(20):
        training.step()
    with torch.no_grad():
        real = training.discriminator(training._real())
        fake = training.discriminator(training._images(training._styles(8)))
    assert real.mean() > fake.mean() + 0.5
    training = trainer(r1=0.0, lr=2e-2, lr_discriminator=1e-9)
    before = training.discriminator(training._images(training._styles(8))).mean()
    for _ in range(20):
        training.step()
    assert training.discriminator(training._images(training._styles(8))).mean() > before + 0.05


@pytest.mark.usefixtures("_plain")
def test_r1_is_the_squared_slope_of_the_scores():
    training = trainer()
    network = training.discriminator.double()
    real = torch.rand(4, 1, 8, 8).double()
    total = 0.0
    for number in range(4):
        # The group's spread ties images together: the slope of the sum, by differences.
        for row in range(8):
            for column in range(8):
                moved = real.clone()
                # Two units of the discriminator for one of a pixel in [0, 1].
                moved[number, 0, row, column] += 0.5e-5
                back = real.clone()
                back[number, 0, row, column] -= 0.5e-5
                with torch.no_grad():
                    slope = (network(moved).sum() - network(back).sum()) / 2e-5
                total += slope.item() ** 2
    training._scores = lambda images: network(images)
    assert training._r1_penalty(real).item() == pytest.approx(total / 4, rel=1e-3)


@pytest.mark.usefixtures("_plain")
def test_r1_is_lazy_and_as_heavy(monkeypatch):
    """Every 16 steps, 16 times half the weight."""
    calls = []

    def penalty(self, real):
        calls.append(self.step_count)
        return original(self, real)

    original = module.StyleGAN2Trainer._r1_penalty
    monkeypatch.setattr(module.StyleGAN2Trainer, "_r1_penalty", penalty)
    training = trainer(batch_size=4)
    for _ in range(18):
        training.step()
    assert calls == [0, 16]
    gradients = []
    for weight in (0.0, 0.5):
        training = trainer(r1=weight)
        training.discriminator_optimizer.step = lambda: None
        training.generator_optimizer.step = lambda: None
        training.step()
        # The generator's pass leaves the discriminator's gradients alone.
        gradients.append(training.discriminator.score.weight.grad.clone())
    training = trainer(r1=0.5)
    with torch.no_grad():
        training._images(training._styles(8))
    real = training._real()
    (alone,) = torch.autograd.grad(original(training, real), [training.discriminator.score.weight])
    torch.testing.assert_close(gradients[1] - gradients[0], 0.5 * 16 * 0.5 * alone)


def test_path_lengths_are_those_of_the_jacobian():
    training = trainer(mixing=0.0)
    state = (training.source.get_state(), training.noise_source.get_state())
    penalty = training._path_penalty()
    training.source.set_state(state[0])
    training.noise_source.set_state(state[1])
    training.path_mean.zero_()
    w = training._styles(4)
    noise_state = training.noise_source.get_state()
    images = training._images(w)
    y = torch.randn(images.shape, generator=training.noise_source) / math.sqrt(64)

    def of(styles):
        training.noise_source.set_state(noise_state)
        return training._images(styles)

    lengths = []
    for number in range(4):
        jacobian = torch.autograd.functional.jacobian(of, w.detach())[number][..., number, :, :]
        product = torch.einsum("chwls,chw->ls", jacobian, y[number])
        lengths.append(product.square().sum(dim=1).mean().sqrt())
    lengths = torch.stack(lengths)
    mean = 0.01 * lengths.mean()
    torch.testing.assert_close(penalty.detach(), (lengths - mean).square().mean())


def test_the_path_penalty_takes_part_every_four_steps(monkeypatch):
    calls = []
    original = module.StyleGAN2Trainer._path_penalty

    def penalty(self):
        calls.append(self.step_count)
        return original(self)

    monkeypatch.setattr(module.StyleGAN2Trainer, "_path_penalty", penalty)
    training = trainer(path_length=2.0)
    for _ in range(6):
        training.step()
    assert calls == [0, 4]


def test_styles_are_mixed_from_some_layer_on():
    training = trainer(mixing=1.0)
    w = training._styles(64)
    changes = (w[:, 1:] != w[:, :-1]).any(dim=2)
    assert (changes.sum(dim=1) == 1).all()
    assert set(changes.float().argmax(dim=1).tolist()) == set(range(training.generator.layers - 1))
    training = trainer(mixing=0.0)
    w = training._styles(8)
    assert torch.equal(w, w[:, :1].expand_as(w))


def test_the_average_style_follows():
    training = trainer()
    for _ in range(3):
        training._styles(8)
    drawn = training.generator.mapping.average
    assert 0 < drawn.abs().max() < 0.1
    torch.manual_seed(0)
    one = trainer(mixing=0.0)
    w = one._styles(8)
    torch.testing.assert_close(one.generator.mapping.average, 0.002 * w[:, 0].mean(dim=0).detach())


def test_noise_is_drawn_for_every_image():
    training = trainer()
    for layer in (training.generator.synthesis.first, *training.generator.synthesis.same):
        torch.nn.init.ones_(layer.strength)
    w = training._styles(1).expand(2, -1, -1)
    images = training._images(w)
    assert not torch.allclose(images[0], images[1])


@pytest.mark.parametrize("settings", [{}, {"path_length": 1.0, "flip": True, "precision": "bf16"}])
def test_a_resumed_training_has_the_same_bits(settings):
    whole, first = trainer(**settings), trainer(**settings)
    for _ in range(5):
        whole.step()
    for _ in range(2):
        first.step()
    second = trainer(**settings)
    state = {name: value.clone() for name, value in first.state().items()}
    second.load_state(state, step=first.step_count, seconds=first.seconds)
    assert second.step_count == 2
    for _ in range(3):
        second.step()
    for name, value in whole.state().items():
        assert torch.equal(value, second.state()[name]), name


def test_the_average_is_the_prior():
    training = trainer(ema=0.5, lr=0.01)
    for _ in range(3):
        training.step()
    own = dict(training.generator.named_parameters())
    moved = [
        (average - own[name]).abs().max().item()
        for name, average in training.average.named_parameters()
    ]
    assert 0 < max(moved) < 1
    assert not training.average.training
    assert training.average.noise == "fixed"


def test_a_training_learns():
    """Grey images: what the generator makes turns grey."""
    images = torch.full((16, 1, 8, 8), 230, dtype=torch.uint8)
    config = dataclasses.replace(TINY, lr=5e-3, lr_discriminator=5e-3, ema=0.9)
    training = config.trainer(images, torch.device("cpu"))
    z = training.average.sample_latents(16, torch.Generator().manual_seed(0))
    before = F.l1_loss(training.average(z).mean(), torch.tensor(230 / 255))
    for _ in range(60):
        training.step()
    assert F.l1_loss(training.average(z).mean(), torch.tensor(230 / 255)) < before / 2


def test_losses_that_are_not_finite_end_the_training():
    training = trainer()
    torch.nn.init.constant_(training.discriminator.score.bias, math.nan)
    with pytest.raises(
        PriorError, match=r"^expected finite losses, got nan and nan at step 1; low"
    ):
        training.step()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_channels": 0}, "expected base_channels of at least 1, got 0; raise it"),
        ({"lr": 0.0}, "expected lr above 0 and finite, got 0.0; choose another"),
        ({"ema": 1.0}, r"expected ema in [0, 1), got 1.0; try 0.999"),
        ({"mixing": 1.5}, r"expected mixing in [0, 1], got 1.5; try 0.9"),
        ({"r1": -1.0}, "expected r1 of at least 0 and finite, got -1.0; use 0 for none"),
        ({"path_length": math.inf}, "expected path_length of at least 0 and finite, got inf"),
    ],
)
def test_settings_without_a_meaning(settings, message):
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(TINY, **settings)
    assert str(error.value).startswith(message)


def test_batches_and_images_that_do_not_fit():
    with pytest.raises(ConfigError, match=r"^expected a batch size that divides by 4, got 6; choo"):
        trainer(batch_size=6)
    with pytest.raises(
        DataError, match=r"^expected at least 32 images to train a prior, got 16; u"
    ):
        trainer(batch_size=32)


def test_what_a_training_takes():
    small, large = TINY.footprint((1, 8, 8)), dataclasses.replace(TINY, batch_size=800)
    training = trainer()
    weights = sum(p.numel() for p in training.generator.state_dict().values())
    assert small > 5 * 4 * weights
    assert large.footprint((1, 8, 8)) > 5 * small
