from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import pytest
import torch

from gradinv.attacks.search.regularizers import TotalVariation
from gradinv.engine import PlainDoubleBackward
from gradinv.engine.distances import Cosine
from gradinv.metalearning import costs as module
from gradinv.metalearning.costs import LocalCosts, PooledCosts, Problem


@pytest.fixture
def problem(tasks):
    return Problem(tasks, tv=0.1)


@pytest.fixture
def trials(generator):
    return torch.rand(3, 2, 1, 32, 32, generator=generator)


def test_each_task_is_matched_with_its_own_update_and_network(problem, trials):
    chosen = [0, 4, 2]
    found = LocalCosts(problem).evaluate(chosen, list(trials))
    for number, images, each in zip(chosen, trials, found, strict=True):
        task = problem.tasks.tasks[number]
        model = problem.tasks.networks[task.network].build()
        oracle = PlainDoubleBackward(
            model, task.observation(model), distance=Cosine(), regularizers=(TotalVariation(0.1),)
        ).evaluate(images[None])
        assert torch.allclose(each.cost, oracle.cost, atol=1e-5)
        assert torch.allclose(each.gradient, oracle.gradient, atol=1e-6)


def test_engines_are_kept_as_long_as_they_fit(problem, trials, monkeypatch):
    costs = LocalCosts(problem)
    first = costs.engine(0)
    costs.engine(1)
    assert costs.engine(0) is first
    monkeypatch.setattr(module, "_MEMORY", 1)
    costs.engine(2)
    assert costs.engine(0) is not first


@pytest.mark.parametrize("kind", ["threads", pytest.param("processes", marks=pytest.mark.slow)])
def test_an_executor_computes_the_same(kind, problem, trials):
    here = LocalCosts(problem).evaluate([0, 4, 2], list(trials))
    pool = (
        ThreadPoolExecutor(1)
        if kind == "threads"
        else ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    )
    with pool:
        there = PooledCosts(problem, pool).evaluate([0, 4, 2], list(trials))
    for own, other in zip(here, there, strict=True):
        assert torch.equal(own.cost, other.cost)
        assert torch.equal(own.gradient, other.gradient)
