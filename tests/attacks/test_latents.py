"""Latents of a prior's layers in place of z."""

import pytest
import torch

from gradinv.attacks import invert, preset
from gradinv.attacks.driver import Search
from gradinv.attacks.search.spaces import GeneratorSpace
from gradinv.errors import PriorError
from gradinv.priors.stylegan2 import StyleGAN2
from tests.attacks.tiny import tiny_prior


@pytest.fixture
def layered() -> StyleGAN2:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        prior = StyleGAN2(image_size=8, channels=1, base_channels=4, latent_dim=6, mapping_layers=2)
    return prior.eval().requires_grad_(False)


def search(spec, observation, victim, prior) -> Search:
    attack = preset(spec).resolved(observation, victim, prior)
    return Search(observation, victim, attack, prior=prior, seed=0, seconds=None)


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("gi-z/w", (4, 6)),
        ("gi-z/w:latents=w+", (4, 6)),
        ("gi-z/w:latents=w", (6,)),
        ("gi-z/w:latents=z", (6,)),
        ("gi-z/w:latents=w+n", (24 + 16 + 2 * 64,)),
    ],
)
def test_what_is_searched(spec, shape, observation, victim, layered):
    own = search(spec, observation, victim, layered)
    space = own.space
    assert dict(space.named_parameters())["z"].shape[2:] == shape


@pytest.mark.parametrize(("latents", "mapping"), [("w+", False), ("w", False), ("z", True)])
def test_the_mapping_network_stays_where_styles_are_searched(
    latents, mapping, observation, victim, layered
):
    own = search(f"gi-w/z:steps=1,1:latents={latents}", observation, victim, layered)
    assert isinstance(own.space, GeneratorSpace)
    names = own.space._names
    assert any("synthesis" in name for name in names)
    assert any("mapping" in name for name in names) == mapping


@pytest.mark.parametrize("spec", ["gi-z", "gi-z/w", "gi-z/x", "gi-zw-joint", "standard"])
def test_attacks_with_styles_lower_the_cost(spec, observation, victim, layered):
    attack = preset(spec).scaled(0.05)
    found = invert(observation, victim, attack, prior=layered)
    for stage in found.stages:
        if stage.start is not None and stage.name != "x":
            assert stage.cost[-1].min() < stage.cost[0].max()
    again = invert(observation, victim, attack, prior=layered)
    assert torch.equal(found.images, again.images)
    # The prior itself is as it was.
    assert all(not value.requires_grad for value in layered.parameters())


def test_a_search_over_styles_resumes_to_the_same_bits(observation, victim, layered):
    attack = preset("gi-z/w:steps=4,4")
    kept = []

    def keep(progress):
        if progress.step in {2, 6}:
            kept.append(progress.checkpoint())

    whole = invert(observation, victim, attack, prior=layered, callback=keep)
    for checkpoint in kept:
        part = invert(observation, victim, attack, prior=layered, resume=checkpoint)
        assert torch.equal(part.images, whole.images)


def test_latents_that_a_prior_does_not_have(observation, victim):
    attack = preset("gi-z:latents=w+")
    with pytest.raises(PriorError, match=r"expected latents that DCGAN has, z, got 'w\+'"):
        invert(observation, victim, attack, prior=tiny_prior())
