"""Settings of a training that have no meaning."""

import pytest

from gradinv.errors import ConfigError
from gradinv.priors.gan import TrainingConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_channels": 0}, "expected base_channels of at least 1, got 0; raise it"),
        ({"latent_dim": -3}, "expected latent_dim of at least 1, got -3"),
        ({"batch_size": 0}, "expected batch_size of at least 1, got 0"),
        ({"lr": 0.0}, "expected lr above 0 and finite, got 0.0; choose another"),
        ({"lr": float("nan")}, "expected lr above 0 and finite, got nan"),
        ({"lr_discriminator": float("inf")}, "expected lr_discriminator above 0 and finite"),
        ({"ema": 1.0}, r"expected ema in \[0, 1\), got 1.0; try 0.999"),
        ({"ema": -0.1}, r"expected ema in \[0, 1\), got -0.1"),
        ({"r1": -1.0}, "expected r1 of at least 0 and finite, got -1.0; use 0 for none"),
        ({"r1": float("inf")}, "expected r1 of at least 0 and finite, got inf"),
        ({"reconstruction": -1.0}, "expected reconstruction of at least 0 and finite, got -1.0"),
        ({"reconstruction": float("nan")}, "reconstruction of at least 0 and finite, got nan"),
        ({"adversarial": -1.0}, "expected adversarial of at least 0 and finite, got -1.0"),
        ({"seed": -1}, "expected seed of at least 0, got -1"),
        ({"seed": 2**63}, "expected seed of at most"),
    ],
)
def test_a_setting_without_meaning_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**settings)


def test_what_leaves_a_part_out_is_allowed():
    TrainingConfig(r1=0.0, reconstruction=0.0, adversarial=0.0, ema=0.0)
