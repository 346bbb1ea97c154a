"""The server's side: what an update gives away."""

from gradinv.attacks.analytic import AnalyticAttack
from gradinv.attacks.attack import Attack, Stage
from gradinv.attacks.evidence.labels import LabelMethod, RecoveredLabels, recover_labels
from gradinv.attacks.inversion import invert
from gradinv.attacks.presets import PRESETS, preset
from gradinv.attacks.recursion.ranks import rank_analysis
from gradinv.attacks.result import Checkpoint, Outcome, Progress, Reconstruction, StageResult
from gradinv.attacks.search.evolution import CMA
from gradinv.attacks.search.lbfgs import LBFGS
from gradinv.attacks.search.optimizers import Adam

__all__ = [
    "CMA",
    "LBFGS",
    "PRESETS",
    "Adam",
    "AnalyticAttack",
    "Attack",
    "Checkpoint",
    "LabelMethod",
    "Outcome",
    "Progress",
    "Reconstruction",
    "RecoveredLabels",
    "Stage",
    "StageResult",
    "invert",
    "preset",
    "rank_analysis",
    "recover_labels",
]
