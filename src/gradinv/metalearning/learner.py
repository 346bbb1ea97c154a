"""One outer step of GIML: tasks are drawn, fitted together, and the prior moves towards the fit.

Jeon et al. 2021, Algorithm 2, as Reptile (Nichol et al. 2018) solves it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradinv.attacks.search.regularizers import LatentNorm
from gradinv.engine import Evaluated
from gradinv.errors import ConfigError, PriorError
from gradinv.metalearning.costs import TaskCosts
from gradinv.metalearning.memory import Memory
from gradinv.metalearning.tasks import TaskSet
from gradinv.priors.whitened import Whitened
from gradinv.seeds import require_seed
from gradinv.state import load_optimizer_tensors, optimizer_tensors, take_prefix, with_prefix

_ABOVE_ZERO = ("tasks", "steps", "lr_latents", "lr_weights", "rate", "lr_outer")


@dataclass(frozen=True)
class LearningConfig:
    """How a prior is learned; everything that changes the result.

    Attributes:
        steps: outer steps. The paper: 200.
        tasks: N, the tasks of one outer step. The paper: 4.
        latent_steps: steps on the latents of those tasks before the weights move. The paper:
            1,000.
        weight_steps: steps on the one copy of the weights that the tasks share. The code: 500.
        joint: let the latents move during the weights' steps too (*ours*).
        remember: start from the latents that the last visit to a task left, with their Adam moments
            (*ours*); from fresh z ~ N(0, I) otherwise, as the paper does.
        keep_moments: keep the moments of the weights' Adam from one outer step to the next
            (*ours*); a fresh Adam at every step otherwise.
        lr_latents: Adam's step size on the latents. The paper: 3e-2.
        lr_weights: Adam's step size on the weights. The code: 1e-3.
        decay: let both fall to a tenth over the last third of the outer steps (*ours*).
        latent_norm: weight of the Euclidean norm of each task's latents, all its images' as one
            vector, unsquared and summed over the tasks. The paper: 1e-3.
        tv: weight of total variation.
        outer: ``reptile`` moves w to w + rate (w' - w); ``adam`` feeds that direction to Adam, as
            the released code does, which moves every weight by about ``lr_outer`` however little
            the tasks moved it.
        rate: epsilon of ``reptile``.
        lr_outer: of ``adam``. The code: 1e-2.
        seed: of the order of the tasks, the latents, and the weights of an untrained start.

    Raises:
        ConfigError: a value that has no meaning.
    """

    steps: int = 2000
    tasks: int = 8
    latent_steps: int = 0
    weight_steps: int = 2
    joint: bool = True
    remember: bool = True
    keep_moments: bool = True
    lr_latents: float = 0.2
    lr_weights: float = 1e-3
    decay: bool = True
    latent_norm: float = 1e-3
    tv: float = 1e-3
    outer: Literal["reptile", "adam"] = "reptile"
    rate: float = 1.0
    lr_outer: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        require_seed(self.seed)
        for name in _ABOVE_ZERO:
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ConfigError(f"expected {name} above 0 and finite, got {value}; raise it")
        if self.latent_steps < 0 or self.weight_steps < 1:
            raise ConfigError(
                "expected at least 1 step on the weights and none below 0 on the latents, got "
                f"{self.weight_steps} and {self.latent_steps}; raise them"
            )
        if self.latent_steps == 0 and not self.joint:
            raise ConfigError(
                "expected steps on the latents, got none before those on the weights and none "
                "together with them; set latent_steps, or let them move together (joint)"
            )


PAPER: dict[str, Any] = {
    "steps": 200, "tasks": 4, "latent_steps": 1000, "weight_steps": 500, "joint": False,
    "remember": False, "keep_moments": False, "lr_latents": 3e-2, "lr_weights": 1e-3,
    "decay": False, "latent_norm": 1e-3, "tv": 1e-4,
}  # fmt: skip
"""What Jeon et al. 2021 and their code set; their client has no other defence than its batch."""


@dataclass(frozen=True)
class StepResult:
    """What one outer step did.

    Attributes:
        cost: mean matching cost of its tasks at its last evaluation.
        skipped: evaluations of a task that were not finite and moved nothing.
    """

    cost: float
    skipped: int


class Outer:
    """Moves w towards the adapted w' (Jeon et al. 2021, Algorithm 2; Nichol et al. 2018).

    Args:
        weights: w, moved in place.
        config: how.
    """

    def __init__(self, weights: Sequence[nn.Parameter], config: LearningConfig) -> None:
        self.weights = list(weights)
        self.rate = config.rate
        adam = config.outer == "adam"
        self.adam = torch.optim.Adam(self.weights, lr=config.lr_outer) if adam else None

    @torch.no_grad()
    def step(self, adapted: Sequence[Tensor]) -> None:
        """Moves w by epsilon (w' - w), or lets Adam take w - w' for a gradient."""
        if self.adam is None:
            for weight, target in zip(self.weights, adapted, strict=True):
                weight.lerp_(target, self.rate)
            return
        for weight, target in zip(self.weights, adapted, strict=True):
            weight.grad = weight - target
        self.adam.step()
        self.adam.zero_grad()

    def tensors(self) -> dict[str, Tensor]:
        """Returns the moments of Adam, where it is used."""
        return {} if self.adam is None else optimizer_tensors(self.adam)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts back what :meth:`tensors` returned."""
        if self.adam is not None:
            load_optimizer_tensors(self.adam, tensors)


class Learner:
    """State of the learning between outer steps, and the step.

    Args:
        prior: where it starts; moved in place.
        tasks: what it learns from.
        costs: where their costs are computed.
        config: how.
    """

    def __init__(
        self, prior: Whitened, tasks: TaskSet, costs: TaskCosts, config: LearningConfig
    ) -> None:
        self.prior = prior.eval().requires_grad_(True)
        self.tasks = tasks
        self.costs = costs
        self.config = config
        self.weights = list(prior.parameters())
        self.source = torch.Generator().manual_seed(config.seed)
        self.memory = Memory(tasks, prior, self.source)
        self.inner = torch.optim.Adam(self.weights, lr=config.lr_weights)
        self.outer = Outer(self.weights, config)
        self.penalty = LatentNorm(config.latent_norm)
        self.order: list[int] = []
        self.count = 0

    def step(self) -> StepResult:
        """Takes one outer step.

        Raises:
            PriorError: a weight, or the cost of every task, is no longer finite.
        """
        config = self.config
        chosen = self._draw()
        factor = self._factor()
        before = [weight.detach().clone() for weight in self.weights]
        z, adam = self._latents(chosen, config.lr_latents * factor)
        if not config.keep_moments:
            self.inner = torch.optim.Adam(self.weights, lr=config.lr_weights)
        self.inner.param_groups[0]["lr"] = config.lr_weights * factor
        values: list[float] = []
        skipped = 0
        for number in range(config.latent_steps + config.weight_steps):
            weights_move = number >= config.latent_steps
            latents_move = not weights_move or config.joint
            values, lost = self._fit(chosen, z, weights=weights_move, latents=latents_move)
            skipped += lost
            if latents_move:
                adam.step()
            if weights_move:
                self.inner.step()
        self.memory.keep(chosen, z, adam)
        adapted = [weight.detach().clone() for weight in self.weights]
        with torch.no_grad():
            for weight, start in zip(self.weights, before, strict=True):
                weight.copy_(start)
        self.outer.step(adapted)
        self.count += 1
        if not values or not all(torch.isfinite(weight).all() for weight in self.weights):
            raise PriorError(
                f"expected costs and weights that stay finite, got NaN or infinity at outer step "
                f"{self.count}; lower the step sizes"
            )
        return StepResult(sum(values) / len(values), skipped)

    def _draw(self) -> list[int]:
        """Returns the next N tasks; all come once before any comes again."""
        everything = len(self.tasks.tasks)
        wanted = min(self.config.tasks, everything)
        if len(self.order) < wanted:
            waiting = set(self.order)
            shuffled = torch.randperm(everything, generator=self.source).tolist()
            # No task twice in one step: those still waiting come last in the new order.
            self.order += sorted(shuffled, key=lambda task: task in waiting)
        chosen, self.order = self.order[:wanted], self.order[wanted:]
        return chosen

    def _factor(self) -> float:
        """Returns the factor on the inner step sizes: 1, then down to 0.1 on the last third."""
        if not self.config.decay:
            return 1.0
        progress = self.count / self.config.steps
        return 10 ** -max(0.0, 3 * progress - 2)

    def _latents(self, chosen: list[int], lr: float) -> tuple[list[nn.Parameter], torch.optim.Adam]:
        if self.config.remember:
            return self.memory.recall(chosen, lr)
        sizes = [self.tasks.tasks[task].batch_size for task in chosen]
        drawn = self.prior.sample_latents(sum(sizes), self.source)
        z = [nn.Parameter(part.clone()) for part in drawn.split(sizes)]
        return z, torch.optim.Adam(z, lr=lr)

    def _fit(
        self, chosen: list[int], z: list[nn.Parameter], *, weights: bool, latents: bool
    ) -> tuple[list[float], int]:
        """Sets the gradients of the sum over the tasks of cost and latent term.

        Returns:
            The matching costs that are finite, and how many are not; those move nothing.
        """
        with torch.enable_grad():
            images = self.prior(torch.cat(list(z)))
            penalty = torch.stack([self.penalty(own) for own in z]).sum()
        trials = images.detach().split([len(own) for own in z])
        evaluated = self.costs.evaluate(chosen, trials)
        directions = [_direction(each).to(images) for each in evaluated]
        searched = [*(z if latents else []), *(self.weights if weights else [])]
        gradients = torch.autograd.grad(
            [images, penalty],
            searched,
            [torch.cat(directions), torch.ones_like(penalty)],
            allow_unused=True,
            materialize_grads=True,
        )
        for parameter, gradient in zip(searched, gradients, strict=True):
            parameter.grad = gradient
        values = torch.cat([each.matching for each in evaluated])
        return values[values.isfinite()].tolist(), int((~values.isfinite()).sum())

    def tensors(self) -> dict[str, Tensor]:
        """Returns a copy of everything that the next step depends on."""
        named = {
            **with_prefix("prior", self.prior.state_dict()),
            **with_prefix("inner", optimizer_tensors(self.inner)),
            **with_prefix("outer", self.outer.tensors()),
            **with_prefix("memory", self.memory.tensors()),
            "source": self.source.get_state(),
            "order": torch.tensor(self.order, dtype=torch.long),
            "count": torch.tensor(self.count),
        }
        return {name: value.detach().clone() for name, value in named.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts back what :meth:`tensors` returned."""
        self.prior.load_state_dict(take_prefix("prior", tensors))
        load_optimizer_tensors(self.inner, take_prefix("inner", tensors))
        self.outer.load(take_prefix("outer", tensors))
        self.memory.load(take_prefix("memory", tensors))
        self.source.set_state(tensors["source"])
        self.order = tensors["order"].tolist()
        self.count = int(tensors["count"])


def _direction(evaluated: Evaluated) -> Tensor:
    """Returns dc/dx of one task's images, zero where the cost or the gradient is not finite."""
    (gradient,) = evaluated.gradient
    fine = evaluated.cost.isfinite().all() and gradient.isfinite().all()
    return gradient if fine else torch.zeros_like(gradient)
