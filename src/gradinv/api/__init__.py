"""What one calls from Python; :mod:`gradinv` itself has these names.

Functions here take what a caller holds, models and tensors, and write nothing unless asked to.
"""

from gradinv.api.auditing import AuditResult, DefenseVerdict, audit
from gradinv.api.priors import learn_prior, load_prior, train_prior, wrap_prior
from gradinv.api.updates import Found, invert, observe

__all__ = [
    "AuditResult",
    "DefenseVerdict",
    "Found",
    "audit",
    "invert",
    "learn_prior",
    "load_prior",
    "observe",
    "train_prior",
    "wrap_prior",
]
