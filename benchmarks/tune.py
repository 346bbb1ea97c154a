"""Finds an attack's settings on training images: ``python -m benchmarks.tune NAME ...``.

Every attack gets the same: as many trials, the same batches from as many first weights of the
network, and the same time for each, whatever it spends it on (steps or restarts). The time is that
of ``--steps`` steps of one restart over pixels; how much longer a step of another search takes is
measured first, side by side, so that a busy machine changes nothing. The search is Optuna's
tree-structured Parzen estimator; a trial ends early where Wilcoxon's signed-rank test says that it
will not be the best. The settings that stand now are the first trial. Trials are kept in
``runs/tuning``, and a search that was stopped goes on from there.

Writes ``results/tuning-NAME.json``; the image set must not be one that figures are published on.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import torch
from rich.progress import Progress
from torch import nn

from benchmarks.equal_time import costs_of
from benchmarks.results import ROOT, command_line, write_results
from gradinv.attacks import Attack, invert, preset
from gradinv.attacks.settings.text import SCHEDULES
from gradinv.audit.plan import derive_seed
from gradinv.data import ClientBatch, ImageSet, load_images
from gradinv.evaluation.evaluate import evaluate
from gradinv.federated import FedSGD, Observation, observe, parse_defense
from gradinv.models import build_model
from gradinv.priors import Generator, load_generator

Choose = Callable[[optuna.Trial], dict[str, str]]
"""Draws the settings of a trial, as the command line writes them, but for the steps."""


def _schedule(trial: optuna.Trial) -> str:
    return trial.suggest_categorical("schedule", ["step", "cosine"])


def _log(trial: optuna.Trial, name: str, low: float, high: float) -> str:
    return f"{trial.suggest_float(name, low, high, log=True):.2g}"


def _pixels(trial: optuna.Trial) -> dict[str, str]:
    return {
        "lr": _log(trial, "lr", 0.05, 2.0),
        "tv": _log(trial, "tv", 3e-4, 3e-2),
        "schedule": _schedule(trial),
        "signed": trial.suggest_categorical("signed", ["yes", "no"]),
        "restarts": str(trial.suggest_categorical("restarts", [1, 2, 4])),
    }


def _latents(trial: optuna.Trial) -> dict[str, str]:
    return {
        "lr": _log(trial, "lr", 0.01, 0.5),
        "tv": _log(trial, "tv", 1e-5, 1e-2),
        "schedule": _schedule(trial),
        "restarts": str(trial.suggest_categorical("restarts", [2, 4, 8, 16])),
    }


def _weights(trial: optuna.Trial) -> dict[str, str]:
    return {
        "lr": _log(trial, "lr", 1e-4, 1e-2),
        "tv": _log(trial, "tv", 1e-4, 3e-2),
        "schedule": _schedule(trial),
        "restarts": str(trial.suggest_categorical("restarts", [1, 2])),
    }


def _denoised(trial: optuna.Trial) -> dict[str, str]:
    every = trial.suggest_categorical("every", [2, 5, 10])
    share = trial.suggest_float("share", 0.1, 0.6)
    first = trial.suggest_float("first", 0.0, 0.3)
    last = trial.suggest_float("last", 0.85, 0.99)
    return {
        "lr": _log(trial, "lr", 0.2, 1.0),
        "tv": _log(trial, "tv", 5e-4, 1e-2),
        "schedule": "cosine",
        "denoise": f"{every},{share:.2f},{first:.2f},{last:.3f}",
        "restarts": "1",
    }


def _then(low: float, high: float, trial: optuna.Trial) -> dict[str, str]:
    """Latents, then something with a learning rate between ``low`` and ``high``."""
    first = _log(trial, "lr", 0.01, 0.5), _log(trial, "tv", 1e-5, 1e-2)
    second = _log(trial, "lr2", low, high), _log(trial, "tv2", 1e-5, 3e-2)
    return {
        "lr": f"{first[0]},{second[0]}",
        "tv": f"{first[1]},{second[1]}",
        "schedule": _schedule(trial),
        "restarts": str(trial.suggest_categorical("restarts", [2, 4, 8])),
        "share": str(trial.suggest_categorical("share", [0.3, 0.5, 0.7])),
    }


CHOICES: dict[str, Choose] = {
    "gi-x": _pixels,
    "gi-x+flow": _denoised,
    "gi-z": _latents,
    "gi-w": _weights,
    "gi-z/x": partial(_then, 0.02, 1.0),
    "gi-z/w": partial(_then, 5e-5, 5e-3),
}
"""Attack -> what is searched."""


@dataclass(frozen=True, eq=False)
class Instance:
    """One update to attack.

    Attributes:
        number: among all, the same for every trial.
        batch: what the client held.
        model: with the first weights that it got.
        observation: what it sent.
    """

    number: int
    batch: ClientBatch
    model: nn.Module
    observation: Observation


@dataclass(frozen=True, eq=False)
class Lab:
    """Where the attacks are tried.

    Attributes:
        instances: the updates, in the order in which every trial meets them.
        prior: of the attacks that need one.
        budget: seconds of an attack, in steps of one restart over pixels.
        seed: of the attacks.
    """

    instances: Sequence[Instance]
    prior: Generator | None
    budget: int
    seed: int

    def score(self, attack: Attack, instance: Instance) -> float:
        """Returns the mean PSNR of a batch, decibels."""
        found = invert(
            instance.observation,
            instance.model,
            attack,
            prior=self.prior,
            seed=derive_seed(self.seed, "attack", instance.number),
        )
        return fmean(score.psnr for score in evaluate(found.images, instance.batch).images)

    def step_costs(self, attack: Attack) -> list[float]:
        """Returns what a step of each stage costs, in steps of one restart over pixels."""
        first = self.instances[0]
        return list(costs_of(attack, first.observation, first.model, self.prior).steps)


def instances_of(
    images: ImageSet, *, defense: str, options: argparse.Namespace
) -> Iterator[Instance]:
    """Yields the updates: every batch once with each of the networks' first weights in turn."""
    batches = list(
        images.batches(batch_size=options.batch_size, count=options.batches, seed=options.seed)
    )
    for number in range(options.batches * options.inits):
        batch = batches[number % options.batches]
        model = build_model(
            options.model,
            num_classes=images.num_classes,
            channels=images.image_shape[0],
            image_size=options.image_size,
            seed=options.seed + number // options.batches,
        ).train(options.mode == "train")
        source = torch.Generator().manual_seed(derive_seed(options.seed, "defense", number))
        observation = observe(
            model,
            batch,
            protocol=FedSGD(mode=options.mode),
            defenses=parse_defense(defense),
            generator=source,
        )
        yield Instance(number, batch, model, observation)


@dataclass(eq=False)
class Tuning:
    """The search for one attack's settings against one defence.

    Attributes:
        name: of the attack.
        lab: where it is tried.
        study: keeps the trials, and what a step costs, so that a search goes on as it began.
    """

    name: str
    lab: Lab
    study: optuna.Study

    def step_costs(self, settings: Mapping[str, str]) -> list[float]:
        """Returns what a step of each stage costs, in steps of one restart over pixels."""
        own = f"restarts={settings['restarts']}"
        if "denoise" in settings:
            own += f":denoise={settings['denoise'].split(',')[0]}"
        key = f"cost of a step, {own}"
        if key not in self.study.user_attrs:
            costs = self.lab.step_costs(preset(f"{self.name}:{own}"))
            self.study.set_user_attr(key, costs)
        return self.study.user_attrs[key]

    def spec(self, settings: Mapping[str, str]) -> str:
        """Returns a trial's settings with the steps that the time allows."""
        own = dict(settings)
        share = float(own.pop("share", 1.0))
        costs = self.step_costs(own)
        parts = [share, 1 - share][: len(costs)]
        steps = [
            max(1, round(self.lab.budget * part / cost))
            for part, cost in zip(parts, costs, strict=True)
        ]
        own["steps"] = ",".join(map(str, steps))
        return ":".join([self.name, *(f"{key}={value}" for key, value in own.items())])

    def trial(self, trial: optuna.Trial) -> float:
        """Runs one trial until it has met every update, or will not be the best."""
        spec = self.spec(CHOICES[self.name](trial))
        trial.set_user_attr("spec", spec)
        values: list[float] = []
        for instance in self.lab.instances:
            values.append(self.lab.score(preset(spec), instance))
            trial.set_user_attr("psnr", values)
            trial.report(values[-1], instance.number)
            if trial.should_prune():
                break
        return fmean(values)


def present(name: str) -> dict[str, Any]:
    """Returns the preset's own numbers as the parameters of a trial."""
    attack = preset(name)
    described = attack.describe()["stages"]
    suffixes = ["", "2"][: len(described)]
    (schedule,) = {word for word, own in SCHEDULES.items() if own == attack.stages[0].schedule}
    found: dict[str, Any] = {"schedule": schedule, "restarts": attack.restarts}
    for suffix, stage in zip(suffixes, described, strict=True):
        found[f"lr{suffix}"] = stage["optimizer"]["lr"]
        found[f"tv{suffix}"] = stage["regularizers"][0]["weight"]
    if name == "gi-x":
        found["signed"] = "yes" if described[0]["optimizer"]["signed"] else "no"
    if denoising := described[0]["denoising"]:
        found |= {key: denoising[key] for key in ("every", "share", "first", "last")}
    if len(described) > 1:
        found["share"] = 0.7
    return found


def tuned(
    name: str, lab: Lab, *, study_name: str, trials: int, seed: int, progress: Progress
) -> list[dict[str, Any]]:
    """Returns one row for each trial of an attack, the first of which is what stands now."""
    folder = ROOT / "runs" / "tuning"
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            study_name=study_name,
            storage=f"sqlite:///{folder / 'studies.db'}",
            load_if_exists=True,
            direction="maximize",
            sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True),
            pruner=optuna.pruners.WilcoxonPruner(p_threshold=0.1, n_startup_steps=3),
        )
    if not study.trials:
        study.enqueue_trial(present(name))
    tuning = Tuning(name, lab, study)
    task = progress.add_task(study_name, total=trials)
    ended = optuna.trial.TrialState.COMPLETE
    while (done := len(study.get_trials(deepcopy=False, states=(ended,)))) < trials:
        progress.update(task, completed=done)
        study.optimize(tuning.trial, n_trials=1)
    progress.update(task, completed=trials)
    return [
        {
            "attack": name,
            "trial": trial.number,
            "spec": trial.user_attrs["spec"],
            "psnr": trial.user_attrs["psnr"],
        }
        for trial in study.get_trials(states=(ended,))
    ]


def best_of(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Returns the trial of highest mean among those that met every update."""
    whole = max(len(row["psnr"]) for row in rows)
    return max((row for row in rows if len(row["psnr"]) == whole), key=lambda r: fmean(r["psnr"]))


def parser() -> argparse.ArgumentParser:
    """Returns what the command line takes."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("name", help="of the images and the network, for example faces-convnet")
    made.add_argument("--data", required=True, help="training images")
    made.add_argument("--prior", help="for the attacks that need one")
    made.add_argument("--model", default="convnet")
    made.add_argument("--mode", choices=["eval", "train"], default="eval")
    made.add_argument("--image-size", type=int, default=32)
    made.add_argument("--batch-size", type=int, default=4)
    made.add_argument("--defense", action="append", default=None)
    made.add_argument("--attack", action="append", choices=list(CHOICES), default=None)
    made.add_argument("--batches", type=int, default=6)
    made.add_argument("--inits", type=int, default=2)
    made.add_argument("--steps", type=int, default=600)
    made.add_argument("--trials", type=int, default=30)
    made.add_argument("--seed", type=int, default=7)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Searches every attack's settings and writes ``results/tuning-NAME.json``."""
    options = parser().parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    images = load_images(Path(options.data), image_size=options.image_size)
    prior = load_generator(Path(options.prior)) if options.prior else None
    attacks = options.attack or list(CHOICES)
    figures: dict[str, float] = {}
    rows: list[dict[str, Any]] = []
    best: dict[str, str] = {}
    with Progress() as progress:
        for defense in options.defense or ["none", "sparsify:0.95"]:
            updates = list(instances_of(images, defense=defense, options=options))
            lab = Lab(updates, prior, options.steps, options.seed)
            for name in attacks:
                study = f"{options.name} {options.mode} {defense} {name} {options.steps}"
                own = tuned(name, lab, study_name=study, trials=options.trials,
                            seed=options.seed, progress=progress)  # fmt: skip
                rows += [{"defense": defense, **row} for row in own]
                winner = best_of(own)
                best[f"{name} {defense}"] = winner["spec"]
                figures[f"psnr_mean {name} {defense} | before"] = fmean(own[0]["psnr"])
                figures[f"psnr_mean {name} {defense} | tuned"] = fmean(winner["psnr"])
    shown = {**vars(options), "data": "/".join(Path(options.data).parts[-2:]), "best": best}
    shown["prior"] = Path(options.prior).name if options.prior else None
    path = write_results(
        f"tuning-{options.name}",
        command=command_line("tune", arguments or sys.argv[1:]),
        settings=shown,
        figures=figures,
        rows=rows,
    )
    print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
