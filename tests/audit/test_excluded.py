"""Settings that nobody can see through are never called a leak, and rounding is never excluded."""

from pathlib import Path

import pytest

from gradinv.audit.plan import AuditConfig
from gradinv.audit.runner import run_audit
from tests.audit.world import config

STRONG = ("noise:30", "clip:1+noise:1")
WEAK = ("noise:0.1", "clip:1+noise:0.01", "sparsify:0.999")


def verdicts_of(seed: int, defenses: tuple[str, ...], **settings) -> dict[str, str]:
    """Returns the levels of the embedded images' audit, with a short search."""
    given = AuditConfig(
        attack=("gi-x:steps=10",), defense=defenses, mode="train", seed=seed, workers=1,
        device="cpu", batches=2, **settings,
    )  # fmt: skip
    audit = run_audit(given, Path(f"run-{seed}"))
    return {verdict["defense"]: verdict["level"] for verdict in audit["verdicts"]}


@pytest.mark.slow
def test_what_is_behind_much_noise_is_no_leak_in_19_of_20_seeds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = [verdicts_of(seed, STRONG) for seed in range(20)]
    for defense in STRONG:
        quiet = sum(levels[defense] in {"EXCLUDED", "OPEN"} for levels in found)
        assert quiet >= 19, (defense, found)


@pytest.mark.slow
def test_what_is_behind_little_noise_is_a_leak_though_the_search_is_short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert set(verdicts_of(0, WEAK).values()) <= {"PARTIAL", "SEVERE"}


def test_rounding_without_noise_is_never_excluded():
    """Rounded to nothing, nobody names an image; no certificate says so, and it stays open."""
    given = config(defense=("tests.outside:Rounded:1000",), candidates=5)
    audit = run_audit(given, Path("run"))
    (verdict,) = audit["verdicts"]
    assert verdict["level"] == "OPEN"
    assert verdict["named_known"] == 0
    assert verdict["ceiling"] is verdict["closed_form"] is None
    assert (
        "is no defence of the package, so what it leaves to chance is claimed"
        in (verdict["sentence"])
    )


def test_noise_before_a_sparsification_is_refused_a_certificate():
    given = config(defense=("noise:100+sparsify:0.5",), candidates=5)
    (verdict,) = run_audit(given, Path("run"))["verdicts"]
    assert verdict["level"] == "OPEN"
    assert verdict["ceiling"] is None
    assert "its noise is not added last" in verdict["sentence"]


def test_much_noise_last_is_excluded():
    given = config(defense=("clip:1+noise:100",), candidates=5)
    (verdict,) = run_audit(given, Path("run"))["verdicts"]
    assert verdict["level"] == "EXCLUDED"
    assert verdict["ceiling_interval"][1] <= 0.3
    assert verdict["closed_form"] <= 0.3
    assert 0 < verdict["epsilon"] < 1
