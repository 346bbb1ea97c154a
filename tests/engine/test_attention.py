"""Networks with attention, whose fused kernels cannot be differentiated twice."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradinv.engine import PlainDoubleBackward, SimulatedTraining, engine_for
from gradinv.engine.distances import Cosine
from gradinv.federated import FedAvg, Observation, Reveal, observe
from tests.attacks.slopes import check_against_differences
from tests.attacks.tiny import tiny_batch, tiny_observation


class Tokens(nn.Module):
    """Patches, one layer of attention and a head; ``attend`` mixes (batch, token, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 4, 4)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def attend(self, x: Tensor) -> Tensor:
        return self.mix(x, x, x, need_weights=False)[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x := self.patches(x).flatten(2).mT).add(self.attend(x)).mean(1))


class Functional(Tokens):
    """The same, by the function alone."""

    def attend(self, x: Tensor) -> Tensor:
        heads = x.contiguous().unflatten(2, (2, 4)).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(heads, heads, heads)
        return mixed.transpose(1, 2).flatten(2)


def attentive(kind: type[Tokens]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().double().eval()


def batch_in_float64():
    batch = tiny_batch()
    return type(batch)(batch.images.double(), batch.labels, batch.ids)


def trained(model: nn.Module) -> Observation:
    return observe(
        model,
        batch_in_float64(),
        protocol=FedAvg(local_epochs=2, batch_size=None, lr=0.1),
        reveal=Reveal(order=True),
        generator=torch.Generator().manual_seed(0),
    )


@pytest.mark.parametrize("engine", [PlainDoubleBackward, SimulatedTraining])
@pytest.mark.parametrize("kind", [Tokens, Functional])
def test_dc_dx_through_attention_is_the_finite_difference_in_float64(kind, engine, generator):
    model = attentive(kind)
    fedavg = engine is SimulatedTraining
    observation = trained(model) if fedavg else tiny_observation(model, batch_in_float64())
    cost = engine(model, observation, distance=Cosine())
    check_against_differences(cost, 2, generator, directions=3)


@pytest.mark.parametrize("kind", [Tokens, Functional])
def test_an_audit_takes_double_backward_for_attention(kind):
    model = attentive(kind)
    cost = engine_for(model, tiny_observation(model, batch_in_float64()), distance=Cosine())
    assert cost.way == "plain"
    # The client's fused kernel and the attacker's products agree: the truth costs nothing.
    assert cost.matching(batch_in_float64().images[None]).item() == pytest.approx(0, abs=1e-12)
