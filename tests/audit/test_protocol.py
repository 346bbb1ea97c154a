"""From settings to the client's protocol, and what a reader is told of it."""

import json
from pathlib import Path

import pytest
import torch

from gradinv.attacks.simulation import as_attacked
from gradinv.audit.cell import check_runnable, observe_planned
from gradinv.audit.plan import Cell, derive_seed
from gradinv.audit.protocol import local_training_note, protocol_of, reveal_of
from gradinv.audit.runner import run_audit
from gradinv.audit.setup import prepare
from gradinv.errors import ConfigError, ObservationError
from gradinv.federated import FedAvg, FedSGD, Reveal
from tests.audit.world import config

FEDAVG = {
    "protocol": "fedavg", "local_epochs": 2, "local_batch_size": 1, "local_lr": 0.3,
    "local_momentum": 0.5,
}  # fmt: skip


def test_every_setting_reaches_the_client():
    assert protocol_of(config(mode="train")) == FedSGD("train")
    found = protocol_of(config(mode="train", **FEDAVG))
    assert found == FedAvg(2, 1, lr=0.3, momentum=0.5, mode="train")
    assert protocol_of(config(protocol="fedavg")) == FedAvg(5, 2, lr=0.01)
    assert reveal_of(config(reveal_bn="exact")) == Reveal(bn_statistics="exact")
    assert reveal_of(config(**FEDAVG, reveal_order=True)) == Reveal(order=True)


def test_an_audit_sees_local_training_in_an_order_that_the_server_does_not_guess():
    setup = prepare(config(**FEDAVG))
    observation = observe_planned(setup, Cell("gi-x", "none", 0))
    assert observation.protocol == setup.protocol
    assert observation.order is None
    revealed = prepare(config(**FEDAVG, reveal_order=True, batch_size=6))
    order = observe_planned(revealed, Cell("gi-x", "none", 0)).order
    hidden = prepare(config(**FEDAVG, batch_size=6))
    guesses = torch.Generator().manual_seed(derive_seed(0, "attack", 0))
    sent = observe_planned(hidden, Cell("gi-x", "none", 0))
    assert as_attacked(sent, "simulate", guesses).order != order


def test_the_identity_follows_the_protocol():
    first = prepare(config(**FEDAVG)).identity()
    for name, value in {"local_epochs": 3, "local_lr": 0.2, "reveal_order": True}.items():
        other = prepare(config(**(FEDAVG | {name: value}))).identity()
        assert other["settings"] != first["settings"]


def test_the_same_folder_with_another_protocol_is_refused():
    run_audit(config(batches=1), Path("run"))
    with pytest.raises(
        ConfigError, match="got --protocol fedavg instead of fedsgd; --local-epochs"
    ):
        run_audit(config(batches=1, **FEDAVG), Path("run"))


def test_an_audit_simulates_beside_the_approximation():
    attacks = ("gi-x", "gi-x:fedavg=approximate")
    audit = run_audit(config(**FEDAVG, attack=attacks, batches=1), Path("run"))
    assert [cell["attack"] for cell in audit["cells"]] == list(attacks)
    assert audit["cells"][0]["objective"] != audit["cells"][1]["objective"]
    assert audit["config"]["local_batch_size"] == 1
    assert audit["config"]["attacks"]["gi-x"]["fedavg"] == "simulate"
    assert any("4 steps of SGD" in note for note in audit["notes"])
    assert json.loads(Path("run/audit.json").read_text())["config"]["protocol"] == "fedavg"


def test_local_training_that_diverges_is_found_before_any_attack():
    diverging = config(protocol="fedavg", local_epochs=2, local_lr=1e39)
    with pytest.raises(ObservationError, match="lower the local learning rate"):
        check_runnable(prepare(diverging))


def test_what_a_reader_is_told():
    assert local_training_note(FedAvg(2, 3, lr=0.1, momentum=0.9), Reveal(), 8) == (
        "Each client trained before it sent the change of its weights: 6 steps of SGD (2 epochs "
        "over 8 images in mini-batches of 3, learning rate 0.1, momentum 0.9). The server knows "
        "these settings, not which images made which step."
    )
    assert local_training_note(FedAvg(1, None), Reveal(), 1) == (
        "Each client trained before it sent the change of its weights: 1 step of SGD (1 epoch "
        "over 1 image in mini-batches of 1, learning rate 0.01, momentum 0). The server knows "
        "these settings."
    )
    known = local_training_note(FedAvg(2, 3), Reveal(order=True), 8)
    assert known.endswith("these settings and which images made which step.")
    notes = " ".join(prepare(config(**FEDAVG)).notes())
    assert "4 steps of SGD (2 epochs over 2 images in mini-batches of 1" in notes
    assert "SGD" not in " ".join(prepare(config()).notes())
