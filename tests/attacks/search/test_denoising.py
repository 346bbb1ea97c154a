"""A denoiser's step: what it does to pictures, when, and in a search that stops and goes on."""

import pytest
import torch

from gradinv.attacks import Stage, invert, preset
from gradinv.attacks.attack import Adam
from gradinv.attacks.presets import Z
from gradinv.attacks.search.denoising import Denoising
from gradinv.attacks.search.spaces import Pixels
from gradinv.attacks.stages import scene_of
from gradinv.errors import AttackError, ConfigError, PriorError
from tests.attacks.tiny import tiny_batch, tiny_flow, tiny_observation, tiny_prior, tiny_victim

IMAGES = torch.rand((3, 2, 1, 8, 8), generator=torch.Generator().manual_seed(0))


class Grey:
    """Takes everything for the same grey, and keeps what it was asked."""

    def __init__(self, level: float) -> None:
        self.level = level
        self.asked = []

    def denoise(self, x, t):
        self.asked.append((x.clone(), t.clone()))
        return torch.full_like(x, 2 * self.level - 1)


def denoised(denoising: Denoising, denoiser, progress: float, seed: int = 0):
    source = torch.Generator().manual_seed(seed)
    return denoising(IMAGES, denoiser, progress=progress, source=source)


def test_pictures_go_their_share_of_the_way():
    found = denoised(Denoising(share=0.25), Grey(0.8), 0.5)
    torch.testing.assert_close(found, 0.75 * IMAGES + 0.25 * 0.8)
    torch.testing.assert_close(
        denoised(Denoising(share=1.0), Grey(7.0), 0.5), torch.ones_like(IMAGES)
    )


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.2), (0.5, 0.5), (1.0, 0.8), (1.4, 0.8)])
def test_the_noise_falls_as_the_stage_goes_on(progress, share):
    grey = Grey(0.5)
    denoised(Denoising(first=0.2, last=0.8), grey, progress, seed=5)
    ((seen, t),) = grey.asked
    noise = torch.randn((6, 1, 8, 8), generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(t, torch.full((6,), share))
    expected = (1 - share) * noise + share * (2 * IMAGES.flatten(0, 1) - 1)
    torch.testing.assert_close(seen, expected)


def test_many_pictures_are_denoised_in_parts():
    grey = Grey(0.5)
    images = torch.rand(70, 2, 1, 8, 8)
    found = Denoising(share=1.0)(images, grey, progress=0.5, source=torch.Generator())
    assert found.shape == images.shape
    assert [len(x) for x, _ in grey.asked] == [64, 64, 12]


def test_it_is_due_every_so_many_steps_but_not_at_the_start():
    assert [step for step in range(13) if Denoising(every=4).due(step)] == [4, 8, 12]


@pytest.mark.parametrize(
    "settings",
    [
        {"every": 0},
        {"share": 0.0},
        {"share": 1.1},
        {"first": -0.1},
        {"last": 1.1},
        {"first": 0.9, "last": 0.8},
        {"share": float("nan")},
    ],
)
def test_numbers_that_mean_nothing_are_refused(settings):
    with pytest.raises(ConfigError, match=r"expected denoising every 1 or more .* write denoise="):
        Denoising(**settings)


def test_only_pixels_that_step_with_adam_can_be_denoised():
    with pytest.raises(ConfigError, match=r"over pixels that steps with Adam.* got z with Adam"):
        Stage(Z, 3, Adam(0.1), denoising=Denoising())


def test_a_search_pulled_to_grey_ends_nearer_to_it(monkeypatch):
    model, batch = tiny_victim(), tiny_batch()
    observation = tiny_observation(model, batch)
    prior = tiny_flow()
    monkeypatch.setattr(type(prior), "denoise", lambda _, x, t: torch.zeros_like(x))
    off = {
        share: invert(
            observation, model, preset(f"gi-x+flow:steps=20:denoise={share}"), prior=prior
        ).images.sub(0.5).abs().mean()
        for share in ("no", "5,0.3", "5,0.9")
    }  # fmt: skip
    assert off["no"] > off["5,0.3"] > off["5,0.9"]


@pytest.mark.parametrize("restarts", [1, 2])
def test_it_resumes_to_the_same_bits(restarts):
    model, batch = tiny_victim(), tiny_batch()
    observation, prior = tiny_observation(model, batch), tiny_flow()
    attack = preset(f"gi-x+flow:steps=9:denoise=2,0.3:restarts={restarts}")
    kept = []
    whole = invert(
        observation, model, attack, prior=prior, seed=3,
        callback=lambda progress: kept.append(progress.checkpoint()),
    )  # fmt: skip
    for checkpoint in kept:
        part = invert(observation, model, attack, prior=prior, seed=3, resume=checkpoint)
        assert torch.equal(part.images, whole.images)
    other = invert(observation, model, attack, prior=prior, seed=4)
    assert not torch.equal(other.images, whole.images)


def test_every_start_is_denoised_under_noise_of_its_own():
    grey = Grey(0.5)
    same = torch.full((2, 2, 1, 8, 8), 0.4)
    Denoising()(same, grey, progress=0.5, source=torch.Generator())
    ((seen, _),) = grey.asked
    assert len(torch.unique(seen.flatten(1), dim=0)) == 4


def test_a_prior_that_cannot_denoise_is_refused_before_any_step():
    model, batch = tiny_victim(), tiny_batch()
    observation = tiny_observation(model, batch)
    with pytest.raises(
        PriorError, match=r"a prior that denoises for this attack, got DCGAN; train"
    ):
        invert(observation, model, preset("gi-x+flow"), prior=tiny_prior())
    with pytest.raises(
        AttackError, match="expected a prior that denoises for this attack, got none;"
    ):
        invert(observation, model, preset("gi-x+flow"))


def test_a_stage_over_pixels_holds_what_it_is_moved_to():
    model = tiny_victim()
    observation = tiny_observation(model, tiny_batch())
    scene = scene_of(observation, model, preset("gi-x"), None, None)
    space = Pixels().open(scene, None, 3, torch.Generator().manual_seed(0))
    space.move_to(IMAGES)
    torch.testing.assert_close(space(), IMAGES)
