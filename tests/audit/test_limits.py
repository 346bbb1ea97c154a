"""Whether an audit fits into memory: attacks, processes and the candidate search."""

import math

import pytest

from gradinv.audit.limits import processes_that_fit, require_audit_fits
from gradinv.audit.setup import prepare
from gradinv.errors import ConfigError
from gradinv.room import GIB
from tests.audit.world import config


def give(monkeypatch, size):
    monkeypatch.setattr("gradinv.room.machine_bytes", lambda: size)


def test_the_dearest_attack_decides_how_many_processes_fit(monkeypatch):
    setup = prepare(config(attack=("gi-x", "gi-x:restarts=1000"), workers=None))
    alone = prepare(config(attack=("gi-x:restarts=1000",), workers=None))
    for size in (GIB // 100, GIB, 10 * GIB):
        give(monkeypatch, size)
        assert processes_that_fit(setup) == processes_that_fit(alone)
    assert processes_that_fit(setup) > 1
    give(monkeypatch, 1)
    assert processes_that_fit(setup) == 1
    give(monkeypatch, math.inf)
    assert processes_that_fit(setup) == math.inf


def test_processes_that_were_asked_for_are_refused_and_no_more_than_there_are_cells(monkeypatch):
    setup = prepare(config(restarts=1000, workers=10**9))  # two attack runs, two searches
    needed = 10**6
    while processes_that_fit(setup) != 2:
        needed += 10**6
        give(monkeypatch, needed)
    with pytest.raises(ConfigError, match=r"an audit by 4 processes that fits .* lower --workers"):
        require_audit_fits(setup)
    give(monkeypatch, 4 * needed)
    require_audit_fits(setup)


def test_a_candidate_search_counts_its_lists(monkeypatch):
    monkeypatch.setattr("gradinv.audit.limits.require_attack_fits", lambda *_, **__: None)
    setup = prepare(config(candidates=10**9))
    give(monkeypatch, 100)
    with pytest.raises(
        ConfigError,
        match=r"expected a candidate search that fits .* lower --candidates, --batch-size or",
    ):
        require_audit_fits(setup)
    give(monkeypatch, GIB)  # no more candidates than there are images
    require_audit_fits(setup)
