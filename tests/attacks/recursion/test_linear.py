"""The linear system of one layer, against least squares by singular values."""

import numpy as np
import pytest
import torch
from torch import nn

from gradinv.attacks.recursion.chain import Link
from gradinv.attacks.recursion.linear import System, system_of


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=source, dtype=torch.float64)


def with_singular_values(equations: int, values: list[float]) -> torch.Tensor:
    left, _ = torch.linalg.qr(random(equations, len(values)))
    right, _ = torch.linalg.qr(random(len(values), len(values), seed=1))
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.T


def system(matrix: torch.Tensor, right: torch.Tensor) -> System:
    size = matrix.shape[1]
    return System(matrix, right, (size,), torch.zeros(size, dtype=torch.float64))


@pytest.mark.parametrize("wide", [False, True])
def test_singular_values_down_to_a_hundred_thousandth_count(wide):
    matrix = with_singular_values(9, [1.0, 1e-2, 1e-3, 2e-5, 5e-6, 1e-9])
    found = system(matrix.T if wide else matrix, random(6 if wide else 9, seed=2))
    assert found.rank == 4


@pytest.mark.parametrize(("equations", "values"), [(9, [1.0, 0.3, 1e-3]), (5, [2.0, 1.0, 0.5])])
def test_the_solution_and_its_residual_are_those_of_least_squares(equations, values):
    matrix, right = with_singular_values(equations, values), 3 * random(equations, seed=2)
    found = system(matrix, right)
    expected, (squares,), _, _ = np.linalg.lstsq(matrix.numpy(), right.numpy(), rcond=None)
    np.testing.assert_allclose(found.solution.numpy(), expected, rtol=1e-9)
    assert found.residual == pytest.approx(squares / float(right @ right))
    assert found.residual > 0.1


def test_squaring_the_matrix_costs_no_digits():
    """The eigenvalues are 1 and 1e-8; what their rounding left is mended by a second pass."""
    matrix, x = with_singular_values(40, [1.0, *[1e-4] * 5]), random(6, seed=3)
    assert (system(matrix, matrix @ x).solution - x).norm() < 1e-11 * x.norm()


def convolution() -> tuple[nn.Conv2d, Link]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Conv2d(2, 3, 3, stride=2, padding=1).double()
    return layer, Link("conv", layer, (2, 6, 6))


def test_rows_of_both_kinds_of_equations_are_of_one_length():
    layer, link = convolution()
    leaving, slope = random(3, 3, 3), 1e-4 * random(3, 3, 3, seed=1)
    found = system_of(link, leaving, slope, {"conv.weight": random(3, 2, 3, 3, seed=2)})
    above, below = found.matrix.split([27, 54])
    assert len(layer.weight.flatten()) == len(below)
    for rows in (above, below):
        assert rows.square().sum(dim=1).mean().sqrt().item() == pytest.approx(1)


def test_a_dropped_entry_of_a_convolutions_gradient_is_no_equation():
    layer, link = convolution()
    x, slope = random(1, 2, 6, 6, seed=4), random(1, 3, 3, 3, seed=5)
    leaving = layer(x)
    observed = torch.autograd.grad((leaving * slope).sum(), layer.weight)[0]
    kept = torch.rand(observed.shape, generator=torch.Generator().manual_seed(6)) < 0.5
    found = system_of(
        link, leaving[0].detach(), slope[0], {"conv.weight": observed * kept}, kept=kept
    )
    assert len(found.matrix) == 27 + int(kept.sum())
    error = found.matrix @ x.flatten() - found.right
    assert error.abs().max() < 1e-12 * found.right.abs().max()


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_dropped_entry_of_a_linear_layers_gradient_takes_no_part(with_bias):
    layer = nn.Linear(5, 4).double()
    x, k = random(5), random(4, seed=1)
    kept = torch.rand((4, 5), generator=torch.Generator().manual_seed(2)) < 0.6
    assert kept.any(dim=0).all()
    assert not kept.all(dim=0).any()
    gradient = {"fc.weight": torch.outer(k, x) * kept}
    if with_bias:
        gradient["fc.bias"] = k
    found = system_of(Link("fc", layer, (5,)), layer(x).detach(), k, gradient, kept=kept)
    torch.testing.assert_close(found.solution, x)
    torch.testing.assert_close(found.slope, k @ layer.weight.detach())
