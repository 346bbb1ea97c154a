"""The package's own attack: what it chooses by what it sees."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from gradinv.attacks import Outcome, invert, preset
from gradinv.attacks.driver import Search
from gradinv.attacks.evidence.penultimate import Clues
from gradinv.attacks.search.spaces import Solution
from gradinv.attacks.standard import Standard
from gradinv.data import ClientBatch
from gradinv.errors import ConfigError
from gradinv.priors.flow.prior import FlowPrior
from tests.attacks.tiny import tiny_batch, tiny_observation, tiny_prior, tiny_victim


def spaces(attack) -> list[tuple[str, bool]]:
    return [(stage.space.name, stage.features) for stage in attack.stages]


def test_all_stages_where_the_update_gives_features_away(victim, observation, prior):
    attack = preset("standard")
    assert isinstance(attack, Standard)
    assert spaces(attack.resolved(observation, victim, prior)) == [
        ("z", True), ("z", False), ("w", False),
    ]  # fmt: skip


def searching(update, victim, prior) -> Search:
    """The attack at its start."""
    resolved = preset("standard").resolved(update, victim, prior)
    return Search(update, victim, resolved, prior=prior, seed=0, seconds=None)


@pytest.mark.parametrize("defense", ["none", "sparsify:0.8"])
def test_starts_are_among_the_best_of_512_samples(victim, prior, defense, monkeypatch):
    update = tiny_observation(victim, tiny_batch(), defense=defense)
    judged, fits = [], Clues.fits

    def judge(clues, model, images):
        judged.append(images)
        return fits(clues, model, images)

    monkeypatch.setattr(Clues, "fits", judge)
    search = searching(update, victim, prior)
    assert [len(images) for images in judged] == [512]
    starts = search.space().detach()
    assert len(starts) == preset("standard").resolved(update, victim, prior).restarts
    # The r-th best of 512 beats all but r of 512 other samples, give or take 5 sqrt(r).
    with torch.no_grad():
        others = prior(prior.sample_latents(4000, torch.Generator().manual_seed(99)))
    clues = Clues.of(update, victim)
    usual = clues.fits(victim, others)
    for rank, images in enumerate(starts, start=1):
        own = clues.fits(victim, images).diagonal()
        better = (usual > own[:, None]).float().mean(dim=1)
        assert (better < (rank + 5 * rank**0.5) / 512).all()


def test_no_feature_stage_where_it_does_not(victim, observation, prior):
    kept = {name: g for name, g in observation.gradient.items() if name != "head.weight"}
    hidden = replace(observation, gradient=kept)
    assert spaces(preset("standard").resolved(hidden, victim, prior)) == [
        ("z", False), ("w", False),
    ]  # fmt: skip
    behind = nn.Sequential(tiny_victim(), nn.Softmax(1)).eval()
    update = tiny_observation(behind, tiny_batch())
    found = invert(update, behind, preset("standard").scaled(0.003), prior=prior)
    assert [stage.name for stage in found.stages] == ["z", "w"]


def test_more_starts_and_no_weights_where_little_is_known(victim, prior):
    update = tiny_observation(victim, tiny_batch(), defense="sparsify:0.8")
    thin, whole = preset("standard").resolved(update, victim, prior), preset("standard")
    assert spaces(thin) == [("z", True), ("z", False)]
    assert thin.restarts == 2 * whole.restarts
    assert thin.averaged == whole.averaged
    asked = preset("standard").with_restarts(3)
    assert asked.resolved(update, victim, prior).restarts == 3
    with pytest.raises(ConfigError, match="at least 1 restart, got 0"):
        asked.with_restarts(0)


def test_what_is_shown_is_the_mean_of_restarts_that_match_about_as_well(
    victim, observation, prior, monkeypatch
):
    attack = preset("standard").scaled(0.003)
    seen = []
    select = Solution.select
    monkeypatch.setattr(Solution, "select", lambda s, which: seen.append(s) or select(s, which))
    costs = invert(observation, victim, attack, prior=prior).objective.sort().values
    between = float((costs[1] + costs[2]) / (2 * costs[0]))
    for averaged, near in ((1.0, 1), (between, 2), (1e9, 4)):
        seen.clear()
        found = invert(observation, victim, replace(attack, averaged=averaged), prior=prior)
        images = seen[-1].images[found.objective.argsort()[:near]]
        torch.testing.assert_close(found.images, images.mean(0).clamp(0, 1))
        torch.testing.assert_close(found.images, found.stages[-1].images)


@pytest.mark.parametrize("defense", ["none", "sparsify:0.8", "noise:0.01"])
def test_a_prior_that_denoises_is_used_as_a_denoiser(victim, defense):
    update = tiny_observation(victim, tiny_batch(), defense=defense)
    size = update.image_shape[1]
    prior = FlowPrior(image_size=size, channels=update.image_shape[0], base_channels=8).eval()
    own = preset("standard").resolved(update, victim, prior)
    assert own.stages == preset("gi-x+flow").resolved(update, victim, prior).stages
    assert own.restarts == 1
    assert preset("standard").with_restarts(3).resolved(update, victim, prior).restarts == 3
    twice = preset("standard").scaled(2.0).resolved(update, victim, prior)
    assert twice.total_steps == 2 * own.total_steps
    found = invert(update, victim, preset("standard").scaled(0.01), prior=prior)
    assert [stage.name for stage in found.stages] == ["x"]


class FixedCosts:
    """In place of a stage's cost: what each of the next calls returns."""

    def __init__(self, *costs):
        self.costs = list(costs)

    def matching(self, images, labels):
        return torch.tensor([self.costs.pop(0)])


@pytest.fixture
def shown(victim, observation, prior, monkeypatch):
    """What is shown of restarts with given costs, and at what costs of their means."""

    def of(images, objective, *means):
        search = searching(observation, victim, prior)
        costs = FixedCosts(*means)
        monkeypatch.setattr(Search, "_cost", lambda self, progress: costs)
        return search._shown(Solution(images), torch.tensor(objective))

    return of


def test_a_mean_that_matches_badly_leaves_the_worst_restart_out(shown, generator):
    base = torch.rand((2, 1, 8, 8), generator=generator)
    images = base + 0.01 * torch.rand((4, 2, 1, 8, 8), generator=generator)
    images = images.clamp(0, 1)
    picture, cost = shown(images, [2.0, 1.0, 2.9, 3.1], 2.1, 1.9)
    torch.testing.assert_close(picture, images[:2].mean(0))
    assert cost == pytest.approx(1.9)
    picture, cost = shown(images, [2.0, 1.0, 2.9, 3.1], 2.1, 2.1)
    assert torch.equal(picture, images[1])
    assert cost == 1.0


def test_a_cost_rounded_to_below_zero_shows_the_best_restart(shown, generator):
    images = torch.rand((3, 2, 1, 8, 8), generator=generator)
    picture, cost = shown(images, [1e-3, -1e-7, 2e-3])
    assert torch.equal(picture, images[1])
    assert cost == pytest.approx(-1e-7)


def test_images_of_one_label_are_averaged_with_their_likes(victim, prior):
    batch = tiny_batch()
    twins = ClientBatch(batch.images, torch.zeros_like(batch.labels), batch.ids)
    update = tiny_observation(victim, twins)
    search = searching(update, victim, prior)
    images = torch.stack([batch.images, batch.images.flip(0)])
    picture, cost = search._shown(Solution(images), torch.tensor([1.0, 1.0]))
    assert torch.equal(picture, batch.images)
    assert cost == pytest.approx(float(search.engines[0].matching(batch.images[None])))


def test_a_network_of_another_type_than_the_prior(prior):
    victim = tiny_victim().double()
    update = tiny_observation(victim, tiny_batch().to(torch.device("cpu"), torch.float64))
    found = invert(update, victim, preset("standard").scaled(0.003), prior=prior)
    assert found.images.dtype == torch.float64
    assert next(prior.parameters()).dtype == torch.float32


def test_pixels_without_a_prior(victim, observation):
    attack = preset("standard")
    assert not attack.needs_prior
    assert attack.uses_prior
    assert spaces(attack.resolved(observation, victim, None)) == [("x", False)]
    found = invert(observation, victim, attack.scaled(0.003))
    assert found.outcome is Outcome.COMPLETED


def test_both_ways_are_scaled():
    attack, half = preset("standard"), preset("standard").scaled(0.5)
    assert isinstance(attack, Standard)
    assert isinstance(half, Standard)
    assert half.total_steps == attack.total_steps / 2
    assert half.alone.stages[0].steps == attack.alone.stages[0].steps / 2
    assert half.thin[1].steps == attack.thin[1].steps / 2


def test_no_settings():
    with pytest.raises(ConfigError, match="expected 'standard' without settings"):
        preset("standard:tv=0.1")


def test_a_step_on_features_counts_for_less():
    stages = preset("standard").stages
    assert stages[0].work == pytest.approx(0.4 * stages[0].steps)
    assert stages[1].work == stages[1].steps


def test_the_time_limit_is_shared_by_work(victim, observation):
    prior = tiny_prior()
    found = invert(observation, victim, preset("standard"), prior=prior, seconds=2.0)
    features, _, weights = (stage.seconds for stage in found.stages)
    first, _, last = preset("standard").stage_work
    assert features / weights == pytest.approx(first / last, rel=0.5)
    assert found.outcome is Outcome.TIME_LIMIT
    assert torch.isfinite(found.images).all()
