"""The one loop that steps attacks: stages over search spaces, restarts, checkpoints.

Methods differ only in the :class:`~gradinv.attacks.attack.Attack` that they hand in.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from gradinv.attacks.attack import Attack, Stage
from gradinv.attacks.evidence.labels import searched_labels
from gradinv.attacks.evidence.penultimate import Clues
from gradinv.attacks.identity import run_identity
from gradinv.attacks.recursion.peeling import Peeled
from gradinv.attacks.result import Checkpoint, Outcome, Progress, Reconstruction, StageResult
from gradinv.attacks.search.chance import dropout_from, dropping, require_steady, source_of
from gradinv.attacks.search.consensus import in_one_order
from gradinv.attacks.search.cost import StageCost
from gradinv.attacks.search.lbfgs import LBFGS
from gradinv.attacks.search.spaces import PixelSpace, Solution
from gradinv.attacks.simulation import as_attacked
from gradinv.attacks.stages import engines_of, scene_of
from gradinv.errors import AttackError
from gradinv.federated.observation import Observation
from gradinv.priors.generator import Generator
from gradinv.state import take_prefix, with_prefix

Callback = Callable[[Progress], None]

_KEPT = {"identity", "results", "start", "stage_seconds", "seconds", "dropped"}
"""What the header of a checkpoint holds."""


class Search:
    """State of one attack between its steps."""

    def __init__(
        self,
        observation: Observation,
        model: nn.Module,
        attack: Attack,
        *,
        prior: Generator | None,
        seed: int,
        seconds: float | None,
        peeled: Peeled | None = None,
    ) -> None:
        weight = next(model.parameters())
        attacked = as_attacked(observation, attack.fedavg, torch.Generator().manual_seed(seed))
        self.observation = attacked.to(weight.device, weight.dtype)
        self.attack = attack
        self.seconds = seconds
        self.seed, self.drops = seed, bool(dropping(model))
        if any(isinstance(stage.optimizer, LBFGS) for stage in attack.stages):
            require_steady(model, attack.name)
        clues = Clues.of(self.observation, model) if attack.needs_features else None
        self.scene = scene_of(self.observation, model, attack, prior, clues)
        self.peeled = peeled
        self.engines = engines_of(self.observation, model, attack, self.scene, clues, peeled)
        self.source = torch.Generator().manual_seed(seed)
        self.identity = run_identity(observation, attack, seed, self.scene.prior)
        self.previous: Solution | None = None
        self.results: list[StageResult] = []
        self.objectives: list[Tensor] = []
        self.dropped = False
        self._open_stage()

    @property
    def done(self) -> bool:
        """Whether every stage has ended."""
        return len(self.results) == len(self.attack.stages)

    @property
    def stage(self) -> Stage:
        """The present stage."""
        return self.attack.stages[len(self.results)]

    def _open_stage(self) -> None:
        self.source_at_open = self.source.get_state()
        self.space = self.stage.space.open(
            self.scene, self.previous, self.attack.restarts, self.source
        )
        self.stepper = self.stage.optimizer.open(self.space, self.source)
        restarts = self.space.solution().images.shape[0]
        self.alive = torch.ones(restarts, dtype=torch.bool)
        self.costs: list[Tensor] = []
        self.start: float | None = None
        self.stage_seconds = 0.0

    def _share(self) -> float | None:
        """Returns the seconds that the present stage may take."""
        if self.seconds is None:
            return None
        return self.seconds * self.attack.stage_work[len(self.results)] / self.attack.total_work

    def _progress(self) -> float:
        share = self._share()
        if share is not None:
            return self.stage_seconds / share
        return len(self.costs) / self.stage.steps

    def run_stage(self, callback: Callback | None) -> None:
        """Runs the present stage to its end and opens the next one."""
        while (progress := self._progress()) < 1:
            started = time.perf_counter()
            self._step(progress)
            self.stage_seconds += time.perf_counter() - started
            if callback is not None:
                callback(self._report())
        self._close_stage()

    def _cost(self, progress: float) -> StageCost:
        engine = self.engines[len(self.results)]
        return StageCost(self.space, engine, self.stage.regularizers, self.scene, progress)

    def _step(self, progress: float) -> None:
        """Moves every restart once; one that was ever not finite is out of the choice."""
        if self.start is None:
            # What pictures of no search would match: the verdict asks whether it fell from there.
            solution = self.space.solution()
            matching = self._cost(0.0).matching(solution.images, solution.labels)
            self.start = float(matching.min())
        place = (self.seed, len(self.results), len(self.costs))
        self._denoise(place, progress)
        with dropout_from(place, self.scene.mean.device) if self.drops else nullcontext():
            value = self.stepper.step(self._cost(progress), self.stage.schedule.factor(progress))
        value = value.cpu()
        self.space.project()
        self.costs.append(value)
        self.alive &= torch.isfinite(value)

    def _denoise(self, place: tuple[int, int, int], progress: float) -> None:
        """Lets the stage's denoiser move the pictures, where it is its turn."""
        denoising, (_, _, step) = self.stage.denoising, place
        if denoising is not None and denoising.due(step):
            assert isinstance(self.space, PixelSpace)  # a stage checks it
            pictures = self.space.solution().images
            source = source_of(place)
            self.space.move_to(
                denoising(pictures, self.scene.denoiser(), progress=progress, source=source)
            )

    def _close_stage(self) -> None:
        """Scores the end point itself, keeps the best restarts and opens the next stage."""
        started = time.perf_counter()
        solution = self.space.solution()
        objective = self._cost(1.0).matching(solution.images, solution.labels).cpu()
        objective[~self.alive] = torch.inf
        order = objective.argsort(stable=True)
        self.dropped |= not bool(self.alive.all())
        keep = order[: self.stage.keep]
        shown, matching = self._shown(solution, objective)
        self.stage_seconds += time.perf_counter() - started
        self.results.append(
            StageResult(
                name=self.stage.space.name,
                images=shown,
                objective=matching,
                start=self.start,
                cost=torch.stack(self.costs),
                steps=len(self.costs),
                seconds=self.stage_seconds,
            )
        )
        self.objectives.append(objective)
        self.previous = solution.select(keep.to(solution.images.device))
        if not self.done:
            self._open_stage()

    def _shown(self, solution: Solution, objective: Tensor) -> tuple[Tensor, float]:
        """Returns the pictures of the best restart, or the mean of those that match about as well.

        The mean of restarts that disagree about more than what the prior made up matches nothing,
        so it must match well itself; if it does not, the restart that matches worst is left out.
        The second value is the matching cost of the pictures.
        """
        order = objective.argsort(stable=True)
        best = int(order[0])
        shown, cost = solution.images[best], float(objective[best])
        averaged, labels = self.attack.averaged, self.observation.labels
        if averaged is not None and labels is not None:
            # A cosine distance can be rounded to a little below zero; the best is always near.
            near = order[objective[order] <= max(averaged * cost, cost)]
            images = in_one_order(solution.images[near.to(shown.device)], shown, labels)
            for count in range(len(near), 1, -1):
                mean = images[:count].mean(dim=0)
                own = float(self._cost(1.0).matching(mean[None], None))
                # Half way between the best restart and the worst that may take part.
                if own <= (1 + averaged) / 2 * cost:
                    return torch.nan_to_num(mean).clamp(0, 1), own
        return torch.nan_to_num(shown).clamp(0, 1), cost

    def reconstruction(self) -> Reconstruction:
        """Returns the restart with the least matching cost of the last, or of the best stage."""
        kept = len(self.results) - 1
        if self.attack.best_stage:
            kept = int(torch.stack([values.min() for values in self.objectives]).argmin())
        objective = self.objectives[kept]
        best = int(objective.argmin())
        if not torch.isfinite(objective).any():
            outcome = Outcome.NON_FINITE
        elif self.seconds is not None:
            outcome = Outcome.TIME_LIMIT
        else:
            outcome = Outcome.SOME_NON_FINITE if self.dropped else Outcome.COMPLETED
        assert self.previous is not None
        labels, recovered = self.observation.labels, None
        if self.previous.labels is not None:
            # The restarts were put in the order of their matching cost: the first is the best.
            soft = self.previous.labels[0]
            recovered = searched_labels(soft) if labels is None else None
            labels = soft.argmax(dim=1)
        assert labels is not None
        closed = () if self.peeled is None else (self.peeled.stage(),)
        return Reconstruction(
            images=self.results[kept].images,
            labels=labels,
            objective=objective,
            matching=self.results[kept].objective,
            best=best,
            kept=kept if self.attack.best_stage else None,
            stages=(*closed, *self.results),
            outcome=outcome,
            seconds=sum(result.seconds for result in (*closed, *self.results)),
            recovered=recovered,
        )

    def _report(self) -> Progress:
        stages = self.attack.stages
        total = self.attack.total_steps
        *before, own = self.attack.stage_work[: len(self.results) + 1]
        within = min(1.0, self._progress())
        return Progress(
            stage=len(self.results),
            stage_name=self.stage.space.name,
            stages=len(stages),
            step=sum(result.steps for result in self.results) + len(self.costs),
            steps=total,
            cost=self.costs[-1],
            seconds=sum(result.seconds for result in self.results) + self.stage_seconds,
            fraction=(sum(before) + within * own) / self.attack.total_work,
            checkpoint=self.checkpoint,
        )

    def checkpoint(self) -> Checkpoint:
        """Returns everything that the rest of the attack depends on."""
        tensors = {
            **with_prefix("space", dict(self.space.named_parameters())),
            **with_prefix("optimizer", self.stepper.tensors()),
            "costs": torch.stack(self.costs),
            "alive": self.alive,
            "source": self.source.get_state(),
            "source_at_open": self.source_at_open,
        }
        if self.previous is not None:
            tensors |= with_prefix("previous", self.previous.tensors())
        for index, result in enumerate(self.results):
            tensors[f"result/{index}/images"] = result.images
            tensors[f"result/{index}/cost"] = result.cost
            tensors[f"result/{index}/objective"] = self.objectives[index]
        header = {
            "identity": self.identity,
            "results": [
                {
                    "name": result.name,
                    "steps": result.steps,
                    "seconds": result.seconds,
                    "objective": result.objective,
                    "start": result.start,
                }
                for result in self.results
            ],
            "start": self.start,
            "stage_seconds": self.stage_seconds,
            "seconds": self.seconds,
            "dropped": self.dropped,
        }
        return Checkpoint({name: value.detach().clone() for name, value in tensors.items()}, header)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Puts the search back to where the checkpoint was taken.

        Raises:
            AttackError: the checkpoint is of another attack, update, seed or time limit, or of a
                version that did not keep all that is needed.
        """
        tensors, header = checkpoint.tensors, checkpoint.header
        if missing := _KEPT - header.keys():
            raise AttackError(
                f"expected a checkpoint with {', '.join(sorted(missing))}, got one of an older "
                "version without; start anew without it"
            )
        differing = [
            name for name, value in self.identity.items() if header["identity"].get(name) != value
        ]
        differing += ["seconds"] if header["seconds"] != self.seconds else []
        if differing:
            raise AttackError(
                f"expected a checkpoint of this run, got one of another {', '.join(differing)}; "
                "resume with the same settings, or start anew without the checkpoint"
            )
        self.results = [
            StageResult(
                images=tensors[f"result/{index}/images"].to(self.scene.mean),
                cost=tensors[f"result/{index}/cost"],
                **result,
            )
            for index, result in enumerate(header["results"])
        ]
        self.objectives = [
            tensors[f"result/{index}/objective"] for index in range(len(self.results))
        ]
        previous = take_prefix("previous", tensors)
        device = self.scene.mean.device
        if previous:
            self.previous = Solution.from_tensors(
                {name: value.to(device) for name, value in previous.items()}
            )
        # Opening draws from the source, so it must start from where it was when first opened.
        self.source.set_state(tensors["source_at_open"])
        self._open_stage()
        self.source.set_state(tensors["source"])
        with torch.no_grad():
            for name, parameter in self.space.named_parameters():
                parameter.copy_(tensors[f"space/{name}"])
        self.stepper.load(take_prefix("optimizer", tensors))
        # Copies: a step writes to what it holds, and the checkpoint may be resumed from again.
        self.costs = [cost.clone() for cost in tensors["costs"]]
        self.alive = tensors["alive"].clone()
        self.start = header["start"]
        self.stage_seconds = header["stage_seconds"]
        self.dropped = header["dropped"]
