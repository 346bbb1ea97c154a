import sys

import pytest
import torch
from torch import nn

import gradinv
from gradinv.audit.inversion import digest_of
from gradinv.models import build_model, fingerprint
from gradinv.models.wrappers import unwrapped_network

# What torch.compile imports warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*:DeprecationWarning")

BATCH = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2])


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()


WRAPPERS = {
    "parallel": nn.DataParallel,
    "compiled": torch.compile,
    "both": lambda model: torch.compile(nn.DataParallel(model)),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_the_network_inside_is_what_counts(wrap):
    model = network()
    assert unwrapped_network(wrap(model)) is model
    assert unwrapped_network(model) is model
    update = gradinv.observe(wrap(model), BATCH)
    assert digest_of(update) == digest_of(gradinv.observe(model, BATCH))
    found = gradinv.invert(update, wrap(model), attack="gi-x:steps=2", progress=False)
    assert found.images.shape == BATCH[0].shape


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_of_a_factory_too(wrap, monkeypatch):
    module = type(sys)("wrapped_net")
    module.__dict__["make"] = lambda: wrap(network())
    monkeypatch.setitem(sys.modules, "wrapped_net", module)
    built = build_model("wrapped_net:make", num_classes=3, channels=1, image_size=8, seed=0)
    assert type(built) is nn.Sequential
    assert list(built.state_dict()) == ["1.weight", "1.bias"]


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_another_precision_is_computed_in_float32(kind, monkeypatch):
    model = network().to(kind)
    update = gradinv.observe(model, BATCH)
    assert all(value.dtype == torch.float32 for value in update.gradient.values())
    assert digest_of(update) == digest_of(gradinv.observe(network().to(kind).float(), BATCH))
    found = gradinv.invert(update, model, attack="gi-x:steps=2", progress=False)
    assert found.images.dtype == torch.float32
    assert next(model.parameters()).dtype == kind, "the caller's own network stays as it is"
    assert fingerprint(unwrapped_network(model)) == fingerprint(model)
    module = type(sys)("half_net")
    module.__dict__["make"] = lambda: network().to(kind)
    monkeypatch.setitem(sys.modules, "half_net", module)
    built = build_model("half_net:make", num_classes=3, channels=1, image_size=8, seed=0)
    assert next(built.parameters()).dtype == torch.float32


def test_an_update_in_bfloat16_is_attacked_with_its_network():
    model = network().bfloat16()
    images, labels = BATCH
    loss = nn.functional.cross_entropy(model(images.bfloat16()).float(), labels)
    sent = dict(
        zip(
            dict(model.named_parameters()),
            torch.autograd.grad(loss, list(model.parameters())),
            strict=True,
        )
    )
    update = gradinv.from_delta(
        sent, model, lr=1.0, image_shape=(1, 8, 8), num_classes=3, batch_size=2, labels=labels
    )
    assert "numbers of bfloat16" in update.model["imported"]
    found = gradinv.invert(update, model, attack="gi-x:steps=20", progress=False)
    assert found.cost is not None
    assert found.cost < 1
