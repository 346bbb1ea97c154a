"""Protocols and threat models are values; meaningless ones are refused."""

from typing import Any

import pytest

from gradinv.errors import ConfigError
from gradinv.federated.protocol import FedSGD, Reveal


def test_values():
    assert FedSGD() == FedSGD(mode="eval") != FedSGD(mode="train")
    assert Reveal() == Reveal(labels=True, bn_statistics="none", clients=1)
    assert len({FedSGD(), FedSGD("eval"), Reveal(), Reveal(clients=2)}) == 3


@pytest.mark.usefixtures("without_type_checks")
def test_unknown_values():
    unknown: Any = "test"
    with pytest.raises(ConfigError, match="expected mode 'eval' or 'train', got 'test'; choose"):
        FedSGD(mode=unknown)
    with pytest.raises(
        ConfigError, match="bn_statistics among none, running, exact, got 'test'; choose one"
    ):
        Reveal(bn_statistics=unknown)


def test_nobody():
    with pytest.raises(ConfigError, match="expected at least 1 client, got 0; give the number"):
        Reveal(clients=0)
