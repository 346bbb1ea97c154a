from dataclasses import fields

import pytest
import torch

from gradinv.errors import ConfigError
from gradinv.priors.architectures import TRAINED, training_settings
from gradinv.priors.footprint import require_training_fits
from gradinv.priors.generator import ARCHITECTURES
from gradinv.priors.trainer import Settings, Trainer
from gradinv.priors.training import train_prior

SMALL = {"base_channels": 4, "batch_size": 4}
IMAGES = torch.randint(0, 256, (8, 1, 32, 32), generator=torch.Generator().manual_seed(0)).byte()


@pytest.mark.parametrize("name", TRAINED)
def test_every_architecture_trains_through_one_door(name, tmp_path):
    config = training_settings(name, SMALL)
    assert isinstance(config, Settings)
    assert isinstance(config.trainer(IMAGES, torch.device("cpu")), Trainer)
    require_training_fits(config, len(IMAGES), (1, 32, 32), "cpu")
    prior, quality = train_prior(IMAGES, out=tmp_path, config=config, steps=2)
    assert type(prior) is ARCHITECTURES[name]
    assert prior.image_shape == (1, 32, 32)
    assert quality.samples == 8


@pytest.mark.parametrize("name", TRAINED)
def test_its_own_numbers_stand_where_nothing_is_given(name):
    settings = training_settings(name, {"seed": 5})
    assert settings == TRAINED[name](**{"seed": 5})
    assert {"batch_size", "seed", "precision", "flip"} <= {field.name for field in fields(settings)}


def test_settings_of_another_architecture():
    with pytest.raises(
        ConfigError,
        match=r"^expected settings that stylegan2 has, got loss; leave it out, or tr.*dc",
    ):
        training_settings("stylegan2", {"loss": "hinge"})
    with pytest.raises(ConfigError, match=r"got colour, mixing; leave them out, or train another"):
        training_settings("dcgan", {"colour": 1, "mixing": 1})


def test_a_training_goes_on_with_its_own_architecture(tmp_path):
    train_prior(IMAGES, out=tmp_path, config=training_settings("dcgan", SMALL), steps=1)
    with pytest.raises(ConfigError, match=r"began with, got another architecture"):
        train_prior(IMAGES, out=tmp_path, config=training_settings("stylegan2", SMALL), steps=2)
