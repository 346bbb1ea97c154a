"""A learning that cannot fit is refused before its first step."""

from dataclasses import replace
from pathlib import Path

import pytest

from gradinv.errors import ConfigError
from gradinv.metalearning import LearningConfig, learn_prior
from gradinv.room import GIB

CONFIG = LearningConfig(steps=1, tasks=2)


def test_a_learning_that_no_machine_can_hold(tasks, prior, monkeypatch):
    monkeypatch.setattr("gradinv.room.machine_bytes", lambda: 1000)
    with pytest.raises(
        ConfigError, match=r"expected a learning that fits into .* GiB; lower the updates of a step"
    ):
        learn_prior(tasks, prior, out=Path("a"), config=CONFIG)
    assert not Path("a").exists()


def test_the_images_of_a_step_count(tasks, prior, monkeypatch):
    """More tasks than there are updates are no more than these."""
    from gradinv.metalearning import footprint

    needed = []
    monkeypatch.setattr(footprint, "require_room", lambda size, *_, **__: needed.append(size))
    for number in (1, 2, 10**12):
        config = replace(CONFIG, tasks=number)
        footprint.require_learning_fits(tasks, prior, config, footprint.torch.device("cpu"))
    assert needed[0] < needed[1] < needed[2] < GIB
