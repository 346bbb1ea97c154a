"""What undoes a layer, against the layer itself and autograd."""

import pytest
import torch
from torch import Tensor, nn

from gradinv.attacks.recursion.chain import Link, chain_of, undo
from gradinv.errors import AttackError
from gradinv.models import Normalize


def batch_norm(**settings) -> nn.Module:
    layer = nn.BatchNorm2d(3, **settings).double().eval()
    layer.running_mean = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
    layer.running_var = torch.tensor([0.01, 1.0, 4.0], dtype=torch.float64)
    if layer.affine:
        nn.init.constant_(layer.weight, -0.7)
        nn.init.constant_(layer.bias, 0.3)
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        nn.LeakyReLU(0.2), nn.Sigmoid(), nn.Tanh(), nn.Identity(), nn.Flatten(), batch_norm(),
        batch_norm(eps=0.3), batch_norm(affine=False), Normalize([0.4] * 3, [0.3, 0.1, 2.0]),
    ],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_what_entered_and_its_slope_come_back(layer, generator):
    x = torch.randn((1, 3, 4, 4), generator=generator, dtype=torch.float64, requires_grad=True)
    leaving = layer.double()(x)
    slope = torch.randn(leaving.shape, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad((leaving * slope).sum(), x)
    entered, found = undo(Link("some", layer, (3, 4, 4)), leaving[0].detach(), slope[0])
    torch.testing.assert_close(entered, x[0].detach(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found, expected[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("layer", "ends", "largest"), [(nn.Sigmoid(), [0.0, 1.0], 16.2), (nn.Tanh(), [-1.0, 1.0], 8.5)]
)
def test_what_left_a_saturated_activation_came_from_far_but_not_from_infinity(layer, ends, largest):
    leaving = torch.tensor(ends, dtype=torch.float64)
    entered, slope = undo(Link("some", layer, (2,)), leaving, torch.ones_like(leaving))
    # ln(1e7) = 16.1, and atanh(1 - 1e-7) is half of ln(2e7) = 16.8.
    assert torch.equal(entered.sign(), torch.tensor([-1.0, 1.0], dtype=torch.float64))
    assert largest - 0.2 < entered.abs().min()
    assert entered.abs().max() < largest
    assert (slope > 0).all()


class Idle(nn.Module):
    """Computes something that it then does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.aux, self.head = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(1)
        self.aux(h)
        return self.head(h)


def test_a_layer_that_the_output_does_not_come_from_is_no_link():
    with pytest.raises(AttackError, match=r"got flatten \(a branch.*aux \(a branch"):
        chain_of(Idle(), (1, 4, 4))
