"""How much of the clients' data can a curious server rebuild from federated-learning updates?

Five names tell the story: :func:`audit` a model and images, :func:`observe` one update and
:func:`invert` it, :func:`load_prior`, :func:`train_prior`, :func:`wrap_prior` or
:func:`learn_prior` for what the server knows beforehand. This audits data that its user holds.
"""

import importlib
import inspect
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gradinv.api import (
        AuditResult,
        Found,
        audit,
        invert,
        learn_prior,
        load_prior,
        observe,
        train_prior,
        wrap_prior,
    )
    from gradinv.attacks import Attack, Stage
    from gradinv.federated import FedAvg, FedSGD, Observation, Reveal, from_delta, from_state_dicts

# Where each public name lies: importing torch takes seconds, and `gradinv --help` needs none of it.
_PLACES = {
    "AuditResult": "gradinv.api",
    "Found": "gradinv.api",
    "invert": "gradinv.api",
    "learn_prior": "gradinv.api",
    "load_prior": "gradinv.api",
    "observe": "gradinv.api",
    "train_prior": "gradinv.api",
    "wrap_prior": "gradinv.api",
    "Attack": "gradinv.attacks",
    "Stage": "gradinv.attacks",
    "FedAvg": "gradinv.federated",
    "FedSGD": "gradinv.federated",
    "Observation": "gradinv.federated",
    "Reveal": "gradinv.federated",
    "from_delta": "gradinv.federated",
    "from_state_dicts": "gradinv.federated",
}

__all__ = [
    "Attack",
    "AuditResult",
    "FedAvg",
    "FedSGD",
    "Found",
    "Observation",
    "Reveal",
    "Stage",
    "audit",
    "from_delta",
    "from_state_dicts",
    "invert",
    "learn_prior",
    "load_prior",
    "observe",
    "train_prior",
    "wrap_prior",
]


class CallableModule(ModuleType):
    """The package :mod:`gradinv.audit`, which is called as the function of its name."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        """Audits; see :func:`gradinv.api.audit`."""
        return importlib.import_module("gradinv.api").audit(*arguments, **settings)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(importlib.import_module("gradinv.api").audit)


def __getattr__(name: str) -> Any:
    if name == "audit":
        return importlib.import_module("gradinv.audit")
    if name not in _PLACES:
        raise AttributeError(f"module 'gradinv' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
