"""What lies in a prior's folder and is none."""

import json
import time

import pytest
import torch

from gradinv.cli import main
from gradinv.errors import PriorError
from gradinv.files import load_tensors, save_tensors
from gradinv.priors import load_generator
from gradinv.priors.dcgan import DCGAN
from gradinv.priors.generator import load_card, save_generator


@pytest.fixture
def folder(tmp_path):
    prior = DCGAN(image_size=16, channels=1, base_channels=2, latent_dim=3)
    save_generator(prior, tmp_path / "prior", {"data": "nothing"})
    return tmp_path / "prior"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(folder, value):
    tensors, header = load_tensors(folder / "model.safetensors", what="a prior")
    tensors["layers.0.weight"][0, 0, 0, 0] = value
    tensors["layers.1.running_var"][0] = value
    save_tensors(folder / "model.safetensors", tensors, header)
    with pytest.raises(
        PriorError, match=r"NaN or infinity in layers\.0\.weight, layers\.1\.running_var; "
    ):
        load_generator(folder)


DCGAN_16 = {"architecture": "dcgan", "image_size": 16, "channels": 1, "base_channels": 2}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "expected a JSON object in .*config.json, got list"),
        ("dcgan", "expected a JSON object in .*config.json, got str"),
        ({"architecture": ["dcgan"]}, "expected a known generator architecture"),
        ({**DCGAN_16, "latent_dim": -3}, "latent_dim as whole numbers above 0, got .*-3"),
        ({**DCGAN_16, "latent_dim": 0}, "as whole numbers above 0"),
        ({**DCGAN_16, "latent_dim": "3"}, "as whole numbers above 0"),
        ({**DCGAN_16, "base_channels": -2}, "as whole numbers above 0"),
        ({**DCGAN_16, "base_channels": 2.5}, "as whole numbers above 0"),
        ({**DCGAN_16, "channels": True}, "as whole numbers above 0"),
        ({**DCGAN_16, "image_size": float("inf")}, "as whole numbers above 0"),
        ({**DCGAN_16, "image_size": 20}, "4 times a power of two"),
        ({"architecture": "whitened", "generator": 3}, "settings of whitened"),
        ({"architecture": "whitened", "generator": "ab"}, "settings of whitened"),
        ({"architecture": "whitened", "generator": {"architecture": []}}, "known architecture"),
        ({"architecture": "whitened", "generator": {**DCGAN_16, "w": 1}}, "settings of whitened"),
    ],
)
def test_a_config_that_cannot_be_is_one_line(folder, config, message, capsys, no_type_checks):
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PriorError, match=message):
        load_generator(folder)
    assert main(["prior", "show", str(folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_card_that_is_none(folder, no_type_checks):
    (folder / "card.json").write_text("[]")
    with pytest.raises(PriorError, match=r"expected a JSON object in .*card\.json, got list"):
        load_card(folder)
    assert main(["prior", "show", str(folder)]) == 2


def test_a_generator_of_no_size(no_type_checks):
    with pytest.raises(PriorError, match="channels 3, base_channels 0, latent_dim 128"):
        DCGAN(base_channels=0)
    assert torch.is_tensor(DCGAN(image_size=8, base_channels=1, latent_dim=1)(torch.zeros(1, 1)))


@pytest.mark.parametrize("name", ["base_channels", "latent_dim"])
@pytest.mark.parametrize("size", [2**30, 2**45, 2**62, 2**70])
def test_a_prior_that_no_machine_can_hold(tmp_path, name, size):
    settings = {"architecture": "dcgan", "image_size": 32, name: size}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    started = time.monotonic()
    with pytest.raises(PriorError, match=r"expected (a prior that fits|the settings of dcgan)"):
        load_generator(tmp_path)
    assert time.monotonic() - started < 2
