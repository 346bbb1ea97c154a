"""FedAvg's section of the methods' figures."""

import pytest

from benchmarks import methods_fedavg
from benchmarks.methods_fedavg import APPROXIMATED, CASES, SIMULATED, measure
from gradinv.models import build_model


def test_the_gain_is_the_difference_of_the_two_ways(monkeypatch, tmp_path):
    seen = []

    def audited(config, folder, *, monitor):
        seen.append(config)
        psnr = {SIMULATED: 20.0, APPROXIMATED: 15.5}
        cell = {"defense": "none", "batch": 0, "objective": 0.1, "steps": 5, "seconds": 1.0}
        return {
            "cells": [
                cell
                | {"attack": name}
                | {"images": [{"original": 0, "psnr": psnr[name], "ssim": 0.9, "mse": 1e-3}]}
                for name in config.attack
            ]
        }

    monkeypatch.setattr(methods_fedavg, "run_audit", audited)
    rows, figures = measure(batches=3, folder=tmp_path)
    assert [config.batches for config in seen] == [3] * len(CASES)
    assert {row["setting"] for row in rows} == set(CASES)
    pairs = [case for case, config in CASES.items() if len(config.attack) == 2]
    assert len(pairs) > 1
    for case in pairs:
        assert figures[f"fedavg gain_db {case}"] == pytest.approx(4.5)
    assert {config.mode for config in seen if config.protocol == "fedavg"} == {"eval", "train"}


def test_the_network_of_the_train_mode_can_be_named():
    (spec,) = {config.model for config in CASES.values()} - {"convnet"}
    net = build_model(spec, num_classes=10, channels=1, image_size=16, seed=0)
    assert sum(type(layer).__name__ == "BatchNorm2d" for layer in net.modules()) == 2
