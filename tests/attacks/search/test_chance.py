"""Dropout in a search: the same again at one place, another at every other place."""

import pytest
import torch
from torch import nn

from gradinv.attacks.search.chance import dropout_from, dropping, require_steady, source_of
from gradinv.errors import AttackError


def dropped(place: tuple[int, int, int]) -> list[bool]:
    with dropout_from(place, torch.device("cpu")):
        return (nn.functional.dropout(torch.ones(200)) == 0).tolist()


@pytest.mark.parametrize("other", [(4, 1, 7), (3, 2, 7), (3, 1, 8), (1, 3, 7), (7, 1, 3)])
def test_seed_stage_and_step_decide_what_is_dropped(other):
    assert dropped((3, 1, 7)) == dropped((3, 1, 7))
    assert dropped((3, 1, 7)) != dropped(other)


def test_a_source_of_a_place_is_its_own():
    first, again, other = (torch.rand(3, generator=source_of((3, 1, step))) for step in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_process_keeps_its_own_chance():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    dropped((3, 1, 7))
    assert torch.equal(torch.rand(3), expected)


def test_layers_that_drop_are_those_in_train_mode_that_drop_something():
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout2d(0.1), nn.Dropout(0.0), nn.ReLU())
    assert dropping(model) == ["0", "1"]
    model[0].eval()
    assert dropping(model) == ["1"]
    assert dropping(model.eval()) == []


def test_a_line_search_asks_for_a_network_that_drops_nothing():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))
    require_steady(model.eval(), "dlg")
    with pytest.raises(AttackError, match=r"dropout in train mode in 0; .*or attack with gi-x"):
        require_steady(model.train(), "dlg")
