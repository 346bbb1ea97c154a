"""The seeds that every source of chance takes."""

from gradinv.errors import ConfigError

LARGEST = 2**63 - 1
"""PyTorch takes seeds of 64 bits; half of them leave room for seeds that are derived by adding."""


def require_seed(seed: int, name: str = "seed") -> None:
    """Checks a seed before work begins that ends where it is first used.

    Args:
        seed: any whole number.
        name: the setting or option, for the error.

    Raises:
        ConfigError: it is below 0 or above :data:`LARGEST`.
    """
    if seed < 0:
        raise ConfigError(f"expected {name} of at least 0, got {seed}; raise it")
    if seed > LARGEST:
        raise ConfigError(f"expected {name} of at most {LARGEST}, got {seed}; lower it")
