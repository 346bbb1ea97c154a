"""Measures how often images are named at each noise, and what no server can do better.

``python -m benchmarks.publish_noise --images NAME CLIENT TRAIN TEST``. The updates are those of the
network's first weights in train mode, clipped to length 1 and with noise, or with noise alone; a
server that knows the rest of the batch names the likeliest of its candidates. Beside it stand the
ceiling over the same candidates, the closed form that the clip alone gives, and luck. With a folder
to train on (``-`` for none) networks are trained with the least noise that excludes naming, and
without. Writes ``results/defences-sweep.json`` and ``docs/noise.svg``.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from benchmarks.results import ROOT, command_line, write_results
from benchmarks.utility import Training
from gradinv.data import ClientBatch, ImageSet, load_images
from gradinv.evaluation.candidates import CandidateLists, candidate_lists, trials_for
from gradinv.evaluation.candidates.fit import Fit
from gradinv.evaluation.certificates import (
    bayes_ceiling_of_gram,
    excluding_sigma,
    gram_of,
    mean_ceiling,
)
from gradinv.evaluation.closed_form import closed_form
from gradinv.federated import FedSGD, observe, parse_defense
from gradinv.models import build_model

CLIPS = ("", "clip:1")
SIGMAS = (0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 10.0, 30.0)
DRAWS = 40  # of the noise, for each image and sigma


@dataclass(frozen=True, eq=False)
class Named:
    """What the images of one batch's places look like to a server that knows the rest.

    Attributes:
        gram: of each place's candidates.
        truth: where the client's own image stands in each.
    """

    gram: tuple[Tensor, ...]
    truth: tuple[int, ...]

    def rate(self, sigma: float, source: torch.Generator) -> float:
        """Returns how often the likeliest candidate is the client's image.

        The update is drawn anew in the span of the candidates' differences, where all that tells
        them apart lies.
        """
        return fmean(
            _hits(gram, truth, sigma, source)
            for gram, truth in zip(self.gram, self.truth, strict=True)
        )


def _hits(gram: Tensor, truth: int, sigma: float, source: torch.Generator) -> float:
    values, vectors = torch.linalg.eigh(gram)
    means = vectors * values.clamp(min=0).sqrt()  # as many coordinates as candidates
    noise = torch.randn(DRAWS, len(gram), generator=source, dtype=torch.float64)
    updates = means[truth] + sigma * noise
    return float((torch.cdist(updates, means).argmin(1) == truth).double().mean())


def looked_at(
    model: nn.Module, batch: ClientBatch, lists: CandidateLists, clip: str, seed: int
) -> Named:
    """Returns the candidates of every place of a batch, as a server compares them."""
    protocol = FedSGD(mode="train")
    observation = observe(
        model,
        batch,
        protocol=protocol,
        defenses=parse_defense(clip or "none"),
        generator=torch.Generator().manual_seed(seed),
    )
    fit, trials = Fit(observation), trials_for(model, lists, protocol, seed=seed)
    grams = []
    for place, count in enumerate(lists.counts):
        picks = [[*lists.truth[:place], pick, *lists.truth[place + 1 :]] for pick in range(count)]
        grams.append(gram_of([{"": fit.sent(trials.update(each))} for each in picks]))
    return Named(tuple(grams), lists.truth)


def measured(
    images: ImageSet, name: str, *, batches: int, batch_size: int, candidates: int, seed: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Returns a row for each clip and sigma of a set, and the noise that excludes naming."""
    channels, side, _ = images.image_shape
    model = build_model(
        "convnet", num_classes=images.num_classes, channels=channels, image_size=side, seed=seed
    ).train()
    drawn = images.batches(batch_size=batch_size, count=batches, seed=seed)
    rows, figures = [], {}
    for clip in CLIPS:
        source = torch.Generator().manual_seed(seed)
        found = [
            looked_at(
                model,
                batch,
                candidate_lists(images, batch, count=candidates, seed=seed + number),
                clip,
                seed,
            )
            for number, batch in enumerate(track(drawn, f"{name} {clip or 'as it is'}"))
        ]
        grams = [gram for each in found for gram in each.gram]
        luck = fmean(1 / len(gram) for gram in grams)
        figures[f"sigma_needed {name}{f' {clip}' if clip else ''}"] = excluding_sigma(grams)
        for sigma in SIGMAS:
            ceilings = [bayes_ceiling_of_gram(gram, sigma, draws=5_000) for gram in grams]
            rate, (low, high) = mean_ceiling(ceilings)
            bound = closed_form(luck, sensitivity=2.0, sigma=sigma) if clip else None
            rows.append(
                {
                    "data": name,
                    "clip": clip or None,
                    "sigma": sigma,
                    "batches": len(found),
                    "images": len(grams),
                    "named": fmean(each.rate(sigma, source) for each in found),
                    "ceiling": rate,
                    "ceiling_interval": [low, high],
                    "closed_form": bound,
                    "luck": luck,
                }
            )
    return rows, figures


def draw(rows: Sequence[Mapping[str, Any]], path: Any) -> None:
    """Draws the rates against sigma, a panel for each set, behind a clip of 1."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "gradinv", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(row["data"] for row in rows))
    figure, axes = plt.subplots(
        1, len(names), figsize=(3.6 * len(names), 3.2), sharey=True, squeeze=False
    )
    for axis, name in zip(axes[0], names, strict=True):
        mine = [row for row in rows if row["data"] == name and row["clip"]]
        sigmas = [row["sigma"] for row in mine]
        axis.plot(
            sigmas, [row["closed_form"] for row in mine], "--", color="#777", label="closed form"
        )
        axis.plot(sigmas, [row["ceiling"] for row in mine], color="#1d7048", label="ceiling")
        lows, highs = zip(*(row["ceiling_interval"] for row in mine), strict=True)
        axis.fill_between(sigmas, lows, highs, color="#1d7048", alpha=0.2, linewidth=0)
        axis.plot(
            sigmas, [row["named"] for row in mine], "o", color="#b0321f", markersize=3.5,
            label="candidate search",
        )  # fmt: skip
        axis.axhline(mine[0]["luck"], color="#215d9c", linewidth=1, linestyle=":", label="luck")
        axis.set(xscale="log", xlabel="standard deviation of the noise, σ", title=name)
        axis.set_ylim(0, 1.03)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("images named")
    axes[0][-1].legend(frameon=False, loc="upper right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def main(arguments: list[str] | None = None) -> int:
    """Measures, draws, and writes ``results/defences-sweep.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--images",
        nargs=4,
        action="append",
        default=[],
        metavar=("NAME", "CLIENT", "TRAIN", "TEST"),
    )
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--batches", type=int, default=25)
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--trainings", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    training = Training(rounds=options.rounds, seed=options.seed)
    rows: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    sets: dict[str, Any] = {"fashion": {"words": "Fashion-MNIST, the embedded images"}}
    given = [("fashion", load_images(None), "-", "-")]
    for name, client, train, test in options.images:
        given.append((name, load_images(client, image_size=options.image_size), train, test))
        sets[name] = {"words": name}
    for name, images, train, test in given:
        found, needed = measured(
            images,
            name,
            batches=options.batches,
            batch_size=options.batch_size,
            candidates=options.candidates,
            seed=options.seed,
        )
        rows += found
        figures |= needed
        if train != "-":
            figures |= costs(training, name, needed, train, test, options)
    path = write_results(
        "defences-sweep",
        command=command_line("publish_noise", arguments or sys.argv[1:]),
        settings={
            "model": "convnet",
            "mode": "train",
            "batch_size": options.batch_size,
            "batches": options.batches,
            "candidates": options.candidates,
            "image_size": options.image_size,
            "draws": DRAWS,
            "training": asdict(training),
            "trainings": options.trainings,
            "seed": options.seed,
            "sets": sets,
        },
        figures=figures,
        rows=rows,
    )
    draw(rows, ROOT / "docs" / "noise.svg")
    print(path.relative_to(ROOT))
    return 0


def costs(
    training: Training,
    name: str,
    needed: Mapping[str, float],
    train: str,
    test: str,
    options: argparse.Namespace,
) -> dict[str, float]:
    """Returns the accuracy with the least noise that excludes naming, unclipped, and without."""
    chains = {"least": f"noise:{needed[f'sigma_needed {name}']:.2g}", "none": "none"}
    return {
        f"accuracy {name} {end}": fmean(
            replace(training, seed=options.seed + more).accuracy(
                chain, train, test, image_size=options.image_size
            )
            for more in track(range(options.trainings), f"{name} {chain}")
        )
        for end, chain in chains.items()
    }


if __name__ == "__main__":
    raise SystemExit(main())
