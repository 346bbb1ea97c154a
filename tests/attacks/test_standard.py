"""The package's own attack: what it chooses by what it sees."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from gradinv.attacks import Outcome, invert, preset
from gradinv.attacks.spaces import Solution
from gradinv.attacks.standard import Standard
from gradinv.errors import ConfigError
from tests.attacks.tiny import tiny_batch, tiny_observation, tiny_prior, tiny_victim


def spaces(attack) -> list[tuple[str, bool]]:
    return [(stage.space.name, stage.features) for stage in attack.stages]


def test_all_stages_where_the_update_gives_features_away(victim, observation, prior):
    attack = preset("standard")
    assert isinstance(attack, Standard)
    assert spaces(attack.resolved(observation, victim, prior)) == [
        ("z", True), ("z", False), ("w", False),
    ]  # fmt: skip


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
    assert half.alone[0].steps == attack.alone[0].steps / 2
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
