"""The search for settings: what a trial is, and that every attack gets the same."""

import argparse

import optuna
import pytest

from benchmarks.tune import CHOICES, Lab, Tuning, best_of, instances_of, main, present
from gradinv.attacks import preset
from gradinv.data import load_images
from gradinv.errors import GradinvError


def options(**changes) -> argparse.Namespace:
    given = {
        "model": "convnet", "mode": "eval", "image_size": 32, "batch_size": 2, "batches": 2,
        "inits": 2, "seed": 7, **changes,
    }  # fmt: skip
    return argparse.Namespace(**given)


@pytest.fixture(scope="module")
def lab() -> Lab:
    updates = list(
        instances_of(load_images(None, image_size=32), defense="none", options=options())
    )
    return Lab(updates, None, 100, 7)


@pytest.mark.parametrize("name", CHOICES)
def test_the_first_trial_is_what_stands(name):
    study = optuna.create_study()
    study.enqueue_trial(present(name))
    settings = CHOICES[name](study.ask())
    settings.pop("share", None)
    own = preset(":".join([name, *(f"{key}={value}" for key, value in settings.items())]))
    assert own.stages == preset(name).stages
    assert own.restarts == preset(name).restarts


def test_every_batch_is_met_with_every_network(lab):
    first, second, third, fourth = lab.instances
    assert first.batch is third.batch
    assert second.batch is fourth.batch
    assert first.observation.model["fingerprint"] == second.observation.model["fingerprint"]
    assert first.observation.model["fingerprint"] != third.observation.model["fingerprint"]


def test_restarts_are_paid_for_in_steps(lab):
    study = optuna.create_study()
    study.set_user_attr("cost of a step, restarts=1", [0.5])
    study.set_user_attr("cost of a step, restarts=4", [2.0])
    tuning = Tuning("gi-x", lab, study)
    assert tuning.spec({"lr": "0.1", "restarts": "1"}) == "gi-x:lr=0.1:restarts=1:steps=200"
    assert tuning.spec({"lr": "0.1", "restarts": "4"}) == "gi-x:lr=0.1:restarts=4:steps=50"
    both = optuna.create_study()
    both.set_user_attr("cost of a step, restarts=2", [2.0, 1.0])
    spec = Tuning("gi-z/w", lab, both).spec({"restarts": "2", "share": "0.3"})
    assert spec == "gi-z/w:restarts=2:steps=15,70"


def test_the_cost_of_a_step_is_measured_for_every_stage(lab):
    (one,) = lab.step_costs(preset("gi-x"))
    (four,) = lab.step_costs(preset("gi-x:restarts=4"))
    assert 0 < one < four


def test_a_trial_that_ended_early_is_not_the_best():
    rows = [{"psnr": [20.0, 21.0]}, {"psnr": [99.0]}, {"psnr": [21.0, 21.0]}]
    assert best_of(rows) is rows[2]


def test_a_search_without_its_images_says_so(tmp_path):
    with pytest.raises(GradinvError, match="nowhere"):
        main(["try", "--data", str(tmp_path / "nowhere")])
