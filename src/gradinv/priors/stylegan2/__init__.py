"""StyleGAN2 (Karras et al. 2020): generator, discriminator, training and layered latents.

Own code in plain PyTorch, without compiled extensions; differentiable any number of times.
"""

from gradinv.priors.stylegan2.generator import StyleGAN2
from gradinv.priors.stylegan2.training import StyleGAN2Config, StyleGAN2Trainer

__all__ = ["StyleGAN2", "StyleGAN2Config", "StyleGAN2Trainer"]
