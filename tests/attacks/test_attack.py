"""What an attack says about itself before it is run."""

import json

import pytest

from gradinv.attacks import Adam, Attack, Stage, preset
from gradinv.attacks.search.spaces import Pixels
from gradinv.errors import ConfigError


def stages(*keep: int | None, features: bool = False) -> tuple[Stage, ...]:
    return tuple(Stage(Pixels(), 10, Adam(0.1), keep=kept, features=features) for kept in keep)


@pytest.mark.parametrize(
    ("restarts", "keep", "stepped"),
    [
        (1, (None, None), (1, 1)),
        (8, (1, None), (8, 1)),
        (8, (None, None), (8, 8)),
        (8, (3, None, 1, None), (8, 3, 3, 1)),
        (2, (5, None), (2, 2)),
    ],
)
def test_work_counts_the_restarts_that_each_stage_steps(restarts, keep, stepped):
    attack = Attack("some", stages(*keep), restarts=restarts)
    assert attack.stage_work == tuple(10.0 * count for count in stepped)
    assert attack.total_work == 10.0 * sum(stepped)
    cheap = Attack("some", stages(*keep, features=True), restarts=restarts)
    assert cheap.total_work == pytest.approx(0.4 * attack.total_work)


def test_an_attack_in_closed_form_has_no_work():
    assert preset("r-gap").stage_work == ()
    assert preset("r-gap").total_work == 0


class Plain:
    def __init__(self, power):
        self.power = power

    def __call__(self, trial, target):
        raise AssertionError


def a_function(trial, target):
    raise AssertionError


def test_parts_from_outside_are_described_too():
    def told(distance):
        return json.loads(json.dumps(Attack("mine", (), distance).describe()))["distance"]

    assert told(Plain(2.0)) == {"kind": "Plain", "power": 2.0}
    assert told(Plain(2.0)) != told(Plain(3.0))
    assert told(a_function) == f"{__name__}:a_function"
    with pytest.raises(ConfigError, match="so that results say which it was, got complex; make it"):
        told(Plain(2j))
