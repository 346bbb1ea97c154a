"""What a defence declares, and what the server may conclude from a chain of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gradinv.errors import ConfigError, ObservationError
from gradinv.federated import (
    Clip,
    Noise,
    Observation,
    Sparsify,
    format_defenses,
    observe,
    parse_defense,
)
from gradinv.federated.defense import (
    changes_direction,
    changes_length,
    check_defenses,
    noise_of,
    rounds,
    signs_hold,
    spec_of,
    survivors_of,
)
from gradinv.files import load_tensors, save_tensors
from tests.outside import Every, Laplace, Rounded


def silent(**changed: object) -> Rounded:
    """One that leaves a declaration out, or says something else."""
    kind = type("Silent", (Rounded,), changed)
    return kind(0.5)


@pytest.mark.parametrize(
    ("defense", "message"),
    [
        (object(), "declares keeps, sigma, .*, got object without keeps, sigma, spec, apply, sca"),
        (silent(keeps=None), "got Silent without keeps; see docs/contributing.md"),
        (silent(scaled=None), "got Silent without scaled; see"),
        (silent(sigma=None), "got Silent without sigma; see"),
        (silent(keeps="most"), "keeps values, direction, .*, got Silent with keeps='most'; choose"),
        (silent(sigma=-1.0), "at least 0 as the noise of a defence, got Silent with sigma=-1.0; 0"),
        (silent(sigma=float("nan")), "got Silent with sigma=nan"),
        (silent(sigma="none"), "got Silent with sigma='none'"),
        (silent(expected=None), r"expected expected\(\) of a defence that keeps 'signs', got Sil"),
        (silent(keeps="part"), r"expected survivors\(\) of a defence that keeps 'part', got Sil"),
    ],
)
def test_a_defence_that_does_not_say_what_it_leaves_is_refused(defense, message):
    with pytest.raises(ConfigError, match=message):
        check_defenses([Clip(1.0), defense])


def test_it_is_refused_before_an_update_is_made_and_in_one(model, batch):
    broken = silent(keeps="most")
    with pytest.raises(ConfigError, match="keeps='most'"):
        observe(model, batch, defenses=[broken])
    with pytest.raises(ConfigError, match="keeps='most'"):
        replace(observe(model, batch), defenses=(broken,))


def test_what_the_packages_own_say():
    check_defenses([Noise(0.1), Sparsify(0.5), Clip(1.0), Rounded(0.5), Laplace(0.1), Every(2.0)])
    for defenses, length, direction, signs, rounding in (
        ((), False, False, True, False),
        ((Clip(1.0),), True, False, True, False),
        ((Noise(0.0),), False, False, True, False),
        ((Noise(0.1),), False, True, True, False),
        ((Sparsify(0.5), Clip(1.0)), True, True, True, False),
        ((Rounded(0.5), Noise(0.1)), False, True, True, True),
        ((Noise(0.1), Rounded(0.5)), False, True, False, True),
        ((Laplace(0.1),), False, True, False, True),
    ):
        assert changes_length(defenses) == length
        assert changes_direction(defenses) == direction
        assert signs_hold(defenses) == signs
        assert rounds(defenses) == rounding
    assert noise_of([Noise(3.0), Clip(1.0), Noise(4.0)]) == pytest.approx(5.0)


def test_survivors(generator):
    gradient = {"a": torch.randn(20, generator=generator)}
    sent = Every(4.0).apply(gradient, None)
    places = torch.arange(20) % 4 == 0
    for later in ((), (Clip(0.1),), (Noise(0.1),), (Laplace(0.1),), (Clip(0.1), Noise(0.1))):
        covered = sent
        for defense in later:
            covered = defense.apply(covered, generator)
        mask = survivors_of((Every(4.0), *later), covered)
        assert mask is not None
        assert torch.equal(mask["a"], places)
    assert survivors_of((Noise(0.1), Clip(1.0), Rounded(0.5)), sent) is None


SPECS = {
    "tests.outside:Rounded:0.25": Rounded(0.25),
    "tests.outside:Laplace:1e-05": Laplace(1e-5),
    "tests.outside:ready": Rounded(0.5),
}


def test_a_defence_from_outside_has_a_spec(monkeypatch):
    monkeypatch.setattr("tests.outside.ready", Rounded(0.5), raising=False)
    for spec, value in SPECS.items():
        assert parse_defense(spec) == (value,)
        assert parse_defense(f"clip:1e+3 + {spec}+noise:0.1") == (Clip(1000.0), value, Noise(0.1))
        assert parse_defense(format_defenses(parse_defense(spec))) == (value,)
    assert spec_of(Rounded(0.25)) == "tests.outside:Rounded"
    assert spec_of(Rounded(0.25), 1e20, 3.0) == "tests.outside:Rounded:1e20,3"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tests.outside:Rounde:1", "expected defence 'Rounde' in tests.outside, got nothing of th"),
        ("tests.nowhere:Rounded:1", "expected defence 'tests.nowhere:Rounded:1' to name an impo"),
        ("tests.outside:Rounded", r"expected the numbers of tests.outside:Rounded in .*'step'"),
        ("tests.outside:Rounded:1,2", "expected the numbers of tests.outside:Rounded in .*, got"),
        ("tests.outside:Rounded:a", "expected a number after 'tests.outside:Rounded:', got 'a'"),
        ("os:abort", "declares keeps, sigma, spec, apply and scaled, got builtin_func"),
        ("os:abort:1", "expected os:abort without numbers, got '1' in 'os:abort:1'; it is a value"),
        ("subprocess:Popen", "a class that declares keeps, apply and scaled, got subprocess:Popen"),
    ],
)
def test_specs_that_name_no_defence(spec, message):
    with pytest.raises(ConfigError, match=message):
        parse_defense(spec)


def test_an_update_is_saved_with_a_defence_from_outside(model, batch):
    observation = observe(model, batch, defenses=[Clip(1.0), Rounded(0.01)])
    observation.save(Path("update.safetensors"))
    again = Observation.load(Path("update.safetensors"))
    assert again.defenses == (Clip(1.0), Rounded(0.01))
    assert again.as_one_gradient().defenses == again.defenses


class Misnamed(Rounded):
    @property
    def spec(self) -> str:
        return "tests.outside:Rounded:3.00"


def test_an_update_is_not_saved_with_a_defence_that_cannot_be_read_back(model, batch):
    with pytest.raises(ConfigError, match=r"whose specs name them, got '.*3\.00', which reads as"):
        observe(model, batch, defenses=[Misnamed(0.5)]).save(Path("update.safetensors"))
    assert not Path("update.safetensors").exists()


def test_nothing_in_an_update_from_elsewhere_is_called(model, batch):
    observe(model, batch).save(Path("update.safetensors"))
    tensors, header = load_tensors(Path("update.safetensors"), what="an update")
    save_tensors(Path("update.safetensors"), tensors, {**header, "defenses": "os:abort"})
    with pytest.raises(ObservationError, match="declares keeps, sigma, spec, apply and scaled"):
        Observation.load(Path("update.safetensors"))
