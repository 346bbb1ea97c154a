"""Levels by what was identified and recognised, against chance."""

import doctest
from itertools import product
from math import prod

import pytest

from gradinv.errors import DataError
from gradinv.evaluation import verdict
from gradinv.evaluation.evaluate import ImageScore
from gradinv.evaluation.verdict import CAVEAT, Level, chance_of, judge, worst


def score(
    rank: int, ssim: float, decoys: int = 15, psnr: float = 20.0, nearest: float | None = None
) -> ImageScore:
    return ImageScore(0, 0, 0, 0.01, psnr, ssim, None, rank, decoys, nearest)


HIT, SHOWN, MISS = score(0, 0.2), score(0, 0.7), score(3, 0.3)
ALIKE = score(2, 0.8)  # very like the original, but liker to others

CASES = {
    "all shown": ([SHOWN] * 8, Level.SEVERE),
    "three of eight shown": ([SHOWN] * 3 + [MISS] * 5, Level.SEVERE),
    "two of eight shown may be luck": ([SHOWN] * 2 + [MISS] * 6, Level.UNDECIDED),
    "four of 64 shown are what luck gives": ([SHOWN] * 4 + [MISS] * 60, Level.NONE_FOUND),
    "one of 64 unmistakably": ([score(0, 0.9, nearest=0.0401)] + [MISS] * 63, Level.SEVERE),
    "one of 64 nearly so": ([score(0, 0.9, nearest=0.0399)] + [MISS] * 63, Level.NONE_FOUND),
    "unmistakable but not shown": ([score(0, 0.3, nearest=0.0401)] + [MISS] * 63, Level.PARTIAL),
    "two of eight shown among 64": (
        [score(0, 0.7, 63)] * 2 + [score(9, 0.3, 63)] * 6,
        Level.SEVERE,
    ),
    "one alone of one shown": ([score(0, 0.7, 63)], Level.SEVERE),
    "all identified, none shown": ([HIT] * 8, Level.PARTIAL),
    "two of eight identified may be luck": ([HIT] * 2 + [MISS] * 6, Level.NONE_FOUND),
    "one shown": ([SHOWN] + [MISS] * 7, Level.UNDECIDED),
    "alike but not identified": ([ALIKE] * 8, Level.NONE_FOUND),
    "nothing": ([MISS] * 8, Level.NONE_FOUND),
    "no control, dull": ([score(0, 0.2, 0)] * 4, Level.UNDECIDED),
    "no control, alike": ([score(0, 0.7, 0)] * 4, Level.UNDECIDED),
    "some without control, alike": ([score(0, 0.7, 0)] * 3 + [MISS] * 8, Level.UNDECIDED),
    "some without control, dull": ([score(0, 0.2, 0)] * 3 + [MISS] * 8, Level.NONE_FOUND),
    "all of four among two": ([score(0, 0.3, 1)] * 4, Level.UNDECIDED),
    "one of one among 19": ([score(0, 0.3, 18)], Level.UNDECIDED),
    "none of one among 19": ([score(4, 0.3, 18)], Level.UNDECIDED),
}


@pytest.mark.parametrize(("scores", "level"), CASES.values(), ids=CASES.keys())
def test_levels(scores, level):
    judged = judge(scores, attack="gi-z/w")
    assert judged.level is level
    assert judged.sentence.startswith(f"{level.value}: gi-z/w ")
    assert str(judged) == judged.sentence
    assert "\n" not in judged.sentence
    assert (CAVEAT[1:] in judged.sentence) == (level is Level.NONE_FOUND)


@pytest.mark.parametrize(("ssim", "level"), [(0.399, Level.PARTIAL), (0.4, Level.SEVERE)])
def test_threshold_of_recognition(ssim, level):
    assert judge([score(0, ssim)] * 8, attack="gi-x").level is level


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
    assert "nothing beyond chance; failure of these attacks is no proof of safety" in sentence


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


def test_sentence_says_what_is_beyond_doubt():
    sentence = judge([score(0, 0.7, nearest=0.05), SHOWN, MISS], attack="gi-x").sentence
    assert "for 2 of 3 images, 1 of them unmistakably (chance: 0.2)" in sentence


def test_chance_against_enumeration():
    luck = [0.1, 0.5, 0.25, 0.02]
    for hits in range(6):
        expected = sum(
            prod(p if hit else 1 - p for p, hit in zip(luck, outcome, strict=True))
            for outcome in product([0, 1], repeat=4)
            if sum(outcome) >= hits
        )
        assert chance_of(hits, luck) == pytest.approx(expected)


def test_worst_is_the_gravest_then_the_clearest():
    severe, partial, none = judge([SHOWN] * 8), judge([HIT] * 8), judge([MISS] * 8)
    clearer = judge([score(0, 0.9)] * 8)
    assert worst([none, severe, clearer, partial]) is clearer
    undecided = judge([score(0, 0.7, 0)] * 8)
    assert worst([none, partial, undecided]) is partial
    assert worst([none, undecided]) is undecided
    assert [level.severity for level in Level] == [0, 1, 2, 3]


def test_no_scores():
    with pytest.raises(DataError, match="scores of at least one image for gi-x, got none"):
        judge([], attack="gi-x")


def test_no_verdicts():
    with pytest.raises(DataError, match="expected at least one verdict, got none"):
        worst([])


def test_examples_in_docstrings():
    result = doctest.testmod(verdict)
    assert result.attempted == 1
    assert result.failed == 0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"stuck": 2, "batches": 3}, "its matching cost never fell on 2 of 3 batches"),
        ({"blocked": "the network rounds"}, "the network rounds"),
    ],
)
def test_an_attack_that_never_got_going_decides_nothing_but_what_it_found_stands(settings, reason):
    nothing = judge([MISS] * 8, **settings)
    assert nothing.level is Level.UNDECIDED
    assert f"; {reason}: the attack did not get going" in nothing.sentence
    assert CAVEAT[1:] not in nothing.sentence
    found = judge([SHOWN] * 8, **settings)
    assert (found.level, reason in found.sentence) == (Level.SEVERE, True)
    assert "did not get going" not in found.sentence
    assert judge([MISS] * 8, stuck=0, blocked=None).level is Level.NONE_FOUND
