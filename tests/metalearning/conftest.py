"""A federation of the tiny world: 3 clients, 2 rounds, batches of 2."""

from pathlib import Path

import pytest
import torch

from gradinv.data import load_images
from gradinv.federated import Federation, simulate
from gradinv.metalearning import open_tasks
from gradinv.models import build_model
from gradinv.priors.dcgan import DCGAN
from tests.audit.world import build

SPEC = "tiny_net:make"
INFO = {"spec": SPEC, "seed": "0"}


@pytest.fixture
def images(_in_a_folder_of_its_own, tmp_path):
    build(tmp_path)
    return load_images(tmp_path / "images", image_size=32, channels=1)


@pytest.fixture
def model(images):
    return build_model(SPEC, num_classes=3, channels=1, image_size=32, seed=0)


@pytest.fixture
def folder(images, model) -> Path:
    simulate(model, images, Federation(3, 2, 2, lr=1.0), Path("updates"), model_info=INFO)
    return Path("updates")


@pytest.fixture
def tasks(folder):
    return open_tasks(folder)


@pytest.fixture
def prior():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return DCGAN(image_size=32, channels=1, base_channels=4, latent_dim=6).eval()
