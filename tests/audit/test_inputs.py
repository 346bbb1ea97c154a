"""What commands name, loaded: the device and the prior."""

from pathlib import Path

import pytest
import torch

from gradinv.audit import inputs
from gradinv.audit.inputs import load_model, load_prior, resolve_device
from gradinv.audit.setup import prepare
from gradinv.errors import ConfigError
from gradinv.priors import SHIPPED, load_generator
from tests.audit.world import config


def test_cuda_must_be_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match="expected a CUDA device for --device cuda, got none"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")


def test_the_embedded_prior_comes_with_the_embedded_images_alone(monkeypatch):
    stand_in, load = load_generator(Path("prior")), inputs.load_generator
    monkeypatch.setattr(
        inputs, "load_generator", lambda p: stand_in if p == SHIPPED["embedded"] else load(p)
    )
    assert prepare(config(data=None, attack=("gi-z",))).server.prior is stand_in
    # An attack without a prior does not load one.
    assert prepare(config(data=None)).server.prior is None
    cpu = torch.device("cpu")
    assert load_prior(None, device=cpu, embedded=False) is None
    assert load_prior("embedded", device=cpu, embedded=False) is stand_in
    given = prepare(config(data=None, attack=("gi-z",), prior="prior")).server.prior
    assert given is not None
    assert given is not stand_in


def test_a_normalisation_of_other_channels():
    with pytest.raises(ConfigError, match=r"for each of the 3 channels of the images, got 1"):
        load_model(
            "convnet",
            num_classes=2,
            image_shape=(3, 16, 16),
            seed=0,
            weights=None,
            mode="eval",
            device=torch.device("cpu"),
            mean="0.5",
            std="0.5",
        )


@pytest.mark.parametrize("name", SHIPPED)
def test_priors_that_the_package_has_go_by_their_words(name):
    prior = load_prior(name, device=torch.device("cpu"), embedded=False)
    assert prior is not None
    assert prior.image_shape[1:] == (32, 32)
