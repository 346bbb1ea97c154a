"""Measures how often the verdict cries wolf.

``python -m benchmarks.publish_verdict --data TRAIN-images-idx3-ubyte.gz --guesses TEST-...``.

Audits are judged whose "reconstructions" know the labels and nothing else: other images of the
labels, or the mean of several, as a prior's samples and its blurred compromises are. Whatever is
found in them is luck. Writes ``results/verdict.json``.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from rich.progress import track

from benchmarks.results import ROOT, command_line, write_results
from gradinv.data import ImageSet, load_images
from gradinv.evaluation.controls import decoys_for
from gradinv.evaluation.evaluate import ImageScore, evaluate
from gradinv.evaluation.verdict import Level, judge

BATCH_SIZES = (1, 4, 8, 16, 32)
IMAGES = 32  # in an audit, in as many batches as that takes
MEAN_OF = (1, 4)  # images of the label that make up a picture
DECOYS = 15


def guessed(
    images: ImageSet, others: ImageSet, *, batch_size: int, mean_of: int, seed: int
) -> list[ImageScore]:
    """Returns the scores of one audit without any leak.

    Args:
        images: the client's, and decoys.
        others: of which the guesses are made, with the same classes.
        batch_size: of the client.
        mean_of: how many images of the label are averaged into one guess.
        seed: of the draw.
    """
    scores: list[ImageScore] = []
    source = torch.Generator().manual_seed(seed)
    alike = [(others.labels == label).nonzero().flatten() for label in range(images.num_classes)]
    count = max(2, IMAGES // batch_size)
    for batch in images.batches(batch_size=batch_size, count=count, seed=seed):
        decoys = decoys_for(images, batch, count=DECOYS, seed=seed)
        chosen = [
            pool[torch.randint(len(pool), (mean_of,), generator=source)].tolist()
            for pool in (alike[label] for label in batch.labels.tolist())
        ]
        guesses = torch.stack([others.images(places).mean(0) for places in chosen])
        scores += evaluate(guesses, batch, decoys=decoys).images
    return scores


def measure(
    images: ImageSet, others: ImageSet, *, batch_size: int, mean_of: int, audits: int
) -> Mapping[str, Any]:
    """Returns how often luck identified, was unmistakable, and made each level."""
    levels: Counter[str] = Counter()
    hits = unmistakable = total = 0
    for seed in range(audits):
        scores = guessed(images, others, batch_size=batch_size, mean_of=mean_of, seed=seed)
        levels[judge(scores).level.value] += 1
        hits += sum(score.identified for score in scores)
        unmistakable += sum(score.unmistakable for score in scores)
        total += len(scores)
    return {
        "batch_size": batch_size,
        "mean_of": mean_of,
        "audits": audits,
        "images": total,
        "identified": hits / total,
        "unmistakable": unmistakable / total,
        **{level.value: levels[level.value] / audits for level in Level},
    }


def main(arguments: list[str] | None = None) -> int:
    """Judges guesses and writes ``results/verdict.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, metavar="PATH")
    parser.add_argument(
        "--guesses", required=True, metavar="PATH", help="other images, same classes"
    )
    parser.add_argument("--audits", type=int, default=200)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    images, others = load_images(options.data), load_images(options.guesses)
    cases = [(size, mean_of) for mean_of in MEAN_OF for size in BATCH_SIZES]
    rows = [
        measure(images, others, batch_size=size, mean_of=mean_of, audits=options.audits)
        for size, mean_of in track(cases, "guesses judged")
    ]
    total = sum(row["images"] for row in rows)
    path = write_results(
        "verdict",
        command=command_line("publish_verdict", arguments or sys.argv[1:]),
        settings={
            "data": images.name,
            "guesses": others.name,
            "decoys": DECOYS,
            "audits": options.audits,
        },
        figures={
            "unmistakable": sum(row["unmistakable"] * row["images"] for row in rows) / total,
            "identified": sum(row["identified"] * row["images"] for row in rows) / total,
            "chance": 1 / (DECOYS + 1),
            **{
                f"{level.value} B={row['batch_size']} mean of {row['mean_of']}": row[level.value]
                for row in rows
                for level in Level
            },
        },
        rows=rows,
    )
    print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
