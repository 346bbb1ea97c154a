import numpy as np
import pytest
import scipy.optimize
import torch

from gradinv.attacks.search.features import Features, project_to_l1_ball
from gradinv.attacks.search.spaces import OfGenerator, Pixels, Scene, Solution
from gradinv.errors import AttackError
from tests.attacks.tiny import deep_prior, tiny_prior


@pytest.fixture
def scene() -> Scene:
    half = torch.full((1, 1, 1), 0.5)
    return Scene(2, (1, 8, 8), half, half / 2, deep_prior())


def test_projection_is_the_nearest_point_of_the_ball(generator):
    centre = torch.randn((1, 4), generator=generator, dtype=torch.float64)
    for _ in range(5):
        point = centre + 2 * torch.randn((1, 4), generator=generator, dtype=torch.float64)
        found = project_to_l1_ball(point, centre, torch.ones(1, dtype=torch.float64))
        # As a quadratic programme: offset = p - n with p, n >= 0 and sum(p + n) <= 1.
        target = (point - centre)[0].numpy()
        best = scipy.optimize.minimize(
            lambda v, target=target: ((v[:4] - v[4:] - target) ** 2).sum(),
            np.full(8, 0.05),
            bounds=[(0, None)] * 8,
            constraints={"type": "ineq", "fun": lambda v: 1 - v.sum()},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        expected = best.x[:4] - best.x[4:]
        assert np.allclose((found - centre)[0].numpy(), expected, atol=1e-5)


def test_no_bit_of_a_point_inside_the_ball_changes(generator):
    centres = torch.randn((20, 6), generator=generator)
    points = torch.randn((20, 6), generator=generator)
    assert torch.equal(project_to_l1_ball(points, centres, torch.full((20,), 100.0)), points)


def test_inside_the_ball_nothing_moves_and_each_image_has_its_own_ball():
    points = torch.tensor([[0.1, -0.2], [3.0, -4.0], [3.0, -4.0]])
    found = project_to_l1_ball(points, torch.zeros(3, 2), torch.tensor([1.0, 1.0, 3.0]))
    assert torch.equal(found[0], points[0])
    assert found[1].tolist() == [0.0, -1.0]
    assert found[2].tolist() == [1.0, -2.0]
    assert project_to_l1_ball(points, points * 0, torch.zeros(3)).abs().max() == 0


def test_features_start_where_the_latents_lead(scene, generator):
    prior = scene.generator()
    z = OfGenerator(latents=True).open(scene, None, 3, generator).solution()
    for depth in (1, 2, 3):
        space = Features(depth, 0.5).open(scene, z, 3, generator)
        assert torch.allclose(space(), z.images, atol=1e-6)
        assert [name for name, _ in space.named_parameters()] == ["h"]
    fresh = Features(2, 0.5).open(scene, None, 3, generator)
    assert fresh().shape == (3, 2, 1, 8, 8)
    assert all(not parameter.requires_grad for parameter in prior.parameters())


def test_deeper_features_start_where_earlier_ones_ended(scene, generator):
    first = Features(1, 0.5).open(scene, None, 2, generator)
    with torch.no_grad():
        first.h.add_(0.1)
    ended = Solution.from_tensors(first.solution().tensors()).select(torch.tensor([1]))
    second = Features(3, 0.5).open(scene, ended, 2, generator)
    assert torch.allclose(second(), first()[1:], atol=1e-6)


def test_features_stay_in_their_ball(scene, generator):
    space = Features(2, 0.25).open(scene, None, 2, generator)
    start = space.h.detach().clone()
    with torch.no_grad():
        space.h[0, 0] += 5.0
    space.project()
    moved = (space.h - start).detach().flatten(2).abs().sum(2)
    assert moved[0, 0].item() == pytest.approx(0.25 * start[0, 0].abs().sum().item(), rel=1e-5)
    assert moved.flatten()[1:].max() == 0


def test_searches_that_have_no_features_are_refused(scene, generator):
    with pytest.raises(AttackError, match=r"features at depth 4, got a DeepPrior of 4 layers"):
        Features(4, 0.5).open(scene, None, 1, generator)
    pixels = Pixels().open(scene, None, 1, generator).solution()
    weights = OfGenerator(weights=True).open(scene, None, 1, generator).solution()
    deeper = Features(2, 0.5).open(scene, None, 1, generator).solution()
    for previous in (pixels, weights, deeper):
        with pytest.raises(AttackError, match="in the order z, h1, h2"):
            Features(1, 0.5).open(scene, previous, 1, generator)


def test_the_blocks_of_dcgan_are_its_forward(generator):
    for prior in (tiny_prior(channels=3), deep_prior(channels=3)):
        z = prior.sample_latents(4, generator)
        images = z
        for block in prior.blocks():
            images = block(images)
        assert torch.equal(images, prior(z))
