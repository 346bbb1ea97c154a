"""Starts that cannot lie in memory side by side are refused before they take any."""

import pytest

from gradinv import room
from gradinv.attacks import invert, preset
from gradinv.errors import AttackError
from tests.attacks.tiny import tiny_batch, tiny_observation, tiny_prior, tiny_victim

MANY = 10**12


@pytest.mark.parametrize(
    "spec", [f"gi-x:restarts={MANY}", f"gi-z:restarts={MANY}", f"gi-w:restarts={MANY}"]
)
def test_too_many_starts_are_refused(spec):
    model = tiny_victim()
    name = spec.split(":")[0]
    with pytest.raises(
        AttackError, match=rf"expected a search by {name} that fits into .* lower restarts or"
    ):
        invert(tiny_observation(model, tiny_batch()), model, preset(spec), prior=tiny_prior())


def test_weights_of_a_generator_take_more_than_its_latents(monkeypatch):
    """What one image of the second stage takes, with the weights that are its own."""
    model, prior = tiny_victim(), tiny_prior()
    observation = tiny_observation(model, tiny_batch())
    sizes = []

    def seen(needed, *_, **__):
        sizes.append(needed)

    monkeypatch.setattr("gradinv.attacks.footprint.require_room", seen)
    for name in ("gi-z", "gi-w", "gi-z/w"):
        invert(observation, model, preset(f"{name}:restarts=1:steps=1"), prior=prior)
    z, w, both = sizes
    assert z < w == both
    assert w > 4 * 4 * observation.batch_size * sum(p.numel() for p in prior.parameters())


def test_as_many_as_there_is_room_for_are_not_refused(monkeypatch):
    model = tiny_victim()
    observation = tiny_observation(model, tiny_batch())
    image = 4 * observation.batch_size * 8 * 8
    monkeypatch.setattr(room, "machine_bytes", lambda: 2 * 6 * image)
    invert(observation, model, preset("gi-x:restarts=2:steps=1"))
    with pytest.raises(AttackError, match="expected a search by gi-x that fits"):
        invert(observation, model, preset("gi-x:restarts=3:steps=1"))
