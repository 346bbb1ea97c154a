"""The searching attacks' section of the methods' figures."""

import pytest

from benchmarks import methods_search
from benchmarks.methods_search import CASES, figures, measure
from gradinv.attacks import PRESETS


def test_figures_are_means_and_least_values_by_attack_and_network():
    rows = [
        {"attack": "dlg", "model": "lenet", "psnr": 40.0},
        {"attack": "dlg", "model": "lenet", "psnr": 30.0},
        {"attack": "gi-x:tv=0.001", "model": "convnet", "psnr": 27.0},
    ]
    assert figures(rows) == {
        "psnr_mean dlg lenet": 35.0,
        "psnr_least dlg lenet": 30.0,
        "psnr_mean gi-x convnet": 27.0,
        "psnr_least gi-x convnet": 27.0,
    }


def test_every_case_is_an_audit_of_single_images(monkeypatch, tmp_path):
    seen = []

    def audited(config, folder, *, monitor):
        seen.append((config, folder))
        images = [{"original": 0, "psnr": 31.0, "ssim": 0.9, "mse": 1e-3}]
        cell = {"defense": "none", "batch": 0, "objective": 0.1, "steps": 5, "seconds": 1.0}
        return {"cells": [{**cell, "attack": name, "images": images} for name in config.attack]}

    monkeypatch.setattr(methods_search, "run_audit", audited)
    rows, values = measure(tmp_path, batches=2, seed=7)
    assert [(c.model, c.attack, c.batch_size, c.batches, c.seed) for c, _ in seen] == [
        (case.model, case.attacks, 1, 2, 7) for case in CASES
    ]
    assert len({folder for _, folder in seen}) == len(CASES)
    assert {row["attack"].partition(":")[0] for row in rows} <= set(PRESETS)
    assert all(row["section"] == "search" for row in rows)
    assert values["psnr_mean dlg lenet"] == pytest.approx(31.0)
