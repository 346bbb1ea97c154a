"""A prior that cannot fit is refused before memory is taken."""

import pytest

from gradinv.errors import ConfigError, PriorError
from gradinv.priors.dcgan import require_generator_fits
from gradinv.priors.footprint import require_training_fits
from gradinv.priors.gan import TrainingConfig
from gradinv.room import GIB

SHAPE = (1, 32, 32)


@pytest.fixture(autouse=True)
def _one_gib(monkeypatch):
    monkeypatch.setattr("gradinv.room.machine_bytes", lambda: GIB)


def test_a_generator_that_fits_and_one_that_does_not():
    require_generator_fits(SHAPE, base_channels=48, latent_dim=128)
    # 4096 and 2048 channels at 4 and 8 pixels: a kernel of 2**29 bytes between them, and more.
    with pytest.raises(
        PriorError,
        match=r"^expected a prior that fits into the 1 GiB of this machine, got one that needs "
        r"about 1\.\d+ GiB; lower --base-channels, --latent or --image-size$",
    ):
        require_generator_fits(SHAPE, base_channels=1450, latent_dim=128)


def test_a_size_that_cannot_be_counted():
    with pytest.raises(PriorError, match=r"whose size can be counted, got one of .*latent_dim"):
        require_generator_fits(SHAPE, base_channels=2**40, latent_dim=2**40)


@pytest.mark.parametrize(
    ("config", "images", "size", "message"),
    [
        ({"batch_size": 100000}, 100000, 32, r"a training .* lower --batch-size, --base-channels"),
        ({"base_channels": 1000}, 64, 32, r"a training .* lower --batch-size, --base-channels"),
        ({"latent_dim": 10**7}, 64, 32, r"a training .* lower --batch-size, --base-channels"),
        ({}, 100, 8192, r"a set of images .* lower --image-size or the number of images"),
    ],
    ids=["batch", "width", "latent", "pixels"],
)
def test_a_training_that_does_not_fit(config, images, size, message):
    require_training_fits(TrainingConfig(), 64, SHAPE, "cpu")
    with pytest.raises(ConfigError, match=r"the 1 GiB of .* about [\d.e+]+ GiB; .*"):
        require_training_fits(TrainingConfig(**config), images, (1, size, size), "cpu")
    with pytest.raises(ConfigError, match=message):
        require_training_fits(TrainingConfig(**config), images, (1, size, size), "cpu")
