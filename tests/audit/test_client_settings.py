"""The client's loss and optimiser among the settings of an audit."""

import pytest

from gradinv.audit.plan import AuditConfig
from gradinv.audit.protocol import local_training_note, protocol_of, settings_of
from gradinv.errors import ConfigError
from gradinv.federated import FedAvg, FedSGD, LocalOptimizer, Loss, Protocol, Reveal
from gradinv.report.view import _update


@pytest.mark.parametrize(
    "protocol",
    [
        FedSGD(),
        FedSGD(loss=Loss(smoothing=0.1, scale=0.5)),
        FedAvg(2, batch_size=4, optimizer=LocalOptimizer(momentum=0.9, weight_decay=5e-4)),
        FedAvg(2, batch_size=4, loss=Loss("bce"), optimizer=LocalOptimizer("adam")),
    ],
)
def test_to_settings_and_back(protocol: Protocol):
    config = AuditConfig.from_mapping(settings_of(protocol, Reveal()))
    assert protocol_of(config) == protocol
    assert protocol_of(AuditConfig.from_mapping(config.settings())) == protocol


def test_the_usual_ones_are_left_out_of_stored_settings():
    assert not {"loss", "optimizer"} & AuditConfig().settings().keys()
    assert AuditConfig(loss="bce").settings()["loss"] == "bce"


def test_an_optimizer_belongs_to_local_training():
    with pytest.raises(ConfigError, match="expected --protocol fedavg with --optimizer"):
        AuditConfig(optimizer="adam")


def test_the_note_names_what_the_client_did():
    protocol = FedAvg(2, loss=Loss(smoothing=0.1), optimizer=LocalOptimizer("adam"))
    note = local_training_note(protocol, Reveal(), 4)
    assert "2 steps of adam (" in note
    assert "learning rate 0.01, loss cross-entropy:smoothing=0.1)." in note
    assert "of SGD (" in local_training_note(FedAvg(2), Reveal(), 4)


def test_the_report_names_them_too():
    assert _update({"protocol": "fedsgd", "loss": "bce"}) == "FedSGD, loss bce"
    assert _update({"protocol": "fedsgd"}) == "FedSGD"
