import sys

import pytest
import torch
from torch import nn

import gradinv
from gradinv.audit.inversion import digest_of
from gradinv.models import build_model
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
