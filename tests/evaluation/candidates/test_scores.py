"""How many candidates fit into memory."""

from torch import nn

from gradinv.evaluation.candidates.scores import (
    MEMORY,
    affordable,
    affordable_note,
    search_bytes,
)
from tests.attacks.tiny import tiny_victim


def test_as_many_as_fit():
    small = tiny_victim()
    assert affordable(small, 64) == 64
    assert affordable_note(64, 64, small) is None
    big = nn.Linear(MEMORY // 4 // 1000, 100, bias=False)  # a tenth of what is allowed
    assert affordable(big, 64) == 10
    note = affordable_note(64, 10, big)
    assert note is not None
    assert note.startswith("Candidates: 10 of 64 a place, since one update takes 0.1 GiB")
    assert affordable(nn.Linear(MEMORY // 4000, 3000, bias=False, device="meta"), 64) == 2


def test_what_a_search_holds():
    small = tiny_victim()
    size = 4 * sum(value.numel() for value in small.parameters())
    # Images of all places; the updates of the longest list, twice; Gram matrices, three more.
    expected = 4 * 64 * 8 + 2 * 5 * size + 8 * (25 + 9 + 3 * 25)
    assert search_bytes(small, (1, 8, 8), [5, 3]) == expected
