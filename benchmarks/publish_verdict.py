"""Measures how often the verdict cries wolf, and how often it misses a leak of known size.

``python -m benchmarks.publish_verdict --images NAME CLIENT OTHERS ...``. An audit is simulated
without any attack: its "reconstructions" know the labels alone (another image of the label, or the
mean of a few), so that whatever is found in them is luck; or one of its 32 images comes back as
well as is said, and all others as before. Candidate search names whom luck names. Verdicts are made
by the code that makes them in an audit. Without ``--images`` the embedded images are used, three
quarters of each label for the client and its decoys and the last for guesses. Writes
``results/verdict.json``.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from benchmarks.results import ROOT, command_line, write_results
from gradinv.audit.summary import signed_off
from gradinv.data import ImageSet, load_images
from gradinv.data.tensors import of_tensors
from gradinv.evaluation.controls import decoys_for
from gradinv.evaluation.evaluate import Evaluation, evaluate
from gradinv.evaluation.verdict import Level
from gradinv.federated import parse_defense

IMAGES = 32  # in an audit, in as many batches as that takes
CANDIDATES = 64
BATCH_SIZES = (4, 32)
LOOSE = {"ceiling": 0.5, "ceiling_interval": [0.49, 0.51]}  # a certificate that excludes nothing
DEFENSE = "noise:1"


@dataclass(frozen=True)
class Case:
    """What the pictures of an audit know.

    Attributes:
        mean_of: images of the label that make up a picture.
        planted: PSNR of the one image that leaked, decibels; None where none did.
    """

    mean_of: int
    planted: float | None = None

    @property
    def words(self) -> str:
        """What a table calls it."""
        if self.planted is not None:
            return f"one image at {self.planted:g} dB"
        return "another image" if self.mean_of == 1 else f"mean of {self.mean_of} others"


CASES = (Case(1), Case(4), Case(1, 20.0))


@dataclass(frozen=True, eq=False)
class Pair:
    """Images that a client draws its batches from, and others of the same classes.

    Attributes:
        name: what the results call them.
        images: the client's, and decoys.
        others: of which guesses are made.
    """

    name: str
    images: ImageSet
    others: ImageSet


def pictures(
    batch: Any, pools: Mapping[int, Tensor], others: ImageSet, case: Case, source: torch.Generator
) -> Tensor:
    """Returns one guess for each image of a batch, from other images of its label."""
    chosen = []
    for label in batch.labels.tolist():
        pool = pools[label]
        places = pool[torch.randint(len(pool), (case.mean_of,), generator=source)]
        chosen.append(others.images(places.tolist()).mean(0))
    return torch.stack(chosen)


def planted(original: Tensor, psnr: float, source: torch.Generator) -> Tensor:
    """Returns a picture of an image with noise, at the PSNR, as near as [0, 1] lets it."""
    noise = torch.randn(original.shape, generator=source) * 10 ** (-psnr / 20)
    return (original + noise).clamp(0, 1)


def simulated(pair: Pair, *, batch_size: int, case: Case, seed: int) -> dict[str, Any]:
    """Returns the verdict on one simulated audit, as ``audit.json`` holds it."""
    source = torch.Generator().manual_seed(seed)
    pools = {
        label: (pair.others.labels == label).nonzero().flatten()
        for label in pair.images.labels.unique().tolist()
    }
    batches = pair.images.batches(batch_size=batch_size, count=IMAGES // batch_size, seed=seed)
    guesses = [pictures(batch, pools, pair.others, case, source) for batch in batches]
    if case.planted is not None:
        guesses[0][0] = planted(batches[0].images[0], case.planted, source)
    cells = []
    for number, batch in enumerate(batches):
        decoys = decoys_for(pair.images, batch, seed=seed * len(batches) + number)
        # The placebo is what the attack made of the next batch, as in an audit.
        without = [torch.nanmean(decoys, dim=1)]
        without += [guesses[(number + 1) % len(batches)]] if len(batches) > 1 else []
        found = evaluate(guesses[number], batch, decoys=decoys)
        baselines = [evaluate(each, batch) for each in without]
        cells.append(cell(number, found, baselines))
    return signed_off(
        cells,
        [named_by_luck(len(batch), source) for batch in batches],
        defenses={DEFENSE: parse_defense(DEFENSE)},
        budgets={"guess": 1.0},
    )[1][0]


def cell(number: int, found: Evaluation, baselines: Sequence[Evaluation]) -> dict[str, Any]:
    """Returns the row of an attack's cell."""
    images = [
        replace(score, ssim_without=max(each.images[score.original].ssim for each in baselines))
        for score in found.images
    ]
    return {
        "attack": "guess",
        "defense": DEFENSE,
        "batch": number,
        "seconds": 0.0,
        "images": [score.row() for score in images],
    }


def named_by_luck(count: int, source: torch.Generator) -> dict[str, Any]:
    """Returns the row of a candidate search that has nothing to go by."""
    ranks = torch.randint(CANDIDATES, (4, count), generator=source).tolist()
    return {
        "attack": "candidates",
        "defense": DEFENSE,
        "seconds": 0.0,
        "refusal": None,
        "sigma_needed": 3.0,
        "images": [
            {
                "original": index,
                "label": 0,
                "candidates": CANDIDATES,
                "rank": rank,
                "rank_known": known,
                "control": control,
                "control_known": other,
                "posterior": None,
                "posterior_known": None,
                **LOOSE,
            }
            for index, (rank, known, control, other) in enumerate(zip(*ranks, strict=True))
        ],
    }


def measure(pair: Pair, *, batch_size: int, case: Case, audits: int) -> dict[str, Any]:
    """Returns how often audits of a kind come to each level.

    ``bare`` is the share of those that are open without a reason.
    """
    levels: Counter[str] = Counter()
    bare = 0
    for seed in range(audits):
        verdict = simulated(pair, batch_size=batch_size, case=case, seed=seed)
        levels[verdict["level"]] += 1
        open_ = verdict["level"] == Level.OPEN.value
        bare += open_ and "some server could name" not in verdict["sentence"]
    return {
        "data": pair.name,
        "batch_size": batch_size,
        "case": case.words,
        "planted": case.planted,
        "audits": audits,
        **{level.value: levels[level.value] / audits for level in Level},
        "bare": bare / audits,
    }


def figures_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the worst case of each error, and each set's own."""
    leak = [{**row, "leak": row["SEVERE"] + row["PARTIAL"]} for row in rows]
    quiet = [row for row in leak if row["planted"] is None]
    loud = [row for row in leak if row["planted"] is not None]
    figures = {
        "false_alarm": max(row["leak"] for row in quiet),
        "miss": max(1 - row["leak"] for row in loud),
        "open": max(row["bare"] for row in rows),
    }
    for row in quiet:
        figures[f"false_alarm {row['data']} B={row['batch_size']} {row['case']}"] = row["leak"]
    for row in loud:
        figures[f"miss {row['data']} B={row['batch_size']} {row['case']}"] = 1 - row["leak"]
    return figures


def parts(images: ImageSet, name: str) -> Pair:
    """Returns three quarters of the images of each label beside the last."""
    first = torch.zeros(len(images), dtype=torch.bool)
    for label in images.labels.unique():
        places = (images.labels == label).nonzero().flatten()
        first[places[: 3 * len(places) // 4]] = True
    split = [
        of_tensors(
            images.images(which.nonzero().flatten().tolist()),
            images.labels[which],
            classes=images.classes,
        )
        for which in (first, ~first)
    ]
    return Pair(name, *split)


def in_memory(path: str, size: int, most: int, seed: int = 0) -> ImageSet:
    """Returns images of a folder, at most so many drawn at random, decoded once."""
    images = load_images(path, image_size=size)
    source = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(images), generator=source)[:most].tolist()
    return of_tensors(images.images(rows), images.labels[rows], classes=images.classes)


def main(arguments: list[str] | None = None) -> int:
    """Simulates audits and writes ``results/verdict.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--images", nargs=3, action="append", default=[], metavar=("NAME", "CLIENT", "OTHERS")
    )
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--most", type=int, default=6000, help="images that are held of each set")
    parser.add_argument("--audits", type=int, default=200)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pairs = [parts(load_images(None), "fashion")]
    pairs += [
        Pair(
            name,
            in_memory(client, options.image_size, options.most),
            in_memory(others, options.image_size, options.most),
        )
        for name, client, others in options.images
    ]
    plan = [(pair, size, case) for pair in pairs for size in BATCH_SIZES for case in CASES]
    rows = [
        measure(pair, batch_size=size, case=case, audits=options.audits)
        for pair, size, case in track(plan, "audits simulated")
    ]
    path = write_results(
        "verdict",
        command=command_line("publish_verdict", arguments or sys.argv[1:]),
        settings={
            "images": IMAGES,
            "candidates": CANDIDATES,
            "image_size": options.image_size,
            "audits": options.audits,
            "sets": {pair.name: len(pair.images) for pair in pairs},
        },
        figures=figures_of(rows),
        rows=rows,
    )
    print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
