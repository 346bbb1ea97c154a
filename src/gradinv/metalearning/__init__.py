"""GIML: a prior learned from updates alone (Jeon et al. 2021, section 3.3)."""

from gradinv.metalearning.learner import PAPER, LearningConfig
from gradinv.metalearning.learning import LearningProgress, learn_prior
from gradinv.metalearning.tasks import TaskSet, open_tasks

__all__ = ["PAPER", "LearningConfig", "LearningProgress", "TaskSet", "learn_prior", "open_tasks"]
