"""Clients' networks: own victims, foreign modules by ``package.module:factory``, batch norm."""

from gradinv.models.batchnorm import (
    BatchStatistics,
    batch_norm_layers,
    record_batch_statistics,
    require_mode,
    running_statistics,
)
from gradinv.models.convnet import ConvNet
from gradinv.models.factory import MODELS, build_model
from gradinv.models.leakynet import LeakyNet
from gradinv.models.normalize import Normalize, normalization_of
from gradinv.models.outside import normalized_outside
from gradinv.models.resnet import ResNet18
from gradinv.models.weights import fill_weights, fingerprint, load_weights, save_weights

__all__ = [
    "MODELS",
    "BatchStatistics",
    "ConvNet",
    "LeakyNet",
    "Normalize",
    "ResNet18",
    "batch_norm_layers",
    "build_model",
    "fill_weights",
    "fingerprint",
    "load_weights",
    "normalization_of",
    "normalized_outside",
    "record_batch_statistics",
    "require_mode",
    "running_statistics",
    "save_weights",
]
