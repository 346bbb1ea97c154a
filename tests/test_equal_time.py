"""Attacks at equal time: what a step costs, and how many steps fit."""

import pytest

from benchmarks.equal_time import TIMED_STEPS, Costs, costs_of, factor_of
from gradinv.attacks import preset
from tests.attacks.tiny import tiny_batch, tiny_observation, tiny_prior, tiny_victim


def cost_of(name):
    victim = tiny_victim()
    prior = tiny_prior() if preset(name).needs_prior else None
    return costs_of(preset(name), tiny_observation(victim, tiny_batch()), victim, prior)


def test_every_stage_and_what_is_apart_is_measured():
    found = cost_of("gi-z/w")
    assert len(found.steps) == 2
    assert min(found.steps) > 0
    assert found.apart >= 0


def test_the_yardstick_costs_as_much_as_itself():
    assert cost_of("gi-x").steps[0] == pytest.approx(1, rel=0.5)


def scaled(costs):
    attack = preset("gi-z/w:steps=100,50")
    return attack.scaled(factor_of(attack, costs, 640.0))


def test_the_budget_is_spent_and_the_proportion_kept():
    own = scaled(Costs((2.0, 4.0), apart=40.0))
    assert [stage.steps for stage in own.stages] == [150, 75]
    assert 150 * 2 + 75 * 4 + 40 == 640


def test_a_budget_that_is_too_small_leaves_a_step_a_stage():
    own = scaled(Costs((2.0, 4.0), apart=900.0))
    assert [stage.steps for stage in own.stages] == [1, 1]


def test_enough_steps_are_timed_for_a_step_of_the_denoiser():
    """Each stage's timing holds whole rounds of ``every`` steps."""
    denoising = preset("gi-x+flow").stages[0].denoising
    assert denoising is not None
    assert (TIMED_STEPS - 1) % denoising.every == 0
