"""Features that the last layer gives away: what they are, and the search that matches them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from gradinv.attacks.evidence.penultimate import Clues, FeatureEngine
from gradinv.attacks.search.regularizers import TotalVariation
from gradinv.attacks.search.spaces import OfGenerator, Scene
from gradinv.errors import AttackError
from tests.attacks.tiny import tiny_batch, tiny_observation, tiny_prior, tiny_victim


def test_one_image_gives_its_features_away_exactly(victim):
    batch = tiny_batch(batch=1)
    clues = Clues.of(tiny_observation(victim, batch), victim)
    # An independent way: the input of the head.
    model = victim
    features = model.act(model.bn(model.conv(model.normalize(batch.images)))).flatten(1)
    assert torch.allclose(clues.features(victim, batch.images), features)
    row, bias = -clues.directions[0], tiny_observation(victim, batch).gradient["head.bias"][0]
    assert torch.allclose(row / bias, features[0], atol=1e-5)
    assert clues.distance(features) < 1e-6


def test_a_sparsified_row_is_compared_where_it_is_known(victim):
    batch = tiny_batch(batch=1)
    clues = Clues.of(tiny_observation(victim, batch, defense="sparsify:0.8"), victim)
    assert torch.equal(clues.known, clues.directions != 0)
    assert 0 < clues.known.float().mean() < 0.9
    features = clues.features(victim, batch.images)
    assert clues.distance(features) < 1e-6
    assert clues.distance(features + (~clues.known).float()) < 1e-6
    assert clues.distance(features * torch.linspace(-1, 1, 64)) > 1e-2


def test_noise_behind_a_sparsification_hides_no_clue(victim, batch):
    seen, hidden = (
        Clues.of(tiny_observation(victim, batch, defense=defense), victim)
        for defense in ("sparsify:0.8", "sparsify:0.8+noise:1e-9")
    )
    assert torch.equal(hidden.known, seen.known)
    assert torch.equal(hidden.directions != 0, seen.directions != 0)
    torch.testing.assert_close(hidden.directions, seen.directions, atol=1e-7, rtol=0)


def test_the_distance_is_one_minus_the_fit(victim, batch, observation):
    clues = Clues.of(observation, victim)
    fits = clues.fits(victim, batch.images)
    assert fits.shape == (2, 2)
    expected = 1 - clues.distance(clues.features(victim, batch.images))
    assert torch.allclose(fits.diagonal(), expected, atol=1e-6)


def test_many_images_are_sent_in_parts(victim, observation):
    clues = Clues.of(observation, victim)
    images = torch.rand((70, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    fits = clues.fits(victim, images)
    assert torch.allclose(fits[:, 66:], clues.fits(victim, images[66:]), atol=1e-6)


def test_what_cannot_be_used_is_said(victim, observation):
    frozen = {name: g for name, g in observation.gradient.items() if name != "head.weight"}
    with pytest.raises(AttackError, match=r"the gradient of head\.weight.*gi-z/w"):
        Clues.of(replace(observation, gradient=frozen), victim)
    zero = dict(observation.gradient)
    zero["head.weight"] = zero["head.weight"] * torch.tensor([[1.0], [0.0], [1.0], [1.0]])
    with pytest.raises(AttackError, match=r"row of every label in the gradient of head\.weight"):
        Clues.of(replace(observation, gradient=zero), victim)


@pytest.mark.parametrize("training", [False, True])
def test_dcdx_against_finite_differences(training):
    model = tiny_victim().double().train(training)
    batch = tiny_batch().to(dtype=torch.float64)
    observation = tiny_observation(model, batch)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    clues = Clues.of(observation, model)
    engine = FeatureEngine(model, observation, clues, (TotalVariation(0.01),))
    images = torch.rand((2, 2, 1, 8, 8), generator=torch.Generator().manual_seed(5)).double()
    found = engine.evaluate(images)
    step = torch.rand(images.shape, generator=torch.Generator().manual_seed(6)).double()
    eps = 1e-6
    ahead, behind = (engine.evaluate(images + sign * eps * step).cost for sign in (1, -1))
    expected = (found.gradient * step).flatten(1).sum(dim=1)
    torch.testing.assert_close((ahead - behind) / (2 * eps), expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(engine.matching(images), found.matching)
    # The mean over images, beside which a regulariser weighs the same whatever the batch.
    cosines = torch.stack([clues.fits(model, own).diagonal() for own in images])
    torch.testing.assert_close(found.matching, 1 - cosines.mean(dim=1))
    assert (found.cost > found.matching).all()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def scene_of(fits) -> Scene:
    half = torch.full((1, 1, 1), 0.5)
    return Scene(3, (1, 8, 8), half, half, tiny_prior(), fits=fits)


def test_culling_keeps_the_best_samples_of_every_image():
    prior = tiny_prior()
    samples = prior.sample_latents(20, torch.Generator().manual_seed(9))
    scores = torch.rand((3, 20), generator=torch.Generator().manual_seed(1))
    scores[2] = scores[0]  # two images of one label have one clue
    rendered = []

    def fits(images):
        rendered.append(images)
        return scores

    space = OfGenerator(latents=True, culled=20).open(
        scene_of(fits), None, 2, torch.Generator().manual_seed(9)
    )
    assert torch.equal(rendered[0], prior(samples))
    order = scores.argsort(dim=1, descending=True)
    z = space.latents()
    assert z is not None
    for restart in range(2):
        assert torch.equal(z[restart, 0], samples[order[0, restart]])
        assert torch.equal(z[restart, 1], samples[order[1, restart]])
        assert torch.equal(z[restart, 2], samples[order[0, 2 + restart]])


def test_clues_hold_the_layer_itself(victim, observation):
    layer = Clues.of(observation, victim).layer
    assert isinstance(layer, nn.Linear)
    assert layer is victim.head
