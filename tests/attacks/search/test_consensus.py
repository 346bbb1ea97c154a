import numpy as np
import pytest
import skimage.registration
import torch

from gradinv.attacks.search.consensus import (
    GroupConsistency,
    consensus,
    displacement,
    in_one_order,
    roll,
)
from gradinv.attacks.search.cost import StageCost
from gradinv.attacks.search.spaces import Pixels, Scene
from tests.attacks.landscapes import Landscape


def pictures(generator, *lead):
    """Smooth random pictures of 16 x 16 in two channels."""
    noise = torch.randn((*lead, 2, 16, 16), generator=generator)
    return torch.nn.functional.avg_pool2d(noise.flatten(0, -4), 3, 1, 1).unflatten(0, lead)


def test_images_of_one_label_are_put_in_the_order_of_the_reference(generator):
    reference, labels = pictures(generator, 5), torch.tensor([0, 1, 0, 0, 1])
    orders = torch.tensor([[2, 4, 3, 0, 1], [3, 1, 0, 2, 4], [0, 1, 2, 3, 4]])
    moved = reference[orders] + 0.01 * torch.randn((3, 5, 2, 16, 16), generator=generator)
    ordered = in_one_order(moved, reference, labels)
    assert (ordered - reference).abs().max() < 0.1
    # Images of different labels never change places, however alike they are.
    swapped = reference[[1, 0, 2, 3, 4]]
    assert torch.equal(in_one_order(swapped[None], reference, torch.arange(5))[0], swapped)


def test_displacement_is_what_scikit_image_finds(generator):
    reference = pictures(generator, 6)
    moved = torch.stack([
        torch.roll(image, (down, right), (1, 2))
        for image, down, right in zip(
            reference, [0, 1, -2, 3, -4, 4], [0, -3, 2, 4, 0, -1], strict=True
        )
    ])  # fmt: skip
    found = displacement(moved, reference, reach=4)
    for index in range(6):
        theirs, _, _ = skimage.registration.phase_cross_correlation(
            reference[index].mean(0).numpy(), moved[index].mean(0).numpy()
        )
        assert found[index].tolist() == theirs.astype(int).tolist()
    assert torch.equal(roll(moved, found), reference)


def test_rolling_is_numpys(generator):
    images = pictures(generator, 3, 2)
    by = torch.randint(-5, 6, (3, 2, 2), generator=generator)
    found = roll(images, by)
    for r in range(3):
        for j in range(2):
            expected = np.roll(images[r, j].numpy(), by[r, j].tolist(), (1, 2))
            assert np.array_equal(found[r, j].numpy(), expected)


def test_nothing_is_rolled_further_than_the_reach_or_without_reason(generator):
    reference = pictures(generator, 4)
    far = torch.roll(reference, 7, 2)
    assert displacement(far, reference, reach=3).abs().max() <= 3
    assert displacement(reference, reference, reach=3).abs().max() == 0
    flat = torch.zeros_like(reference)
    assert displacement(flat, flat, reach=3).abs().max() == 0


def test_displaced_seeds_agree_on_the_picture_that_their_plain_mean_blurs(generator):
    truth = pictures(generator, 2)
    seeds = torch.stack([truth, truth, truth, torch.roll(truth, (1, 2), (2, 3))])
    agreed = consensus(seeds, reach=4)
    assert torch.allclose(agreed, truth, atol=1e-6)
    assert (seeds.mean(dim=0) - truth).abs().max() > 0.1


def test_a_seed_that_is_not_finite_takes_no_part(generator):
    seeds = pictures(generator, 3, 2)
    broken = seeds.clone()
    broken[1, 0, 0, 0, 0] = torch.nan
    assert torch.equal(consensus(broken, reach=2), consensus(seeds[[0, 2]], reach=2))


def test_the_penalty_is_the_distance_to_the_consensus(generator):
    seeds = pictures(generator, 3, 2)
    agreed = consensus(seeds, reach=4)
    expected = 0.3 * (seeds - agreed).flatten(2).norm(dim=2).mean(dim=1)
    assert torch.allclose(GroupConsistency(0.3)(seeds), expected, rtol=1e-5)


def test_the_penalty_is_that_of_registered_seeds_not_of_their_blurred_mean(generator):
    truth = pictures(generator, 2)
    moved = torch.roll(truth, (1, 2), (2, 3))
    penalty = GroupConsistency(0.5)(torch.stack([truth, truth, truth, moved]))
    own = 0.5 * (moved - truth).flatten(1).norm(dim=1).mean()
    torch.testing.assert_close(penalty, torch.stack([0 * own, 0 * own, 0 * own, own]))


def test_the_order_is_that_of_least_squares_not_of_least_distances():
    # Distances of reference and seed: 0 and 8, or 5 and 5. The sum is less one way, the squares
    # are the other way.
    reference = torch.tensor([[0.0, 0.0], [4.0, 3.0]])[:, None, None]
    seed = torch.tensor([[0.0, 0.0], [-4.0, 3.0]])[:, None, None]
    (ordered,) = in_one_order(seed[None], reference, torch.zeros(2, dtype=torch.long))
    assert torch.equal(ordered, seed.flip(0))


def test_a_single_seed_agrees_with_itself(generator):
    seed = pictures(generator, 1, 2).requires_grad_()
    penalty = GroupConsistency(1.0)(seed)
    assert penalty.item() == pytest.approx(0, abs=1e-5)
    (gradient,) = torch.autograd.grad(penalty.sum(), seed)
    assert gradient.abs().max() == 0


def pulled(generator, progress):
    """Returns the gradient of the pull alone, in normalised units, with its term and images."""
    half = torch.full((1, 1, 1), 0.5)
    scene = Scene(2, (1, 8, 8), half, half / 2)
    term = GroupConsistency(0.7, start=0.4)
    space = Pixels(box=False).open(scene, None, 3, generator)
    cost = StageCost(space, Landscape(lambda x: 0 * x.sum(1)), (term,), scene, progress)
    return (*cost.evaluate(), term, space.u.detach())


def test_the_pull_starts_late_and_points_to_the_consensus(generator):
    cost, gradients, term, u = pulled(generator, 0.4)
    assert torch.allclose(cost, term(u))
    apart = u - consensus(u, reach=term.reach)
    scale = 0.7 / 2 / apart.flatten(2).norm(dim=2)
    assert torch.allclose(gradients["u"], scale[..., None, None, None] * apart, atol=1e-6)
    cost, gradients, _, _ = pulled(generator, 0.39)
    assert cost.abs().max() == 0
    assert gradients["u"].abs().max() == 0
