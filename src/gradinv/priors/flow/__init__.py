"""A denoiser as prior: flow matching (Lipman et al. 2023) with a small U-Net."""

from gradinv.priors.flow.prior import FlowPrior
from gradinv.priors.flow.training import FlowConfig, FlowTrainer

__all__ = ["FlowConfig", "FlowPrior", "FlowTrainer"]
