"""Levels by what was identified and recognised, against luck; nothing found is open."""

import doctest

import pytest

from gradinv.errors import DataError
from gradinv.evaluation import verdict
from gradinv.evaluation.evaluate import ImageScore
from gradinv.evaluation.verdict import Level, Tried, judge


def score(
    rank: int, ssim: float, decoys: int = 15, psnr: float = 20.0, lead: float = 1.0
) -> ImageScore:
    """A score beside pictures of SSIM 0.5 that know nothing; the nearest decoy ``lead`` away."""
    nearest = 0.01 * lead
    return ImageScore(
        0, 0, 0, 0.01, psnr, ssim, None, rank, decoys, 1,
        nearest if decoys else None, 1.1 * nearest if decoys > 1 else None, 0.5,
    )  # fmt: skip


HIT, SHOWN, MISS = score(0, 0.2), score(0, 0.7), score(3, 0.3)
ALIKE = score(2, 0.8)  # very like the original, but liker to others
AHEAD, AHEAD_DULL = score(0, 0.9, lead=50.0), score(0, 0.3, lead=50.0)

CASES = {
    "all shown": ([SHOWN] * 8, Level.SEVERE),
    "four of eight shown": ([SHOWN] * 4 + [MISS] * 4, Level.SEVERE),
    "two of eight shown may be luck": ([SHOWN] * 2 + [MISS] * 6, Level.OPEN),
    "four of 64 shown are what luck gives": ([SHOWN] * 4 + [MISS] * 60, Level.OPEN),
    "one of 64 far ahead": ([AHEAD] + [MISS] * 63, Level.SEVERE),
    "one of 64 a little ahead": ([score(0, 0.9, lead=1.3)] + [MISS] * 63, Level.OPEN),
    "far ahead but not shown": ([AHEAD_DULL] + [MISS] * 63, Level.PARTIAL),
    "three of eight shown among 64": (
        [score(0, 0.7, 63)] * 3 + [score(9, 0.3, 63)] * 5,
        Level.SEVERE,
    ),
    "all identified, none shown": ([HIT] * 8, Level.PARTIAL),
    "all identified, two shown": ([SHOWN] * 2 + [HIT] * 6, Level.PARTIAL),
    "alike but not identified": ([ALIKE] * 8, Level.OPEN),
    "nothing": ([MISS] * 8, Level.OPEN),
    "no control": ([score(0, 0.7, 0)] * 4, Level.OPEN),
    "some without control": ([score(0, 0.7, 0)] * 3 + [MISS] * 8, Level.OPEN),
    "all of four among two": ([score(0, 0.3, 1)] * 4, Level.OPEN),
}


@pytest.mark.parametrize(("scores", "level"), CASES.values(), ids=CASES.keys())
def test_levels(scores, level):
    judged = judge(scores, attack="gi-z/w")
    assert judged.level is level
    assert judged.sentence.startswith(f"{level.value}: gi-z/w ")
    assert str(judged) == judged.sentence
    assert "\n" not in judged.sentence


def test_sentence_tells_what_was_found_and_what_to_do():
    scores = [score(0, 0.74, psnr=23.6), score(0, 0.7, psnr=19.0)] * 4
    assert judge(scores, attack="gi-z/w", defense="sparsify:0.95").sentence == (
        "SEVERE: gi-z/w against sparsify:0.95 points at the right client image among 16 candidates "
        "of its label for 8 of 8 images (chance: 0.5) and rebuilds 8 of 8 recognisably (mean PSNR "
        "21.3 dB, SSIM 0.72, best image 23.6 dB): do not ship this setting; use a stronger defence "
        "or larger batches and audit again"
    )


def test_a_small_chance_is_not_written_as_none():
    assert "(chance: 0.03)" in judge([score(0, 0.7, 63)] * 2).sentence


def test_sentence_when_nothing_was_found_claims_no_safety():
    sentence = judge([MISS] * 8, attack="gi-x").sentence
    assert sentence.endswith(": this attack found nothing beyond luck, which excludes nothing")


def test_numbers():
    judged = judge([SHOWN, HIT, MISS, ALIKE], attack="gi-x")
    assert (judged.images, judged.identified, judged.recognisable) == (4, 2, 1)
    assert judged.ssim == pytest.approx(0.5)
    assert judged.psnr == pytest.approx(20)


def test_candidates_of_different_number():
    sentence = judge(
        [score(0, 0.7, 3), score(0, 0.7, 15), score(0, 0.7, 0)], attack="gi-x"
    ).sentence
    assert (
        "among 4 to 16 candidates of its label for 2 of 2 images (chance: 0.3; 1 had no other "
        "image of their label beside them)" in sentence
    )
    assert "could not be controlled, without other images of the labels" in (
        judge([score(0, 0.7, 0)]).sentence
    )


def test_half_of_the_significance_goes_to_the_count():
    """Three of eight among 16 come by luck in 0.011, two of eight in 0.088."""
    scores = [HIT] * 3 + [MISS] * 5
    assert judge(scores, significance=0.023).level is Level.PARTIAL
    assert judge(scores, significance=0.021).level is Level.OPEN


def test_what_a_certificate_allows_is_no_leak():
    scores = [HIT] * 3 + [MISS] * 5
    assert judge(scores, significance=0.05, ceiling=0.05).level is Level.PARTIAL
    assert judge(scores, significance=0.05, ceiling=0.16).level is Level.OPEN
    assert judge([AHEAD] + [MISS] * 63, ceiling=0.16).level is Level.OPEN
    assert judge([HIT] * 8, ceiling=0.16).level is Level.PARTIAL


REASONS = {
    "failed": (
        Tried(3, failed=1),
        "it left the finite numbers on 1 of 3 batches",
        "nothing beyond",
    ),
    "failed everywhere": (Tried(3, failed=3), "on 3 of 3 batches", "nothing was tried in earnest"),
    "stuck": (Tried(3, stuck=2), "its matching cost never fell on 2 of 3", "did not get going"),
    "blocked": (Tried(blocked="the network rounds"), "; the network rounds", "did not get going"),
    "stalled": (Tried(3, stalled=2), "it stalled on 2 of 3 batches, where", "run it longer"),
    "a first look": (Tried(budget=0.125), "it did 12.5 % of its preset's steps", "run all of its"),
    "memorised": (Tried(memorised="it knows them"), "it knows them", "audit with a prior that was"),
}


@pytest.mark.parametrize(("tried", "reason", "advice"), REASONS.values(), ids=REASONS.keys())
def test_an_attack_that_found_nothing_says_how_it_was_run(tried, reason, advice):
    nothing = judge([MISS] * 8, tried=tried)
    assert nothing.level is Level.OPEN
    assert reason in nothing.sentence
    assert advice in nothing.advice


@pytest.mark.parametrize("tried", [Tried(3, stuck=2), Tried(3, stalled=2), Tried(budget=0.1)])
def test_what_it_found_stands(tried):
    found = judge([SHOWN] * 8, tried=tried)
    assert found.level is Level.SEVERE
    assert found.advice == judge([SHOWN] * 8).advice
    assert tried.reasons()[0] in found.sentence


@pytest.mark.parametrize("tried", [Tried(3, failed=3), Tried(memorised="it knows them")])
def test_what_proves_nothing_is_no_leak(tried):
    assert judge([SHOWN] * 8, tried=tried).level is Level.OPEN


def test_too_few_images_are_said_to_be_too_few():
    few = judge([score(0, 0.3, 1)] * 4)
    assert "; too few images, or others of their labels, to tell a leak from luck" in few.sentence
    assert few.advice.startswith("audit more batches")


def test_levels_in_their_order():
    assert [level.value for level in Level] == ["EXCLUDED", "OPEN", "PARTIAL", "SEVERE"]
    assert [level.severity for level in Level] == [0, 1, 2, 3]


def test_no_scores():
    with pytest.raises(DataError, match="scores of at least one image for gi-x, got none"):
        judge([], attack="gi-x")


def test_examples_in_docstrings():
    result = doctest.testmod(verdict)
    assert result.attempted == 2
    assert result.failed == 0
