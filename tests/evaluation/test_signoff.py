"""One verdict for a defence: a leak where one was shown, excluded by certificate alone, or open."""

from dataclasses import replace

import pytest

from gradinv.evaluation.candidates import CandidateScore
from gradinv.evaluation.signoff import Bounds, judge_candidates, sign_off
from gradinv.evaluation.verdict import Level, judge
from tests.evaluation.test_verdict import HIT, MISS, SHOWN

CERTIFIED = Bounds(ceiling=0.07, interval=(0.069, 0.072), closed_form_refusal="no clip")
LOOSE = Bounds(ceiling=0.4, interval=(0.39, 0.41), sigma_needed=1.234)
REFUSED = Bounds(refusal="it adds no noise")


def candidate(rank: int = 5, known: int = 5, *, candidates: int = 64) -> CandidateScore:
    return CandidateScore(0, 0, candidates, rank, None, known, None, 7, 9)


def verdict(attacks, scores, bounds=REFUSED, **changed):
    found = judge_candidates(scores, bounds, defense="d")
    given = {"defense": "d", "decoys": 15, "luck": 0.5, "stalled": False, **changed}
    judged = {
        name: judge(each, attack=name, defense="d", ceiling=found.floor)
        for name, each in attacks.items()
    }
    return sign_off(judged, found, bounds, **given)


def test_naming_beyond_luck_is_a_leak():
    found = judge_candidates([candidate(1, 0)] * 2 + [candidate()] * 6, REFUSED)
    assert found.level is Level.PARTIAL
    assert (found.named, found.named_known, found.images, found.candidates) == (0, 2, 8, 64)
    assert found.luck == pytest.approx(8 / 64)
    assert found.sentence == (
        "PARTIAL: a server that holds 64 candidates for each image names 2 of 8 knowing the rest "
        "of the batch and 0 of 8 without it (chance: 0.1; 0 of 8 with another client's update)"
    )
    assert judge_candidates([candidate(0, 0)] + [candidate()] * 7, REFUSED).level is Level.OPEN


def test_naming_is_decided_with_the_rest_known():
    assert judge_candidates([candidate(0, 3)] * 8, REFUSED).level is Level.OPEN


def test_a_certificate_excludes():
    found = judge_candidates([candidate()] * 8, CERTIFIED, defense="noise:9")
    assert (found.level, found.floor) == (Level.EXCLUDED, 0.072)
    assert "no server that knows these 64 candidates" in found.sentence
    assert "names more than 7 % of the images" in found.sentence
    assert "against noise:9 a server" in found.sentence


def test_what_a_certificate_allows_is_no_leak_and_more_than_that_is():
    """Two of eight are named in 9 % of cases at a rate of 7.2 %."""
    assert judge_candidates([candidate(1, 0)] * 2 + [candidate()] * 6, CERTIFIED).level is (
        Level.EXCLUDED
    )
    assert judge_candidates([candidate(1, 0)] * 5 + [candidate()] * 3, CERTIFIED).level is (
        Level.PARTIAL
    )


def test_a_ceiling_far_above_luck_excludes_nothing():
    found = judge_candidates([candidate()] * 8, LOOSE)
    assert (found.level, found.floor, found.certificate) == (Level.OPEN, 0.0, None)
    assert "some server could name up to 40.0 % of the images, where luck names 1.6 %" in (
        found.sentence
    )


@pytest.mark.parametrize(("high", "level"), [(0.1156, Level.EXCLUDED), (0.1157, Level.OPEN)])
def test_the_limit_is_luck_and_a_tenth(high, level):
    bounds = replace(CERTIFIED, interval=(0.0, high))
    assert judge_candidates([candidate()] * 8, bounds).level is level


def test_the_closed_form_excludes_alone():
    found = judge_candidates([candidate()] * 8, replace(LOOSE, closed_form=0.05))
    assert (found.level, found.floor) == (Level.EXCLUDED, 0.05)
    assert "is right with at most 5 % after one update" in found.sentence
    assert judge_candidates([candidate()] * 8, replace(LOOSE, closed_form=0.2)).level is Level.OPEN


def test_without_candidates_nothing_is_excluded():
    found = judge_candidates([candidate(0, 0, candidates=1)] * 8, CERTIFIED)
    assert (found.level, found.images, found.candidates) == (Level.OPEN, 0, 1)
    assert "no image had another one of its label" in found.sentence
    assert "a server had no candidates to choose from" in found.sentence


def test_too_few_images_are_said_to_be_too_few():
    few = judge_candidates([candidate(candidates=2)] * 3, REFUSED)
    assert "too few images or candidates to tell naming from luck" in few.sentence
    assert "there is no certificate: it adds no noise" in few.sentence


def test_an_attack_that_shows_a_leak_decides():
    found = verdict({"a": [MISS] * 8, "b": [SHOWN] * 8, "c": [HIT] * 8}, [candidate(0, 0)] * 8)
    assert (found.level, found.attack) == (Level.SEVERE, "b")
    assert (found.n, found.identified, found.candidates, found.luck) == (8, 8, 16, 0.5)
    assert found.sentence.startswith("SEVERE: b against d points at the right client image")
    assert "names 8 of 8 knowing the rest of the batch" in found.sentence
    assert "; use a stronger defence" in found.sentence
    assert verdict({"c": [HIT] * 8}, [candidate()] * 8, CERTIFIED).level is Level.PARTIAL


def test_naming_decides_where_no_attack_does():
    found = verdict({"a": [MISS] * 8}, [candidate(4, 0)] * 8)
    assert (found.level, found.attack) == (Level.PARTIAL, "candidates")
    assert (found.n, found.identified, found.candidates, found.luck) == (8, 8, 64, 8 / 64)
    assert found.sentence.startswith("PARTIAL: against d a server that holds 64 candidates")
    assert "updates tell which of some known images a client holds" in found.sentence


def test_excluded_says_what_it_speaks_of():
    found = verdict({"a": [MISS] * 8}, [candidate()] * 8, CERTIFIED)
    assert found.level is Level.EXCLUDED
    assert found.sentence.startswith("EXCLUDED: no server that knows these 64 candidates and the")
    assert found.sentence.endswith("the kind of image, such as its label")


def test_open_says_what_would_decide_it():
    found = verdict({"a": [MISS] * 8}, [candidate()] * 8, LOOSE, stalled=True)
    assert (found.level, found.stalled) == (Level.OPEN, True)
    assert "noise with a standard deviation of 1.2 added last would exclude naming" in (
        found.sentence
    )
    found = verdict({"a": [MISS] * 8}, [candidate()] * 8, Bounds(refusal="its noise is not last"))
    assert "there is no certificate: its noise is not last" in found.sentence
    assert "noise of known width, added last, would make a certificate possible" in found.sentence


def test_row_has_the_keys_of_the_contract():
    row = verdict({"a": [MISS] * 8}, [candidate()] * 8, CERTIFIED).row()
    assert row["level"] == "EXCLUDED"
    assert row["ceiling_interval"] == [0.069, 0.072]
    keys = (
        "defense level sentence attack n identified candidates luck ceiling ceiling_interval "
        "closed_form epsilon stalled named named_known ceiling_refusal closed_form_refusal "
        "epsilon_refusal delta rounds sigma_needed"
    )
    assert set(row) == set(keys.split())
