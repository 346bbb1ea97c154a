"""Where the logits are in what networks return."""

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from gradinv.errors import ModelError
from gradinv.models.outputs import logits_of

LOGITS, OTHER = torch.zeros(2, 3), torch.ones(2, 5)


class Outputs(NamedTuple):
    aux: torch.Tensor
    logits: torch.Tensor


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS, OTHER),
        [LOGITS],
        {"features": OTHER, "logits": LOGITS},
        {"out": LOGITS},
        SimpleNamespace(loss=None, logits=LOGITS),
        Outputs(OTHER, LOGITS),
    ],
)
def test_logits_are_found(output):
    assert logits_of(output) is LOGITS


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"a": LOGITS, "b": OTHER}, "expected a network that returns logits, .* a dict with a, b;"),
        ((), "got a tuple; return the logits"),
        (None, "got a NoneType"),
        (SimpleNamespace(logits=None), "got a SimpleNamespace"),
        (torch.zeros(2), r"expected logits of shape \(batch, class\), got shape \(2,\)"),
        (torch.zeros(2, 3, 4), r"got shape \(2, 3, 4\)"),
    ],
)
def test_what_has_none(output, message):
    with pytest.raises(ModelError, match=message):
        logits_of(output)
