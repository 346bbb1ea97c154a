"""What is stored of an attack: numbers that JSON can hold, pixels as bytes."""

import torch

from gradinv.audit.rows import attack_row, finite, to_uint8
from tests.audit.world import rebuilt


def test_numbers_that_json_cannot_hold_are_null():
    row = attack_row(rebuilt(torch.zeros(2, 1, 4, 4)))
    assert row["objectives"] == [0.5, None]
    assert finite(torch.tensor(2.5)) == 2.5
    assert finite(float("nan")) is None


def test_pixels_are_rounded_and_bounded():
    images = torch.tensor([0.0, 0.5, 1.0, 1.2, -0.1, 100.4 / 255]).view(1, 1, 2, 3)
    assert to_uint8(images).flatten().tolist() == [0, 128, 255, 255, 0, 100]
