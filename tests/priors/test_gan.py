"""Settings of a training that have no meaning, and the losses of those that have one."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from gradinv.errors import ConfigError, PriorError
from gradinv.priors import gan
from gradinv.priors.gan import GanTrainer, TrainingConfig
from gradinv.priors.generator import Generator

CPU = torch.device("cpu")


@pytest.fixture
def images(generator):
    return torch.randint(0, 256, (16, 1, 16, 16), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_channels": 0}, "expected base_channels of at least 1, got 0; raise it"),
        ({"latent_dim": -3}, "expected latent_dim of at least 1, got -3"),
        ({"batch_size": 0}, "expected batch_size of at least 1, got 0"),
        ({"lr": 0.0}, "expected lr above 0 and finite, got 0.0; choose another"),
        ({"lr": float("nan")}, "expected lr above 0 and finite, got nan"),
        ({"lr_discriminator": float("inf")}, "expected lr_discriminator above 0 and finite"),
        ({"ema": 1.0}, r"expected ema in \[0, 1\), got 1.0; try 0.999"),
        ({"ema": -0.1}, r"expected ema in \[0, 1\), got -0.1"),
        ({"r1": -1.0}, "expected r1 of at least 0 and finite, got -1.0; use 0 for none"),
        ({"r1": float("inf")}, "expected r1 of at least 0 and finite, got inf"),
        ({"reconstruction": -1.0}, "expected reconstruction of at least 0 and finite, got -1.0"),
        ({"reconstruction": float("nan")}, "reconstruction of at least 0 and finite, got nan"),
        ({"adversarial": -1.0}, "expected adversarial of at least 0 and finite, got -1.0"),
        ({"seed": -1}, "expected seed of at least 0, got -1"),
        ({"seed": 2**63}, "expected seed of at most"),
    ],
)
def test_a_setting_without_meaning_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**settings)


def test_what_leaves_a_part_out_is_allowed():
    TrainingConfig(r1=0.0, reconstruction=0.0, adversarial=0.0, ema=0.0)


# From here on: the losses themselves, against gradients that were worked out by hand. The networks
# are replaced by ones of a few numbers: D(x) = slope * mean(x) + offset, G(z) = level + gain * z.

SMALL = TrainingConfig(base_channels=2, latent_dim=1, batch_size=8, reconstruction=0.0, seed=3)
SLOPE, OFFSET, LEVEL = 0.5, 0.25, 0.75
PIXELS = 16 * 16


class Judge(nn.Module):
    def __init__(self, slope=SLOPE, offset=OFFSET):
        super().__init__()
        self.slope, self.offset = (nn.Parameter(torch.tensor(v)) for v in (slope, offset))

    def forward(self, x):
        return self.slope * x.mean(dim=(1, 2, 3)) + self.offset


class Flat(Generator):
    """Images of one grey each."""

    latent_shape = (1,)
    image_shape = (1, 16, 16)

    def __init__(self, gain=0.0):
        super().__init__()
        self.level, self.gain = (nn.Parameter(torch.tensor(v)) for v in (LEVEL, gain))

    def forward(self, z):
        return (self.level + self.gain * z.sum(dim=1))[:, None, None, None].expand(-1, 1, 16, 16)


class Guess(nn.Module):
    """The same mean and log-variance for every image."""

    def __init__(self, mean, log_variance):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))
        self.log_variance = nn.Parameter(torch.tensor(log_variance))

    def forward(self, x):
        shape = (len(x), len(self.mean))
        return self.mean.expand(shape), self.log_variance.expand(shape)


@pytest.fixture
def plain(monkeypatch):
    """No augmentation."""
    monkeypatch.setattr(gan, "augment", lambda images, _: images)


def trainer_of(config, images=None, *, judge=None, flat=None, guess=None) -> Any:
    """A trainer of small networks that never move, so that every step has the same gradient."""
    if images is None:
        images = torch.full((config.batch_size, 1, 16, 16), 51, dtype=torch.uint8)  # grey of 0.2
    trainer: Any = GanTrainer(images, config, CPU)
    trainer.discriminator = judge or Judge()
    trainer.generator = flat or Flat()
    trainer.average = copy.deepcopy(trainer.generator)
    learned = [*trainer.generator.parameters()]
    if guess is not None:
        trainer.encoder = guess
        learned += guess.parameters()
    trainer.generator_optimizer = torch.optim.SGD(learned, lr=0.0)
    trainer.discriminator_optimizer = torch.optim.SGD(trainer.discriminator.parameters(), lr=0.0)
    return trainer


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


REAL = SLOPE * 0.2 + OFFSET  # the score of a real image, 0.35
FAKE = SLOPE * LEVEL + OFFSET  # and of a generated one, 0.625


@pytest.mark.parametrize(
    ("loss", "discriminator", "generator", "slope", "offset", "level"),
    [
        # max(0, 1 - r) + max(0, 1 + f) and -f: the hinge loss of Miyato et al. 2018
        ("hinge", (1 - REAL) + (1 + FAKE), -FAKE, -0.2 + LEVEL, 0.0, -SLOPE),
        # -log s(r) - log(1 - s(f)) and -log s(f): Goodfellow et al. 2014, section 3
        (
            "non-saturating", -math.log(sigmoid(REAL)) - math.log(1 - sigmoid(FAKE)),
            -math.log(sigmoid(FAKE)), -0.2 * (1 - sigmoid(REAL)) + LEVEL * sigmoid(FAKE),
            -(1 - sigmoid(REAL)) + sigmoid(FAKE), -SLOPE * (1 - sigmoid(FAKE)),
        ),
    ],
)  # fmt: skip
def test_losses_and_gradients_are_the_papers(
    loss, discriminator, generator, slope, offset, level, plain
):
    trainer = trainer_of(replace(SMALL, loss=loss))
    assert trainer.step() == pytest.approx((generator, discriminator), rel=1e-5)
    judge = trainer.discriminator
    assert judge.slope.grad.item() == pytest.approx(slope, rel=1e-5)
    assert judge.offset.grad.item() == pytest.approx(offset, rel=1e-5, abs=1e-6)
    assert trainer.generator.level.grad.item() == pytest.approx(level, rel=1e-5)


@pytest.mark.parametrize(
    ("judge", "offset"),
    [
        (Judge(0.0, 1.5), 1.0),  # real ones are beyond the margin: only the generated ones count
        (Judge(0.0, -1.5), -1.0),  # and the other way round
        (Judge(-4.0, 1.9), 0.0),  # r = 1.1 and f = -1.1: nothing is left to learn
    ],
)
def test_hinge_ends_at_its_margins(judge, offset, plain):
    trainer = trainer_of(SMALL, judge=judge)
    trainer.step()
    assert trainer.discriminator.offset.grad.item() == pytest.approx(offset)


def test_one_step_of_each_side_goes_the_right_way(plain):
    trainer = trainer_of(SMALL)
    for optimizer in (trainer.generator_optimizer, trainer.discriminator_optimizer):
        optimizer.param_groups[0]["lr"] = 0.1
    trainer.step()
    judge = trainer.discriminator
    # Generated images are the brighter ones here, so brightness tells less for real than before,
    assert judge.slope.item() == pytest.approx(SLOPE - 0.1 * (LEVEL - 0.2))
    # and the generator moves along the new slope, to what passes for real.
    assert trainer.generator.level.item() == pytest.approx(LEVEL + 0.1 * judge.slope.item())


def test_both_sides_see_real_and_generated_images_augmented(monkeypatch):
    seen = []

    def brighter(images, source):
        seen.append((images.mean(dim=(1, 2, 3)).tolist(), source))
        return images + 1

    monkeypatch.setattr(gan, "augment", brighter)
    trainer = trainer_of(SMALL)
    losses = trainer.step()
    discriminator = max(0, 1 - (REAL + SLOPE)) + 1 + FAKE + SLOPE
    assert losses == pytest.approx((-(FAKE + SLOPE), discriminator), rel=1e-5)
    assert [means for means, _ in seen] == [
        pytest.approx([0.2] * 8 + [LEVEL] * 8), pytest.approx([LEVEL] * 8)
    ]  # fmt: skip
    assert all(source is trainer.source for _, source in seen)


class Pattern(nn.Module):
    """D(x) = <weight, x>, whose gradient with respect to every image is the weight."""

    def __init__(self):
        super().__init__()
        source = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(0.001 * torch.randn(1, 16, 16, generator=source))

    def forward(self, x):
        return (self.weight * x).sum(dim=(1, 2, 3))


@pytest.mark.parametrize("batch_size", [4, 12])
def test_r1_is_half_of_gamma_in_the_mean_over_sixteen_steps(batch_size, plain):
    # Mescheder et al. 2018, eq. 9: gamma/2 E |dD/dx|^2 over real images; its gradient in the
    # weight is gamma * weight, whatever the batch size. Taken every 16 steps, 16 times as strong
    # (Karras et al. 2020, appendix B).
    gradients = {}
    for gamma in (0.0, 3.0):
        config = replace(SMALL, r1=gamma, batch_size=batch_size)
        trainer = trainer_of(config, judge=Pattern())
        gradients[gamma] = []
        for _ in range(33):
            _, loss = trainer.step()
            assert loss == pytest.approx(2.0, abs=0.1)  # what is told is the loss without it
            gradients[gamma].append(trainer.discriminator.weight.grad.clone())
    penalty = [r1 - none for r1, none in zip(gradients[3.0], gradients[0.0], strict=True)]
    weight = trainer.discriminator.weight.detach()
    for step, own in enumerate(penalty):
        expected = 16 * 3.0 * weight if step in {0, 16, 32} else torch.zeros_like(weight)
        assert torch.allclose(own, expected, atol=1e-6), step
    assert torch.allclose(torch.stack(penalty[:16]).mean(0), 3.0 * weight, atol=1e-6)


def test_r1_looks_at_real_images_as_they_are(monkeypatch):
    class Bent(Judge):
        def forward(self, x):
            return self.slope * x.square().sum(dim=(1, 2, 3)) / 2

    monkeypatch.setattr(gan, "augment", lambda images, _: 0 * images)
    trainer = trainer_of(replace(SMALL, r1=0.1), judge=Bent())
    trainer.step()
    # dD/dx = slope * x: the penalty is slope^2 |x|^2 with x = 0.2 in every pixel.
    expected = 0.5 * 16 * 0.1 * 2 * SLOPE * PIXELS * 0.2**2
    assert trainer.discriminator.slope.grad.item() == pytest.approx(expected, rel=1e-5)


def test_the_reconstruction_term_is_the_negative_elbo_of_a_pixel(plain):
    mean, log_variance, sigma = [0.3, -1.0, 2.0], [0.5, -2.0, 1.0], 0.4
    config = replace(SMALL, reconstruction=sigma, adversarial=0.07, latent_dim=3)
    trainer = trainer_of(config, guess=Guess(mean, log_variance))
    generator_loss, discriminator_loss = trainer.step()
    posterior = Normal(torch.tensor(mean), torch.tensor(log_variance).div(2).exp())
    divergence = kl_divergence(posterior, Normal(0.0, 1.0)).sum().item()
    likelihood = (LEVEL - 0.2) ** 2 / (2 * sigma**2)
    expected = 0.07 * -FAKE + likelihood + divergence / PIXELS
    assert generator_loss == pytest.approx(expected, rel=1e-5)
    assert discriminator_loss == pytest.approx((1 - REAL) + (1 + FAKE), rel=1e-5)
    level = 0.07 * -SLOPE + (LEVEL - 0.2) / sigma**2
    assert trainer.generator.level.grad.item() == pytest.approx(level, rel=1e-5)
    # The images say nothing about z here, so the divergence alone moves the encoder: a step down
    # the gradient brings it to N(0, 1).
    encoder = trainer.encoder
    assert encoder.mean.grad.tolist() == pytest.approx([m / PIXELS for m in mean], rel=1e-5)
    assert encoder.log_variance.grad.tolist() == pytest.approx(
        [(math.exp(v) - 1) / 2 / PIXELS for v in log_variance], rel=1e-5
    )


def test_the_posterior_is_drawn_with_its_own_deviation(plain):
    mean, log_variance, sigma, gain = 0.5, math.log(4.0), 1.0, 0.3
    config = replace(SMALL, reconstruction=sigma, adversarial=0.0, batch_size=4096)
    trainer = trainer_of(config, flat=Flat(gain), guess=Guess([mean], [log_variance]))
    loss, _ = trainer.step()
    # E (level + gain z - x)^2 with z ~ N(0.5, 2^2)
    bias, spread = LEVEL + gain * mean - 0.2, 2 * gain
    divergence = (mean**2 + 4 - 1 - log_variance) / 2
    expected = (bias**2 + spread**2) / 2 + divergence / PIXELS
    assert loss == pytest.approx(expected, rel=0.05)


def test_reconstruction_trains_the_encoder_and_its_absence_leaves_it_alone(images):
    for reconstruction in (0.1, 0.0):
        config = replace(SMALL, reconstruction=reconstruction, latent_dim=4)
        trainer = GanTrainer(images, config, CPU)
        before = [parameter.detach().clone() for parameter in trainer.encoder.parameters()]
        trainer.step()
        after = trainer.encoder.parameters()
        same = [torch.equal(*pair) for pair in zip(before, after, strict=True)]
        assert not any(same) if reconstruction else all(same)


def test_each_network_has_its_own_step_size(images):
    trainer = GanTrainer(images, replace(SMALL, lr=0.02, lr_discriminator=0.003), CPU)
    before = [
        [p.detach().clone() for p in network.parameters()]
        for network in (trainer.generator, trainer.discriminator)
    ]
    trainer.step()
    # Adam's first step is the learning rate itself in every coordinate that has a gradient.
    for network, old, lr in zip(
        (trainer.generator, trainer.discriminator), before, (0.02, 0.003), strict=True
    ):
        moves = torch.cat([
            (new - was).abs().flatten()
            for new, was in zip(network.parameters(), old, strict=True)
        ])  # fmt: skip
        assert moves.median().item() == pytest.approx(lr, rel=0.01)
    for optimizer in (trainer.generator_optimizer, trainer.discriminator_optimizer):
        assert optimizer.param_groups[0]["betas"] == (0.5, 0.999)


@pytest.mark.parametrize(
    ("ema", "decays"),
    [
        (0.999, [1 / 10, 2 / 11, 3 / 12, 4 / 13]),  # (1 + t) / (10 + t) while that is less
        (0.2, [1 / 10, 2 / 11, 0.2, 0.2]),
        (0.0, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_the_average_keeps_its_decay_of_the_old_and_takes_the_rest_of_the_new(ema, decays, plain):
    trainer = trainer_of(replace(SMALL, ema=ema))
    trainer.generator_optimizer.param_groups[0]["lr"] = 0.4
    average = LEVEL
    for decay in decays:
        trainer.step()
        average = decay * average + (1 - decay) * trainer.generator.level.item()
        assert trainer.average.level.item() == pytest.approx(average, rel=1e-6)
    assert abs(trainer.generator.level.item() - LEVEL) > 0.5


def test_the_average_counts_batches_as_the_generator_does(images):
    trainer = GanTrainer(images, SMALL, CPU)
    for _ in range(3):
        trainer.step()
    name = "layers.1.num_batches_tracked"
    assert trainer.generator.state_dict()[name] == trainer.average.state_dict()[name] > 0
    assert not trainer.average.training


@pytest.mark.parametrize("mirrored", [False, True])
def test_real_images_are_mirrored_only_where_that_was_asked_for(mirrored, plain):
    images = torch.zeros(8, 1, 16, 16, dtype=torch.uint8)
    images[..., :4] = 255  # a bar on the left
    trainer = trainer_of(replace(SMALL, flip=mirrored), images)
    seen = torch.cat([trainer._real() for _ in range(8)])
    assert set(seen.unique().tolist()) == {0.0, 1.0}
    left, right = seen[..., :4].mean(dim=(1, 2, 3)), seen[..., -4:].mean(dim=(1, 2, 3))
    assert torch.equal(left + right, torch.ones(64))
    assert 16 < right.sum() < 48 if mirrored else right.sum() == 0


@pytest.mark.parametrize(
    ("judge", "sigma"),
    [
        (Judge(0.0, float("nan")), 0.0),
        (Judge(4e6, -3e6), 0.0),  # f = 0, r = -2.2e6: the discriminator's alone
        (Judge(), 1e-5),  # the generator's alone
    ],
)
def test_a_loss_that_runs_away_ends_the_training(judge, sigma, plain):
    config = replace(SMALL, reconstruction=sigma)
    trainer = trainer_of(config, judge=judge, guess=Guess([0.0], [0.0]))
    with pytest.raises(
        PriorError, match=r"expected finite losses, got .* at step 1; lower the learning rate"
    ):
        trainer.step()
