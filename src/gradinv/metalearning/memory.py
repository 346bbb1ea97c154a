"""What a learner remembers of every image that it has tried to explain."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradinv.metalearning.tasks import TaskSet
from gradinv.priors.generator import Generator


class Memory:
    """The latents of every image of every task, with the moments of their Adam.

    Args:
        tasks: whose they are.
        prior: draws them.
        source: of the draws.
    """

    def __init__(self, tasks: TaskSet, prior: Generator, source: torch.Generator) -> None:
        self.tasks = tasks
        self.latents = prior.sample_latents(tasks.images, source)
        self.moments = torch.zeros(2, *self.latents.shape).to(self.latents)
        self.counts = torch.zeros(len(tasks.tasks))
        self.starts = tasks.offsets()

    def _rows(self, task: int) -> slice:
        start = self.starts[task]
        return slice(start, start + self.tasks.tasks[task].batch_size)

    def recall(
        self, chosen: Sequence[int], lr: float
    ) -> tuple[list[nn.Parameter], torch.optim.Adam]:
        """Returns the latents of some tasks and the Adam that moves them, as they were left."""
        z = [nn.Parameter(self.latents[self._rows(task)].clone()) for task in chosen]
        adam = torch.optim.Adam(z, lr=lr)
        adam.load_state_dict({
            "state": {
                index: {
                    "step": self.counts[task].clone(),
                    "exp_avg": self.moments[0, self._rows(task)].clone(),
                    "exp_avg_sq": self.moments[1, self._rows(task)].clone(),
                }
                for index, task in enumerate(chosen)
            },
            "param_groups": adam.state_dict()["param_groups"],
        })  # fmt: skip
        return z, adam

    @torch.no_grad()
    def keep(self, chosen: Sequence[int], z: Sequence[Tensor], adam: torch.optim.Adam) -> None:
        """Takes note of where the latents of some tasks were left."""
        for task, own in zip(chosen, z, strict=True):
            rows, state = self._rows(task), adam.state[own]
            self.latents[rows] = own
            self.moments[0, rows], self.moments[1, rows] = state["exp_avg"], state["exp_avg_sq"]
            self.counts[task] = state["step"].cpu()

    def visited(self) -> Float[Tensor, "n *latent"]:
        """Returns the latents of the images whose task was visited."""
        rows = [self.latents[self._rows(task)] for task in self.counts.nonzero().flatten().tolist()]
        return torch.cat(rows) if rows else self.latents[:0]

    def tensors(self) -> dict[str, Tensor]:
        """Returns everything in it."""
        return {"latents": self.latents, "moments": self.moments, "counts": self.counts}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts back what :meth:`tensors` returned."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])
