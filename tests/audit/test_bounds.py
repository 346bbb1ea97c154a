"""The certificates of a defence, from its chain and its candidates."""

import pytest

from gradinv.audit.bounds import bounds_of
from gradinv.evaluation.accounting import epsilon_of
from gradinv.evaluation.closed_form import NO_CLIP, closed_form
from gradinv.federated import parse_defense
from gradinv.federated.channel import NO_NOISE


def row(*ceilings: float, refusal: str | None = None, needed: float | None = 0.5):
    return {
        "refusal": refusal,
        "sigma_needed": needed,
        "images": [
            {
                "candidates": 64,
                "ceiling": None if refusal else ceiling,
                "ceiling_interval": None if refusal else [ceiling - 0.01, ceiling + 0.02],
            }
            for ceiling in ceilings
        ],
    }


def test_clip_and_noise_have_all():
    found = bounds_of(parse_defense("clip:1+noise:2"), [row(0.1, 0.2), row(0.3)], rounds=4)
    assert found.ceiling == pytest.approx(0.2)
    assert found.interval == pytest.approx((0.19, 0.22))
    assert found.closed_form == closed_form(1 / 64, sensitivity=2.0, sigma=2.0, rounds=4)
    assert found.epsilon == epsilon_of(sensitivity=2.0, sigma=2.0, rounds=4, delta=1e-5)
    assert found.refusal is found.closed_form_refusal is found.epsilon_refusal is None
    assert (found.rounds, found.delta, found.sigma_needed) == (4, 1e-5, 0.5)


def test_noise_alone_has_a_ceiling_alone():
    found = bounds_of(parse_defense("noise:2"), [row(0.1)], rounds=1)
    assert found.ceiling == pytest.approx(0.1)
    assert found.closed_form is found.epsilon is None
    assert found.closed_form_refusal == found.epsilon_refusal == NO_CLIP


def test_without_noise_there_is_nothing_but_advice():
    rows = [row(0.0, refusal=NO_NOISE), row(0.0, refusal=NO_NOISE, needed=0.7)]
    found = bounds_of((), rows, rounds=1)
    assert (found.ceiling, found.interval, found.refusal) == (None, None, NO_NOISE)
    assert found.sigma_needed == 0.7
    rows = [row(0.0, refusal=NO_NOISE), row(0.0, refusal=NO_NOISE, needed=None)]
    assert bounds_of((), rows, rounds=1).sigma_needed is None


def test_images_alone_in_their_lists_count_in_nothing():
    alone = row(1.0)
    alone["images"][0]["candidates"] = 1
    found = bounds_of(parse_defense("clip:1+noise:2"), [alone], rounds=1)
    assert (found.ceiling, found.closed_form) == (None, None)
    assert found.epsilon is not None


def test_an_epsilon_that_no_float_holds_says_so():
    found = bounds_of(parse_defense("clip:1+noise:1e-120"), [row(0.9)], rounds=1)
    assert found.epsilon is None
    assert found.epsilon_refusal == "it is larger than any number that a float holds"
