import pytest
import torch

from gradinv.errors import ConfigError
from gradinv.seeds import LARGEST, require_seed


@pytest.mark.parametrize("seed", [0, 1, LARGEST])
def test_a_seed_that_every_generator_takes(seed):
    require_seed(seed)
    torch.Generator().manual_seed(seed + 1)  # what a second network is drawn from


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (-1, "expected --seed of at least 0, got -1; raise it"),
        (LARGEST + 1, f"expected --seed of at most {LARGEST}, got {LARGEST + 1}; lower it"),
        (99999999999999999999, f"expected --seed of at most {LARGEST}"),
    ],
)
def test_one_that_has_no_meaning(seed, message):
    with pytest.raises(ConfigError, match=message):
        require_seed(seed, "--seed")
