"""The server's side: what an update gives away."""

from gradinv.attacks.attack import Adam, Attack, Stage
from gradinv.attacks.inversion import invert
from gradinv.attacks.presets import PRESETS, preset
from gradinv.attacks.result import Checkpoint, Outcome, Progress, Reconstruction, StageResult

__all__ = [
    "PRESETS",
    "Adam",
    "Attack",
    "Checkpoint",
    "Outcome",
    "Progress",
    "Reconstruction",
    "Stage",
    "StageResult",
    "invert",
    "preset",
]
