"""A prior that has seen the images is named; one that has not is not."""

import torch

from gradinv.evaluation.memorised import knows


def pictures(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, 1, 4, 4, generator=generator)


def decoys(batch: int, generator: torch.Generator, count: int = 31) -> torch.Tensor:
    return torch.rand(batch, count, 1, 4, 4, generator=generator)


def test_a_prior_that_knows_the_images(generator):
    originals, others = pictures(8, generator), decoys(8, generator)
    near = (originals + 0.02 * torch.randn(originals.shape, generator=generator)).clamp(0, 1)
    samples = torch.cat([pictures(100, generator), near])
    assert knows(samples, [originals[:4], originals[4:]], [others[:4], others[4:]])


def test_a_prior_that_does_not(generator):
    """At a significance of 1 %, luck may say yes in few of 200 audits."""
    said = sum(
        knows(pictures(64, generator), [pictures(8, generator)], [decoys(8, generator)])
        for _ in range(200)
    )
    assert said <= 6


def test_nothing_to_compare_with_is_no_memory(generator):
    originals = pictures(4, generator)
    assert not knows(originals, [originals], [torch.full((4, 3, 1, 4, 4), torch.nan)])
    assert not knows(originals, [originals], [torch.empty(4, 0, 1, 4, 4)])
    assert not knows(originals, [], [])


def test_decoys_that_are_originals_too_are_no_comparison(generator):
    """All 18 images of a client that a prior knows: each is at distance 0, and rounding decides."""
    images = pictures(18, generator)
    others = torch.stack([images.roll(-number, 0)[1:] for number in range(6)])
    originals = [images[:2], images[2:4], images[4:6]]
    assert knows(images[:6], originals, list(others.split(2)))
    assert not knows(images[6:], originals, list(others.split(2)))
    # Where every decoy is another batch's original there is nothing to compare with.
    assert not knows(images[:2], [images[:1], images[1:2]], [images[1:2, None], images[:1, None]])
