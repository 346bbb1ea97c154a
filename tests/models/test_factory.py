"""Networks by name and by ``package.module:factory``."""

import sys

import pytest
import torch
from torch import nn

from gradinv.errors import ConfigError, ModelError
from gradinv.models.factory import MODELS, build_model
from gradinv.models.weights import fingerprint

FOREIGN = """
import torch
from torch import nn

seen = {}

def some(num_classes, image_size):
    seen.update(num_classes=num_classes, image_size=image_size)
    return nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(image_size ** 2, num_classes))

def everything(**arguments):
    seen.update(arguments)
    return some(arguments["num_classes"], arguments["image_size"])

class Net(nn.Sequential):
    def __init__(self, num_classes=5):
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, num_classes))

def no_module(): return 3
def needs_more(depth): return nn.Identity()
def raises(): raise RuntimeError("out of luck")
def wrong_shape(): return nn.Flatten()
def one_logit(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(1))
def squeezed(): return nn.Sequential(one_logit(), nn.Flatten(0))
def cannot_run(): return nn.Linear(3, 3)

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
    def forward(self, images):
        return images, images

class Named(Pair):
    def forward(self, images):
        return {"one": images, "other": images}

a_number = 3
"""


def build(spec: str, *, num_classes: int = 5, channels: int = 1, size: int = 8, seed: int = 0):
    return build_model(spec, num_classes=num_classes, channels=channels, image_size=size, seed=seed)


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A module ``foreignnets`` in the working directory, imported afresh in every test."""
    (tmp_path / "foreignnets.py").write_text(FOREIGN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    sys.modules.pop("foreignnets", None)


@pytest.mark.parametrize("name", MODELS)
def test_same_seed_same_weights_and_chance_is_left_alone(name):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = build(name, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert not first.training
    torch.rand(3)
    assert fingerprint(build(name, seed=0)) == fingerprint(first)
    assert fingerprint(build(name, seed=1)) != fingerprint(first)


def test_stem_follows_the_size_of_the_images():
    assert build("resnet18", size=64).get_submodule("conv1").kernel_size == (3, 3)
    assert build("resnet18", size=65).get_submodule("conv1").kernel_size == (7, 7)
    assert build("resnet18-imagenet", size=32).get_submodule("conv1").kernel_size == (7, 7)


def test_unknown_name():
    with pytest.raises(ModelError, match=r"got 'resnet'; did you mean 'resnet18'\?"):
        build("resnet")


def test_a_seed_that_cannot_be():
    with pytest.raises(ConfigError, match="the network's seed of at most"):
        build("convnet", seed=99999999999999999999)


def test_one_logit_is_no_classifier():
    with pytest.raises(ModelError, match=r"of at least 2 classes, got 1; .*cross entropy"):
        build("convnet", num_classes=1)


@pytest.mark.usefixtures("foreign")
class TestForeign:
    def test_factory_gets_what_it_accepts(self):
        model = build("foreignnets:some")
        assert sys.modules["foreignnets"].seen == {"num_classes": 5, "image_size": 8}
        assert not any(module.training for module in model.modules())

    def test_factory_with_keywords_gets_everything(self):
        build("foreignnets:everything")
        assert sys.modules["foreignnets"].seen == {
            "num_classes": 5,
            "channels": 1,
            "image_size": 8,
        }

    def test_a_class_is_a_factory_too(self):
        assert build("foreignnets:Net", num_classes=9).get_submodule("2").out_features == 9

    def test_seed_and_search_path(self):
        path, chance = list(sys.path), torch.get_rng_state()
        first = build("foreignnets:some", seed=3)
        assert fingerprint(build("foreignnets:some", seed=3)) == fingerprint(first)
        assert sys.path == path
        assert torch.equal(torch.get_rng_state(), chance)

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("foreignnet:some", "importable module, got ModuleNotFoundError: .*check the name"),
            (":some", "to name an importable module, got ValueError"),
            ("foreignnets:som", "factory 'som' in foreignnets, got nothing .*mean 'some'?"),
            ("foreignnets:a_number", "expected a factory 'foreignnets:a_number', got int; name"),
            ("foreignnets:some:3", "foreignnets:some without settings, got '3'; write a factory"),
            ("convnet:3", "expected convnet without settings, got '3'; write a factory"),
            ("foreignnets:needs_more", "from no arguments, got TypeError: .*'depth'; let it take"),
            ("foreignnets:raises", "got RuntimeError: out of luck; let it take num_classes"),
            ("foreignnets:no_module", r"to return a torch\.nn\.Module, got int; name a function"),
            ("foreignnets:wrong_shape", r"shape \(2, 5\), got shape \(2, 64\); give the network 5"),
            ("foreignnets:Pair", r"to logits of shape \(2, 5\), got shape \(2, 1, 8, 8\); give"),
            ("foreignnets:Named", r"to logits of shape \(2, 5\), got a dict; give"),
            ("foreignnets:cannot_run", "got RuntimeError: .*; mend the network's input"),
        ],
    )
    def test_errors(self, spec, message):
        with pytest.raises(ModelError, match=message):
            build(spec)

    def test_a_module_that_raises_on_import(self, tmp_path):
        (tmp_path / "brokennets.py").write_text("1 / 0")
        with pytest.raises(ModelError, match="got ZeroDivisionError: division by zero; check"):
            build("brokennets:some")


def test_a_module_that_is_installed():
    with pytest.raises(ModelError, match=r"expected torch\.nn:Identity to map images"):
        build("torch.nn:Identity")
    assert isinstance(build("gradinv.models.convnet:ConvNet"), nn.Module)


@pytest.mark.usefixtures("foreign")
@pytest.mark.parametrize("factory", ["one_logit", "squeezed"])
def test_one_logit_gets_a_sentence_of_its_own(factory):
    with pytest.raises(ModelError, match="one logit, as binary cross entropy takes it") as caught:
        build(f"foreignnets:{factory}")
    assert "also where there are two" in str(caught.value)
    assert "give the network 5 outputs" not in str(caught.value)
