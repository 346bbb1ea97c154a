"""Learns a prior from updates alone and compares it (Jeon et al. 2021, Fig. 6 and Appendix G).

``python -m benchmarks.publish_giml --train faces64/train --test faces64/test --wrong priors/tiny
--ceiling priors/faces`` simulates a federation on the training images, learns from its updates, and
attacks updates of the test images with what was learned (at several outer steps), with a prior of
other data, with an untrained generator, and with a prior that was trained on the real images.
Everything has the defence of the comparison, the updates that are learned from too. ``--also``
adds what remembering the latents saves, and the leakage over rounds. Writes ``results/giml.json``;
what was finished before is not computed again. Pictures stay in ``runs/``.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.giml_plan import (
    DEFENSE,
    SCALES,
    Scale,
    attacked,
    last_cost,
    learn,
    mean,
    quality_rows,
    snapshot,
)
from benchmarks.results import ROOT, write_results
from gradinv.cli import main as gradinv
from gradinv.errors import GradinvError
from gradinv.files import read_json
from gradinv.priors.generator import load_card, load_generator

Row = dict[str, Any]


def compare(
    options: argparse.Namespace, scale: Scale, runs: Path, learned: Path
) -> tuple[list[Row], dict[str, float]]:
    """Returns rows and figures of Fig. 6 and of the convergence speed."""
    whole = scale.steps_scale
    final = max(scale.snapshots)
    # Prior, outer step, attack and part of its steps; the most important come first.
    cases = [
        ("learned", final, snapshot(learned, final), scale.attack, whole),
        ("untrained", None, learned, scale.untrained, whole),
        ("wrong", None, Path(options.wrong), scale.attack, whole),
        ("ceiling", None, Path(options.ceiling), scale.attack, whole),
    ]
    others = [("learned", step, snapshot(learned, step), scale.attack, whole)
              for step in scale.snapshots if step != final]  # fmt: skip
    quicker = [(*case[:4], part) for part in scale.convergence for case in cases]
    rows: list[Row] = []
    for name, step, prior, attack, part in [*cases, *others, *quicker]:
        folder = runs / "audits" / f"{name}{'' if step is None else f'-{step}'}-{part:g}"
        found = attacked(prior, folder, scale, test=options.test, attack=attack, steps_scale=part)
        rows += [{"kind": "attack", "prior": name, "outer_step": step, **row} for row in found]
    figures: dict[str, float] = {}
    for name, step, *_ in cases:
        own = {"prior": name, "outer_step": step, "kind": "attack"}
        figures[f"psnr {name}"] = mean(rows, "psnr", **own, steps_scale=whole)
        figures[f"ssim {name}"] = mean(rows, "ssim", **own, steps_scale=whole)
        if name != "untrained":
            figures[f"psnr_z {name}"] = mean(rows, "psnr_z", **own, steps_scale=whole)
        for part in scale.convergence:
            figures[f"psnr {name} | steps {part:g}"] = mean(rows, "psnr", **own, steps_scale=part)
    for name in ("untrained", "wrong"):
        figures[f"gain_db over {name}"] = figures["psnr learned"] - figures[f"psnr {name}"]
    for step in scale.snapshots:
        own = {"prior": "learned", "outer_step": step, "steps_scale": whole}
        figures[f"psnr learned | outer step {step}"] = mean(rows, "psnr", **own)
        figures[f"psnr_z learned | outer step {step}"] = mean(rows, "psnr_z", **own)
    return rows, figures


def samples(train: str, scale: Scale, learned: Path) -> tuple[list[Row], dict[str, float]]:
    """Returns how the samples draw nearer to real images over the outer steps; 0 is untrained."""
    steps = sorted(int(path.name) for path in (learned / "snapshots").iterdir())
    priors = {step: load_generator(snapshot(learned, step)) for step in steps}
    untrained = priors[steps[0]].untrained(torch.Generator().manual_seed(0))
    rows = quality_rows({0: untrained, **priors}, train)
    figures = {
        f"kernel_distance | outer step {row['outer_step']}": row["kernel_distance"]
        for row in rows
        if row["outer_step"] in {0, *scale.snapshots}
    }
    return rows, figures


def remembering(train: str, scale: Scale, runs: Path, updates: Path) -> dict[str, float]:
    """Returns cost and quality with and without remembered latents, at equal work."""
    figures: dict[str, float] = {}
    for name, words in scale.equal.items():
        prior = learn(runs / name, str(updates), "--rounds-watched", "1", *words)
        (row,) = quality_rows({0: load_generator(prior)}, train)
        figures[f"kernel_distance {name} latents"] = row["kernel_distance"]
        figures[f"precision {name} latents"] = row["precision"]
        figures[f"cost {name} latents"] = last_cost(prior)
    return figures


def over_rounds(
    options: argparse.Namespace, scale: Scale, runs: Path
) -> tuple[list[Row], dict[str, float]]:
    """Returns how well a server rebuilds test images that has watched so many rounds."""
    status = gradinv([
        "watch", "--watched", options.train, "--data", options.test, "--model", scale.model,
        "--defense", DEFENSE, "--attack", scale.attack, "--steps-scale", str(scale.steps_scale),
        "--batches", str(scale.watched_batches), "--clients", str(scale.clients),
        "--rounds-watched", str(scale.rounds), "--steps", str(scale.watched_steps),
        "--out", str(runs / "watch"),
    ])  # fmt: skip
    if status != 0:
        raise GradinvError(f"expected watch to end well, got status {status}; run it again")
    rows = read_json(runs / "watch" / "watch.json")["rounds"]
    figures = {f"psnr | rounds watched {row['rounds']}": row["psnr_mean"] for row in rows}
    return [{"kind": "watched", **row} for row in rows], figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Learns, attacks, and writes ``results/giml.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", required=True, help="images of the federation's clients")
    parser.add_argument("--test", required=True, help="images whose updates are attacked")
    parser.add_argument("--wrong", required=True, help="a prior of other data")
    parser.add_argument("--ceiling", required=True, help="a prior trained on the real images")
    parser.add_argument("--scale", choices=SCALES, default="quick")
    parser.add_argument("--also", action="append", default=[], choices=("remembering", "rounds"))
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(words)
    scale = SCALES[options.scale]
    runs = ROOT / "runs" / "giml" / options.scale
    every = min(scale.snapshots)
    learned = learn(
        runs / "learned",
        "--simulate", options.train, "--clients", str(scale.clients), "--rounds",
        str(scale.rounds), "--defense", DEFENSE, "--model", scale.model, "--steps",
        str(scale.steps), "--snapshot-every", str(every), *scale.learning,
    )  # fmt: skip
    rows, figures = samples(options.train, scale, learned)
    for name in ("wrong", "ceiling"):
        (row,) = quality_rows({0: load_generator(Path(getattr(options, name)))}, options.train)
        figures[f"kernel_distance {name}"] = row["kernel_distance"]
    found, own = compare(options, scale, runs, learned)
    rows, figures = [*rows, *found], {**figures, **own}
    if "remembering" in options.also:
        figures |= remembering(options.train, scale, runs, learned / "updates")
    if "rounds" in options.also:
        found, own = over_rounds(options, scale, runs)
        rows, figures = [*rows, *found], {**figures, **own}
    card = load_card(learned)
    path = write_results(
        "giml",
        command="python -m benchmarks.publish_giml " + shlex.join(map(_named, words)),
        settings={
            "scale": options.scale,
            **asdict(scale),
            "defense": DEFENSE,
            "image_size": 32,
            "batch_size": 4,
            "learning": {name: card[name] for name in ("updates", "config", "start", "seconds")},
            "wrong": _named(options.wrong),
            "ceiling": _named(options.ceiling),
        },
        figures=figures,
        rows=rows,
    )
    print(path.relative_to(ROOT))
    return 0


def _named(word: str) -> str:
    """Returns the last two parts of a path, anything else as it is."""
    return "/".join(Path(word).parts[-2:]) if word.startswith("/") else word


if __name__ == "__main__":
    raise SystemExit(main())
