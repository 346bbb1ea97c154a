"""On a GPU: costs and gradients against double precision on the CPU, and whole attacks."""

import pytest
import torch

from gradinv.attacks import invert, preset
from gradinv.attacks.simulation import as_attacked
from gradinv.data import ClientBatch
from gradinv.engine import engine_for
from gradinv.engine.distances import Cosine
from gradinv.federated import FedAvg, FedSGD, observe
from gradinv.models.factory import build_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def batch_of(count: int, dtype: torch.dtype = torch.float32) -> ClientBatch:
    source = torch.Generator().manual_seed(3)
    images = torch.rand((count, 3, 32, 32), generator=source).to(dtype)
    return ClientBatch(images, torch.arange(count), ())


def network(name: str, mode: str = "eval"):
    model = build_model(name, num_classes=10, channels=3, image_size=32, seed=0)
    return model.train() if mode == "train" else model.eval()


@pytest.mark.parametrize("name", ["convnet", "resnet18", "lenet", "leakynet"])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("protocol", ["sgd", "avg"])
@pytest.mark.parametrize("way", ["auto", "plain"])
def test_cost_and_gradient_are_those_of_double_precision(name, mode, protocol, way):
    rounds = FedSGD(mode=mode) if protocol == "sgd" else FedAvg(local_epochs=2, lr=0.01, mode=mode)
    found = []
    x = torch.rand((2, 4, 3, 32, 32), generator=torch.Generator().manual_seed(5))
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        model = network(name, mode).to(dtype)
        update = observe(model, batch_of(4, dtype), protocol=rounds)
        update = as_attacked(update, "simulate", torch.Generator().manual_seed(0))
        model, update = model.to(device), update.to(device)
        engine = engine_for(model, update, distance=Cosine(), way=way)
        evaluated = engine.evaluate(x.to(device, dtype))
        found.append((evaluated.cost.cpu().double(), evaluated.gradient.cpu().double()))
    (cost, gradient), (other, theirs) = found
    torch.testing.assert_close(other, cost, rtol=2e-3, atol=1e-5)
    alike = torch.cosine_similarity(theirs.flatten(1), gradient.flatten(1), dim=1)
    assert (alike > 0.999).all()


@pytest.mark.parametrize("attack", ["gi-x:steps=20", "gi-x:steps=20:restarts=2"])
def test_an_attack_lowers_the_cost(attack):
    model = network("convnet").cuda()
    update = observe(model, batch_of(4))
    first = invert(update, model, preset(attack), seed=1)
    assert first.images.is_cuda
    assert first.stages[0].cost[-1].min() < 0.7 * first.stages[0].cost[0].min()
