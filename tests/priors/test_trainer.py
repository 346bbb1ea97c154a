import torch
from torch import nn

from gradinv.priors.trainer import update_average


def test_the_average_moves_towards_the_present_weights():
    average, current = nn.Linear(2, 2), nn.Linear(2, 2)
    nn.init.zeros_(average.weight)
    nn.init.ones_(current.weight)
    update_average(average, current, decay=0.75, step=10**6)
    torch.testing.assert_close(average.weight.detach(), torch.full((2, 2), 0.25))


def test_a_young_average_forgets_faster():
    average, current = nn.Linear(2, 2), nn.Linear(2, 2)
    nn.init.zeros_(average.weight)
    nn.init.ones_(current.weight)
    update_average(average, current, decay=0.999, step=0)
    torch.testing.assert_close(average.weight.detach(), torch.full((2, 2), 0.9))


def test_counts_are_copied():
    average, current = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    current(torch.randn(4, 2))
    update_average(average, current, decay=0.9, step=10**6)
    assert average.num_batches_tracked == 1
    torch.testing.assert_close(
        average.running_mean, torch.as_tensor(current.running_mean) / 10, rtol=1e-4, atol=1e-6
    )
