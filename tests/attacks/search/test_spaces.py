import math
from dataclasses import replace

import pytest
import torch

from gradinv.attacks.search.spaces import OfGenerator, Pixels, Scene, Solution
from gradinv.errors import AttackError


@pytest.fixture
def scene(prior) -> Scene:
    mean, std = torch.full((1, 1, 1), 0.4), torch.full((1, 1, 1), 0.2)
    return Scene(2, (1, 8, 8), mean, std, prior)


def test_pixels_are_held_in_normalised_units_and_stay_in_the_box(scene, generator):
    space = Pixels().open(scene, None, 3, generator)
    assert space().shape == (3, 2, 1, 8, 8)
    space.u.data += 100
    space.project()
    assert space().max() <= 1 + 1e-6
    images = torch.rand((3, 2, 1, 8, 8), generator=generator)
    again = Pixels().open(scene, Solution(images), 3, generator)
    assert torch.allclose(again(), images, atol=1e-6)


def test_pixels_are_in_the_box_from_the_start_and_leave_it_on_neither_side(scene, generator):
    space = Pixels().open(scene, None, 3, generator)
    assert -1e-6 <= space().min() < 1e-6  # mean 0.4 and std 0.2: some start below, some above
    assert 1 - 1e-6 < space().max() <= 1 + 1e-6
    inside = ((space() > 0.01) & (space() < 0.99)).float().mean()
    assert inside > 0.9
    space.u.data -= 100
    space.project()
    assert space().abs().max() < 1e-6


def test_soft_labels_are_a_distribution_over_the_classes(scene, generator):
    space = Pixels(soft_labels=True).open(replace(scene, num_classes=3), None, 2, generator)
    labels, logits = space.labels(), space.logits
    assert labels is not None
    assert logits is not None
    assert labels.shape == (2, 2, 3)
    for row, given in zip(
        labels.flatten(0, 1).tolist(), logits.flatten(0, 1).tolist(), strict=True
    ):
        total = sum(math.exp(value) for value in given)
        assert row == pytest.approx([math.exp(value) / total for value in given], rel=1e-5)


def test_without_a_box_only_the_picture_is_clipped(scene, generator):
    space = Pixels(box=False).open(scene, None, 1, generator)
    space.u.data += 100
    space.project()
    assert space().min() > 1
    assert space.solution().images.max() == 1


def test_a_copy_of_the_weights_for_every_image_starts_as_the_prior(scene, prior, generator):
    space = OfGenerator(weights=True).open(scene, None, 3, generator)
    expected = prior(space.z.flatten(0, 1)).unflatten(0, (3, 2))
    assert torch.allclose(space(), expected, atol=1e-6)
    assert not space.z.requires_grad
    assert sum(w.numel() for w in space.w) == 6 * sum(p.numel() for p in prior.parameters())


def test_the_w_stage_moves_only_its_own_images_copy(scene, generator):
    space = OfGenerator(weights=True).open(scene, None, 2, generator)
    before = space().detach()
    gradients = torch.autograd.grad(space()[1, 0].sum(), list(space.w))
    for gradient in gradients:
        assert gradient[1, 0].abs().sum() > 0
        others = gradient.clone()
        others[1, 0] = 0
        assert others.abs().sum() == 0
    with torch.no_grad():
        for w, gradient in zip(space.w, gradients, strict=True):
            w.add_(gradient, alpha=0.1)
    changed = (space() != before).flatten(2).any(dim=2)
    assert changed.tolist() == [[False, False], [True, False]]


def test_the_latents_of_z_then_w_are_handed_on(scene, generator):
    first = OfGenerator(latents=True).open(scene, None, 2, generator)
    kept = first.solution().select(torch.tensor([1]))
    second = OfGenerator(weights=True).open(scene, kept, 2, generator)
    assert torch.equal(second.z, first.z[1:])
    third = OfGenerator(latents=True).open(scene, second.solution(), 2, generator)
    assert third.z.requires_grad
    assert not any(w.requires_grad for w in third.w)
    assert torch.allclose(third(), second(), atol=1e-6)


@pytest.mark.parametrize(
    "space", [OfGenerator(latents=True), OfGenerator(weights=True)], ids=lambda space: space.name
)
def test_every_image_of_every_restart_has_a_start_of_its_own(space, scene, generator):
    starts = space.open(scene, None, 3, generator).z.flatten(0, 1)
    assert len(starts.unique(dim=0)) == 3 * 2


def best_samples(scene, scores, restarts, seed=5):
    """Returns the numbers of the samples that every image of every restart starts from."""
    samples = scores.shape[1]
    space = OfGenerator(latents=True, culled=samples).open(
        replace(scene, fits=lambda images: scores), None, restarts,
        torch.Generator().manual_seed(seed),
    )  # fmt: skip
    drawn = scene.prior.sample_latents(samples, torch.Generator().manual_seed(seed))
    return torch.cdist(space.z.detach().flatten(2), drawn.flatten(1)[None]).argmin(dim=2).tolist()


def test_restart_r_starts_from_the_sample_that_fits_an_image_r_th_best(scene):
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7, 0.3], [0.8, 0.2, 0.6, 0.1, 0.4]])
    assert best_samples(scene, scores, 3) == [[1, 0], [3, 2], [2, 4]]


def test_images_of_one_clue_share_no_sample(scene):
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7, 0.3]] * 2)
    assert best_samples(scene, scores, 2) == [[1, 2], [3, 4]]


def test_where_there_are_too_few_samples_they_come_again(scene):
    scores = torch.tensor([[0.1, 0.9, 0.5]] * 2)
    assert best_samples(scene, scores, 2) == [[1, 0], [2, 1]]


def test_an_untrained_generator_is_another_one_and_known_by_the_seed(scene, prior):
    def weights(seed):
        source = torch.Generator().manual_seed(seed)
        space = OfGenerator(weights=True, pretrained=False).open(scene, None, 1, source)
        return space.w[0].detach()

    own = next(prior.parameters())
    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
    assert not torch.equal(weights(0)[0, 0], own)


def test_a_solution_survives_as_tensors(scene, generator):
    solution = OfGenerator(weights=True).open(scene, None, 2, generator).solution()
    again = Solution.from_tensors(solution.tensors())
    assert again.weights is not None
    assert solution.weights is not None
    assert torch.equal(again.images, solution.images)
    assert all(torch.equal(again.weights[name], w) for name, w in solution.weights.items())


def test_a_generator_is_asked_for(scene, generator):
    with pytest.raises(AttackError, match=r"expected a prior.*'gradinv prior train'"):
        OfGenerator(latents=True).open(replace(scene, prior=None), None, 1, generator)
