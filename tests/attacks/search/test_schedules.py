import pytest
import torch

from gradinv.attacks.search.schedules import Constant, CosineDecay, StepDecay


def test_step_decay_drops_where_the_papers_code_does():
    total = 8000
    schedule = StepDecay()
    for divisor, power in ((2.667, 1), (1.6, 2), (1.142, 3)):
        step = total // divisor
        assert schedule.factor((step + 12) / total) == pytest.approx(0.1**power)
        assert schedule.factor((step - 12) / total) == pytest.approx(0.1 ** (power - 1))


def test_step_decay_is_the_scheduler_that_the_papers_code_uses():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[30, 50, 70], gamma=0.1)
    for step in range(80):
        assert StepDecay().factor(step / 80) == pytest.approx(theirs.get_last_lr()[0]), step
        optimizer.step()
        theirs.step()


def test_cosine_decay_warms_up_and_ends_at_nothing():
    schedule = CosineDecay(warmup=0.1)
    assert schedule.factor(0.0) == 0
    assert schedule.factor(0.05) == pytest.approx(0.5)
    assert schedule.factor(0.1) == pytest.approx(1)
    assert schedule.factor(0.55) == pytest.approx(0.5)
    assert schedule.factor(1.0) == pytest.approx(0, abs=1e-12)


def test_constant_is_constant():
    assert Constant().factor(0.0) == Constant().factor(0.99) == 1
