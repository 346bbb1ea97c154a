"""The rule of every activation of PyTorch against autograd's double backward, in float64."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradinv.engine import ExactROperator, PlainDoubleBackward, engine_for
from gradinv.engine.distances import Cosine
from gradinv.engine.frozen import FrozenPattern
from gradinv.engine.rules.activations import ACTIVATIONS
from gradinv.engine.rules.gated import GLU, Multiply
from gradinv.engine.rules.names import Names
from gradinv.engine.rules.op import Op, Run, Saved, UnsupportedError
from gradinv.engine.rules.table import MODULES
from gradinv.errors import AttackError
from tests.engine.networks import guesses, relative, update

# Some with settings that are not the default ones. CELU's is a power of two: autograd rounds
# 1 / alpha to float32.
MODULES_TRIED = (
    nn.CELU(0.5), nn.ELU(1.3), nn.GELU(), nn.GELU("tanh"), nn.GLU(1), nn.Hardshrink(0.2),
    nn.Hardsigmoid(), nn.Hardswish(), nn.Hardtanh(-0.3, 0.7), nn.LeakyReLU(0.2), nn.LogSigmoid(),
    nn.Mish(), nn.PReLU(), nn.PReLU(4), nn.ReLU(), nn.ReLU6(), nn.RReLU(0.1, 0.4).eval(), nn.SELU(),
    nn.SiLU(), nn.Sigmoid(), nn.Softplus(2.0, 1.0), nn.Softshrink(0.2), nn.Softsign(), nn.Tanh(),
    nn.Tanhshrink(), nn.Threshold(0.1, -0.2),
)  # fmt: skip

FUNCTIONS_TRIED = {
    "celu": lambda x: F.celu(x, 0.5),
    "elu": lambda x: F.elu(x, 1.3),
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
    "glu": lambda x: F.glu(x, 1),
    "hardshrink": lambda x: F.hardshrink(x, 0.2),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": lambda x: F.hardtanh(x, -0.3, 0.7),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "logsigmoid": F.logsigmoid,
    "mish": F.mish,
    "relu6": F.relu6,
    "rrelu": lambda x: F.rrelu(x, 0.1, 0.4),
    "selu": F.selu,
    "silu": F.silu,
    "softplus": lambda x: F.softplus(x, 2.0, 1.0),
    "softshrink": lambda x: F.softshrink(x, 0.2),
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "threshold": lambda x: F.threshold(x, 0.1, -0.2),
    "swish by hand": lambda x: x * torch.sigmoid(x),
    "a squeezed scale": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
}


class Around(nn.Module):
    """A convolution, an activation and a head."""

    def __init__(self, act) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.act = act
        self.fc = nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(2 * self.conv(x)).flatten(1))


def around(act) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Around(copy.deepcopy(act))
        model(torch.rand(2, 3, 8, 8))
    return model.double().eval()


def by_clamp(x: Tensor) -> Tensor:
    """Hardsigmoid, of which PyTorch has no second derivative."""
    return (x + 3).clamp(0, 6) / 6


def agrees(act, reference) -> None:
    model, other = around(act), around(reference)
    other.load_state_dict(model.state_dict())
    observation = update(model, bn="none", shape=(2, 3, 8, 8))
    exact = engine_for(model, observation, distance=Cosine(), way="exact")
    plain = PlainDoubleBackward(other, observation, distance=Cosine())
    images = 4 * guesses(model, 3, shape=(2, 3, 8, 8)) - 2
    found, expected = exact.evaluate(images), plain.evaluate(images)
    assert isinstance(exact, ExactROperator)
    assert expected.gradient.norm() > 1e-6
    torch.testing.assert_close(found.cost, expected.cost, rtol=1e-9, atol=1e-12)
    assert relative(found.gradient, expected.gradient) < 1e-9


@pytest.mark.parametrize("act", MODULES_TRIED, ids=repr)
def test_modules(act):
    agrees(act, by_clamp if isinstance(act, nn.Hardsigmoid) else act)


@pytest.mark.parametrize("name", FUNCTIONS_TRIED)
def test_functions(name):
    act = FUNCTIONS_TRIED[name]
    agrees(act, by_clamp if name == "hardsigmoid" else act)


def test_every_activation_of_torch_is_tried():
    whole = {
        getattr(nn, name)
        for name in torch.nn.modules.activation.__all__
        if name not in {"MultiheadAttention", "Softmax", "Softmax2d", "Softmin", "LogSoftmax"}
    }
    assert whole <= set(MODULES)
    assert whole == {type(act) for act in MODULES_TRIED}
    assert set(ACTIVATIONS) <= whole


@pytest.mark.parametrize("act", [nn.Hardswish(), nn.ELU(), nn.Hardtanh(), nn.PReLU()], ids=repr)
def test_a_frozen_pattern_is_near_the_exact_gradient(act):
    model = around(act)
    observation = update(model, bn="none", shape=(2, 3, 8, 8))
    images = guesses(model, 2, shape=(2, 3, 8, 8))
    frozen = engine_for(model, observation, distance=Cosine(), way="frozen-pattern")
    assert isinstance(frozen, FrozenPattern)
    expected = engine_for(model, observation, distance=Cosine(), way="exact").evaluate(images)
    assert relative(frozen.evaluate(images).gradient, expected.gradient) < 0.02


PIECEWISE = (
    nn.Hardshrink(0.2), nn.Hardsigmoid(), nn.Hardtanh(-0.3, 0.7), nn.LeakyReLU(0.2), nn.ReLU(),
    nn.ReLU6(), nn.RReLU(0.1, 0.4).eval(), nn.Softshrink(0.2), nn.Threshold(0.1, -0.2),
)  # fmt: skip


def rule_of(act: nn.Module) -> Op:
    return MODULES[type(act)](Names(nn.Linear(1, 1), {}), act, "act")


@pytest.mark.parametrize("act", PIECEWISE, ids=repr)
def test_replayed_elsewhere_an_input_stays_on_its_line(act):
    """The step of a frozen pattern crosses kinks; the line that was recorded goes on beyond."""
    op, run, recorded = rule_of(act), Run(1, {}, frozenset()), Saved()
    x = torch.linspace(-8, 8, 97, dtype=torch.float64).requires_grad_()
    elsewhere = x.detach().flip(0)
    (slope,) = torch.autograd.grad(act(x).sum(), x)
    x = x.detach()
    torch.testing.assert_close(op.forward(run, recorded, x), act(x))
    there = op.replay(run, Saved(), recorded, elsewhere)
    torch.testing.assert_close(there, act(x) + slope * (elsewhere - x))
    (back,) = op.replay_backward(run, Saved(), recorded, torch.ones_like(x))
    torch.testing.assert_close(back, slope)


@pytest.mark.parametrize("act", [nn.ELU(1.3), nn.SELU(), nn.CELU(0.5), nn.Hardswish()], ids=repr)
def test_replayed_elsewhere_an_input_stays_on_its_smooth_piece(act):
    op, run, recorded = rule_of(act), Run(1, {}, frozenset()), Saved()
    right = torch.full((5,), 4.0, dtype=torch.float64)
    op.forward(run, recorded, right)
    elsewhere = torch.tensor([-7.0, -2.0, 0.5, 2.0, 9.0], dtype=torch.float64)
    # All of them are straight lines through zero on the right.
    expected = act(right) / right * elsewhere
    torch.testing.assert_close(op.replay(run, Saved(), recorded, elsewhere), expected)


def test_random_slopes_have_no_rule():
    model = around(nn.RReLU())
    observation = update(model, bn="none", shape=(2, 3, 8, 8))
    model.train()
    with pytest.raises(AttackError, match="RReLU in train mode, which draws its slopes") as error:
        engine_for(model, observation, distance=Cosine(), way="exact")
    assert isinstance(error.value.__cause__, UnsupportedError)


def test_products_and_gates_that_mix_images_have_no_rule():
    a, b = torch.ones(2, 2, 2), torch.ones(2, 2)
    run = Run(1, {}, frozenset())
    with pytest.raises(UnsupportedError, match="a product of 3 and 2 dimensions"):
        Multiply().forward(run, Saved(), a, b)
    with pytest.raises(UnsupportedError, match="a gated linear unit over the batch"):
        GLU(-3).forward(run, Saved(), a)
