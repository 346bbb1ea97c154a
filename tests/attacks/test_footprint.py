"""What an attack holds at least: all its restarts, its local steps and its processes."""

import math
import time

import pytest
import torch

from gradinv.attacks import Progress, invert, preset
from gradinv.attacks.footprint import attack_bytes, require_attack_fits
from gradinv.errors import ConfigError, ObservationError
from gradinv.federated import FedAvg
from gradinv.models.footprint import outputs_bytes, required_bytes, weights_bytes
from gradinv.room import GIB
from tests.attacks.tiny import tiny_batch, tiny_observation, tiny_prior, tiny_victim

SHAPE = (3, 1, 8, 8)
PIXELS = math.prod(SHAPE)


def needed(name: str, restarts: int, **settings) -> int:
    attack = preset(name).with_restarts(restarts)
    own = {"classes": 4, "prior": tiny_prior(), **settings}
    return attack_bytes(attack, tiny_victim(), SHAPE, **own)


def more(name: str, restarts: int = 2) -> int:
    """Returns what one more restart takes beside its network passes."""
    passes = weights_bytes(tiny_victim()) + outputs_bytes(tiny_victim(), SHAPE)
    return needed(name, restarts + 1) - needed(name, restarts) - passes


def test_one_restart_of_pixels():
    # The point, its gradient and two moments; the pictures and dc/dx.
    assert needed("gi-x", 1) == required_bytes(tiny_victim(), SHAPE) + 4 * 6 * PIXELS


@pytest.mark.parametrize(
    ("name", "each"),
    [
        ("gi-x", 4 * 6 * PIXELS),
        # Soft labels beside the pixels; a history of 50 pairs.
        ("dlg", 4 * (2 * PIXELS + 105 * (PIXELS + 3 * 4))),
        ("gi-z", 4 * (2 * PIXELS + 4 * 3 * 6) + 3 * outputs_bytes(tiny_prior(), (1, 6))),
        # No graph is kept; two matrices over all latents in float64.
        ("ggl", 4 * 2 * PIXELS + 16 * (3 * 6) ** 2),
    ],
)
def test_every_restart_is_counted(name, each):
    assert more(name) == each


def test_weights_of_a_generator_are_copied_for_every_image():
    assert more("gi-w") >= 4 * 3 * weights_bytes(tiny_prior())
    # The second stage keeps few of them.
    assert more("gi-z/w", 1000) == more("gi-z")


def test_an_attack_whose_stages_follow_from_the_update():
    assert needed("standard", 2) > required_bytes(tiny_victim(), SHAPE)
    assert needed("r-gap", 1) == required_bytes(tiny_victim(), SHAPE) + 4 * 2 * PIXELS


def test_local_steps_that_are_simulated_are_all_held():
    protocol = FedAvg(local_epochs=5, batch_size=2)  # 10 steps on 3 images
    step = weights_bytes(tiny_victim()) + outputs_bytes(tiny_victim(), (2, *SHAPE[1:]))
    one = needed("gi-x", 1)
    assert needed("gi-x", 1, protocol=protocol) == one + 9 * step
    assert needed("gi-x:fedavg=approximate", 1, protocol=protocol) == one


def test_a_checkpoint_holds_no_more_than_was_counted():
    """The point and its two moments; a gradient, the pictures and dc/dx come to them."""
    held: list[int] = []

    def count(progress: Progress) -> None:
        tensors = progress.checkpoint().tensors.values()
        held.append(sum(value.nbytes for value in tensors if value.numel() == 7 * PIXELS))

    observation = tiny_observation(tiny_victim(), tiny_batch(batch=3))
    attack = preset("gi-x:steps=1").with_restarts(7)
    invert(observation, tiny_victim(), attack, callback=count)
    assert held == [7 * 4 * 3 * PIXELS]
    assert more("gi-x") == 2 * held[0] // 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"expected an attack with gi-x that fits .* GiB; lower --restarts, --batch-size or"),
        ({"workers": 3}, r"expected an audit by 3 processes that fits .* lower --workers, --res"),
        ({"protocol": FedAvg()}, r"an attack with gi-x that .* lower --local-epochs, --restarts"),
    ],
)
def test_what_cannot_fit_is_refused_at_once(settings, message):
    attack = preset("gi-x").with_restarts(10**12)
    started = time.monotonic()
    with pytest.raises(ConfigError, match=message):
        require_attack_fits(attack, tiny_victim(), SHAPE, classes=4, prior=None, **settings)
    assert time.monotonic() - started < 2


def test_processes_share_the_memory(monkeypatch):
    monkeypatch.setattr("gradinv.room.machine_bytes", lambda: GIB // 2)
    attack = preset("gi-x").with_restarts(10_000)
    arguments = (attack, tiny_victim(), SHAPE)
    require_attack_fits(*arguments, classes=4, prior=None)
    with pytest.raises(ObservationError, match=r"an audit by 9 processes .* lower --workers, less"):
        require_attack_fits(
            *arguments, classes=4, prior=None, workers=9, lower="less", error=ObservationError
        )


def test_a_network_of_many_gib_is_not_copied_to_be_measured():
    """Weights on the meta device stand for them: a copy in memory would raise there."""
    with torch.device("meta"):
        model = tiny_victim()
    assert outputs_bytes(model, SHAPE) == outputs_bytes(tiny_victim(), SHAPE)
