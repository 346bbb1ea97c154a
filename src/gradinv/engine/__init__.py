"""The matching cost and its gradient with respect to the images, for any number of restarts.

Everything that searches goes through this one interface: a space turns its point into images, the
engine returns dc/dx, and one vector-Jacobian product takes dc/dx back to z or w. How it is computed
can so be exchanged.
"""

from gradinv.engine.base import Engine, Evaluated, Problem, pixel_units
from gradinv.engine.exact import ExactROperator
from gradinv.engine.factory import WAYS, engine_for, plain_reason
from gradinv.engine.plain import PlainDoubleBackward
from gradinv.engine.simulated import SimulatedTraining
from gradinv.engine.together import evaluate_together
from gradinv.engine.tracing import kinks

__all__ = [
    "WAYS",
    "Engine",
    "Evaluated",
    "ExactROperator",
    "PlainDoubleBackward",
    "Problem",
    "SimulatedTraining",
    "engine_for",
    "evaluate_together",
    "kinks",
    "pixel_units",
    "plain_reason",
]
