"""Learning a prior from a folder of updates: resumable, with a usable prior at every checkpoint."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradinv.environment import revision, versions
from gradinv.errors import ConfigError, PriorError
from gradinv.files import load_tensors, save_tensors, write_json
from gradinv.metalearning.costs import Executor, LocalCosts, PooledCosts, Problem
from gradinv.metalearning.footprint import require_learning_fits
from gradinv.metalearning.learner import Learner, LearningConfig, StepResult
from gradinv.metalearning.tasks import TaskSet
from gradinv.models.weights import fingerprint
from gradinv.priors.generator import Generator, load_card, require_no_prior, save_generator
from gradinv.priors.samples import save_sample_grid
from gradinv.priors.whitened import Whitened

CHECKPOINT = Path("learning") / "checkpoint.safetensors"
LOG = Path("learning") / "log.json"
SNAPSHOTS = Path("snapshots")


@dataclass(frozen=True)
class LearningProgress:
    """Handed to the callback after every outer step.

    Attributes:
        step: outer steps done, over all sessions.
        steps: in all.
        seconds: spent learning, over all sessions.
        left: seconds left at the pace of this session.
        cost: mean matching cost of this step's tasks.
    """

    step: int
    steps: int
    seconds: float
    left: float
    cost: float


def learn_prior(
    tasks: TaskSet,
    start: Generator,
    *,
    out: Path,
    config: LearningConfig,
    device: torch.device | None = None,
    executor: Executor | None = None,
    start_name: str = "untrained",
    command: str = "",
    snapshot_every: int = 0,
    checkpoint_seconds: float = 60.0,
    callback: Callable[[LearningProgress], None] | None = None,
) -> Generator:
    """Learns a prior from updates alone and saves it; continues where an earlier call stopped.

    ``out`` holds a usable prior from the first checkpoint on. An interrupted run ends at the same
    weights as one that was not.

    Args:
        tasks: the updates.
        start: where w starts, such as an untrained generator; it is not changed.
        out: the prior's folder.
        config: how to learn; must be the same when continuing.
        device: where to compute; the CPU by default.
        executor: computes the tasks of a step side by side; this process alone by default.
        start_name: of the start, for the card.
        command: for the card.
        snapshot_every: outer steps between priors that are kept in ``snapshots/STEP``; none by
            default.
        checkpoint_seconds: time between checkpoints.
        callback: called after every outer step. An exception that it raises ends the learning with
            a checkpoint; so does one in the middle of a step, which is then taken again.

    Returns:
        The prior, in eval mode: standard normal latents stand for those that were found.

    Raises:
        ConfigError: other settings, updates or another start than those in ``out``, or a prior
            there that was not learned; or what cannot fit into memory.
        PriorError: the start makes images of another shape than the updates'.
    """
    if tuple(start.image_shape) != tuple(tasks.image_shape):
        raise PriorError(
            f"expected a start that makes images {tuple(tasks.image_shape)} as behind the updates, "
            f"got {tuple(start.image_shape)}; start from an untrained one, or another prior"
        )
    device = device or torch.device("cpu")
    require_learning_fits(tasks, start, config, device)
    problem = Problem(tasks, config.tv, str(device))
    costs = LocalCosts(problem) if executor is None else PooledCosts(problem, executor)
    learner = Learner(Whitened.of(start).to(device), tasks, costs, config)
    session = _Session(
        learner, Path(out), identity=_identity(tasks, start, config),
        card={**_card(tasks, config), "start": start_name, "command": command},
    )  # fmt: skip
    session.resume()
    if session.finished():
        return session.fitted()
    begun, first = time.perf_counter(), learner.count
    last = begun
    while learner.count < config.steps:
        result = session.step()
        now = time.perf_counter()
        if snapshot_every and learner.count % snapshot_every == 0:
            session.snapshot()
        if now - last > checkpoint_seconds:
            session.save()
            last = time.perf_counter()
        if callback is not None:
            pace = (now - begun) / (learner.count - first)
            left = pace * (config.steps - learner.count)
            try:
                callback(
                    LearningProgress(
                        learner.count, config.steps, session.seconds, left, result.cost
                    )
                )
            except BaseException:
                session.save()
                raise
    return session.finish()


class _Session:
    """One call's work on the folder of a prior that is being learned."""

    def __init__(
        self, learner: Learner, out: Path, *, identity: dict[str, Any], card: dict[str, Any]
    ) -> None:
        self.learner = learner
        self.out = out
        self.identity = identity
        self.card = card
        self.seconds = 0.0
        self.log: list[dict[str, float]] = []
        self.boundary: dict[str, Tensor] = {}

    def resume(self) -> None:
        """Goes to where the folder's checkpoint is, if there is one."""
        if (self.out / CHECKPOINT).is_file():
            tensors, header = load_tensors(self.out / CHECKPOINT, what="a learning checkpoint")
            theirs = header.get("identity", {})
            differing = [name for name, own in self.identity.items() if theirs.get(name) != own]
            if differing:
                raise ConfigError(
                    f"expected the learning that {self.out} began with, got another "
                    f"{', '.join(differing)}; use the same settings and updates, or another --out"
                )
            self.learner.load(tensors)
            self.seconds, self.log = header["seconds"], header["log"]
        else:
            require_no_prior(self.out, CHECKPOINT)
        self.boundary = self.learner.tensors()

    def step(self) -> StepResult:
        """Takes one outer step; an exception in the middle of it leaves the state before it."""
        started = time.perf_counter()
        try:
            result = self.learner.step()
        except BaseException:
            self.learner.load(self.boundary)
            self.save()
            raise
        self.boundary = self.learner.tensors()
        self.seconds += time.perf_counter() - started
        self.log.append({
            "step": self.learner.count, "seconds": round(self.seconds, 2), "cost": result.cost,
            "skipped": result.skipped,
        })  # fmt: skip
        return result

    def fitted(self) -> Generator:
        """Returns what was learned so far, standard normal latents standing for those found."""
        latents = self.learner.memory.visited()
        prior = self.learner.prior
        fitted = prior.fitted(latents) if len(latents) > 1 else Whitened.of(prior)
        return fitted.eval().requires_grad_(False)

    def save(self, *, state: str = "unfinished") -> Generator:
        """Writes the checkpoint, the log, and the prior as it stands."""
        header = {
            "kind": "learning", "schema": 1, "identity": self.identity, "seconds": self.seconds,
            "log": self.log,
        }  # fmt: skip
        save_tensors(self.out / CHECKPOINT, self.boundary, header)
        write_json(self.out / LOG, self.log)
        prior = self.fitted()
        save_generator(prior, self.out, self._described(state))
        save_sample_grid(prior, self.out / "samples.png")
        return prior

    def snapshot(self) -> None:
        """Keeps the prior of this step beside those of others."""
        folder = self.out / SNAPSHOTS / f"{self.learner.count:06d}"
        prior = self.fitted()
        save_generator(prior, folder, self._described("snapshot"))
        save_sample_grid(prior, folder / "samples.png")

    def finished(self) -> bool:
        """Returns whether an earlier call finished; its card then stays as it is."""
        at_end = self.learner.count == self.learner.config.steps
        return at_end and load_card(self.out).get("state") == "finished"

    def finish(self) -> Generator:
        """Writes everything, with a card that says that the learning is finished."""
        return self.save(state="finished")

    def _described(self, state: str) -> dict[str, Any]:
        return {
            "state": state,
            **self.card,
            "steps": self.learner.count,
            "seconds": round(self.seconds, 1),
            "skipped": int(sum(entry["skipped"] for entry in self.log)),
        }


def _card(tasks: TaskSet, config: LearningConfig) -> dict[str, Any]:
    """Returns what a prior's card says about where it comes from."""
    return {
        "learned_from": "gradients",
        "updates": {
            "folder": tasks.name,
            "updates": len(tasks.tasks),
            "networks": len(tasks.networks),
            "images": tasks.images,
            "left_out": len(tasks.broken),
            "digest": tasks.digest,
        },
        "config": asdict(config),
        "revision": revision(),
        "versions": versions(),
    }


def _identity(tasks: TaskSet, start: Generator, config: LearningConfig) -> dict[str, str]:
    settings = json.dumps(asdict(config), sort_keys=True)
    return {
        "settings": hashlib.sha256(settings.encode()).hexdigest()[:16],
        "updates": tasks.digest,
        "start": fingerprint(start),
    }
