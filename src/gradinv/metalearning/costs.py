"""The matching cost of many tasks side by side, behind one small interface.

A learner hands in images and gets cost and dc/dx back; where that is computed is no business of
its own. :class:`LocalCosts` computes them in this process, those of one network as one batch;
:class:`PooledCosts` hands these batches to any executor of the standard library's interface.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gradinv.attacks.search.regularizers import TotalVariation
from gradinv.engine import Engine, Evaluated, engine_for, evaluate_together
from gradinv.engine.distances import Cosine
from gradinv.metalearning.tasks import TaskSet

# Engines are kept for the next visit as long as their tensors are estimated to fit in this many
# bytes; making one costs about as much as two steps.
_MEMORY = 2 * 1024**3
# Tensors of the size of an update that an engine keeps: target, mask and the weights.
_COPIES = 3


@dataclass(frozen=True)
class Problem:
    """What the cost of a task consists of, beside its update.

    Attributes:
        tasks: the updates.
        tv: weight of total variation.
        device: where to compute.
    """

    tasks: TaskSet
    tv: float
    device: str = "cpu"

    @property
    def key(self) -> tuple[str, float, str]:
        """Tells one problem from another, for what a process keeps."""
        return self.tasks.digest, self.tv, self.device


@runtime_checkable
class TaskCosts(Protocol):
    """Cost and dc/dx of some tasks at trial images."""

    def evaluate(self, tasks: Sequence[int], images: Sequence[Tensor]) -> list[Evaluated]:
        """Returns cost, matching cost and dc/dx of each task.

        Args:
            tasks: their numbers in the set.
            images: (batch, channel, height, width) of each; the batch is the task's own.
        """
        ...


def groups(tasks: TaskSet, chosen: Sequence[int], images: Sequence[Tensor]) -> list[list[int]]:
    """Returns the places of those tasks that are computed as one batch.

    Who computes them has no part in it: the result is the same bit for bit with any executor.

    Args:
        tasks: the set.
        chosen: numbers in the set.
        images: (batch, channel, height, width) of each.
    """
    alike: dict[tuple[int, torch.Size], list[int]] = defaultdict(list)
    for place, (task, trial) in enumerate(zip(chosen, images, strict=True)):
        alike[tasks.tasks[task].network, trial.shape].append(place)
    return list(alike.values())


class LocalCosts:
    """Computes the tasks in this process, those of one network together.

    Args:
        problem: the tasks and the terms of their cost.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._networks: dict[int, nn.Module] = {}
        self._engines: OrderedDict[int, Engine] = OrderedDict()

    def evaluate(self, tasks: Sequence[int], images: Sequence[Tensor]) -> list[Evaluated]:
        """Returns cost, matching cost and dc/dx of each task."""
        found: dict[int, Evaluated] = {}
        for places in groups(self.problem.tasks, tasks, images):
            engines = [self.engine(tasks[place]) for place in places]
            together = evaluate_together(engines, torch.stack([images[p] for p in places]))
            found |= dict(zip(places, together, strict=True))
        return [found[place] for place in range(len(tasks))]

    def engine(self, number: int) -> Engine:
        """Returns a task's engine; those not used for the longest time are forgotten."""
        if number in self._engines:
            self._engines.move_to_end(number)
            return self._engines[number]
        task = self.problem.tasks.tasks[number]
        model = self._network(task.network)
        observation = task.observation(model).to(self.problem.device)
        engine = engine_for(
            model,
            observation,
            distance=Cosine(),
            regularizers=(TotalVariation(self.problem.tv),),
        )
        size = sum(value.nbytes for value in observation.gradient.values())
        while self._engines and (len(self._engines) + 1) * _COPIES * size > _MEMORY:
            self._engines.popitem(last=False)
        self._engines[number] = engine
        return engine

    def _network(self, number: int) -> nn.Module:
        if number not in self._networks:
            network = self.problem.tasks.networks[number].build()
            self._networks[number] = network.to(self.problem.device)
        return self._networks[number]


@runtime_checkable
class Executor(Protocol):
    """What is needed of a pool of processes; ``concurrent.futures.Executor`` has it."""

    def map(self, fn: Callable[..., Any], *iterables: Iterable[Any]) -> Iterable[Any]:
        """Returns the function's values at the iterables' elements, in their order."""
        ...


class PooledCosts:
    """Hands the tasks of each network to an executor; its processes keep what they need.

    Args:
        problem: the tasks and the terms of their cost.
        executor: starts and ends with whoever made it.
    """

    def __init__(self, problem: Problem, executor: Executor) -> None:
        self.problem = problem
        self.executor = executor

    def evaluate(self, tasks: Sequence[int], images: Sequence[Tensor]) -> list[Evaluated]:
        """Returns cost, matching cost and dc/dx of each task."""
        alike = groups(self.problem.tasks, tasks, images)
        found: dict[int, Evaluated] = {}
        results = self.executor.map(
            evaluate_group,
            [self.problem] * len(alike),
            [[tasks[place] for place in places] for places in alike],
            [torch.stack([images[place].detach().cpu() for place in places]) for places in alike],
        )
        for places, together in zip(alike, results, strict=True):
            found |= dict(zip(places, together, strict=True))
        return [found[place] for place in range(len(tasks))]


_KEPT: dict[tuple[str, float, str], LocalCosts] = {}


def evaluate_group(problem: Problem, tasks: Sequence[int], images: Tensor) -> list[Evaluated]:
    """Computes the costs of tasks of one network in whatever process this is, with one thread."""
    torch.set_num_threads(1)
    if problem.key not in _KEPT:
        _KEPT.clear()
        _KEPT[problem.key] = LocalCosts(problem)
    together = _KEPT[problem.key].evaluate(tasks, list(images.to(problem.device)))
    return [
        Evaluated(each.cost.cpu(), each.matching.cpu(), each.gradient.detach().cpu())
        for each in together
    ]
