"""R-GAP where its equations determine the image, and with a generator where they do not."""

import argparse
from statistics import fmean

import torch

from benchmarks.results import Section
from gradinv.attacks import invert, preset, rank_analysis
from gradinv.data import load_images
from gradinv.evaluation.metrics import psnr, ssim
from gradinv.federated import observe
from gradinv.models import LeakyNet
from gradinv.priors import embedded_prior

NETWORKS = {"sufficient": None, "under-determined": (2, 12)}


def measure_r_gap(options: argparse.Namespace) -> Section:
    """Attacks single images on both networks; a row for each image and attack."""
    images = load_images(None, image_size=32, channels=1)
    prior = embedded_prior()
    source = torch.Generator().manual_seed(options.seed)
    chosen = torch.randperm(len(images), generator=source)[: options.images].tolist()
    rows, figures, ranks = [], {}, {}
    for network, widths in NETWORKS.items():
        with torch.random.fork_rng():
            torch.manual_seed(options.seed)
            model = LeakyNet(images.num_classes, 1, 32, widths).eval()
        ranks[network] = [
            {"layer": rank.name, "unknowns": rank.unknowns, "rank": rank.rank}
            for rank in rank_analysis(model, images.image_shape)
        ]
        for name in ("r-gap", "r-gap+prior") if network == "under-determined" else ("r-gap",):
            scores = []
            for index in chosen:
                batch = images.batch([index])
                found = invert(observe(model, batch), model, preset(name), prior=prior)
                score = float(psnr(found.images, batch.images, data_range=1.0))
                scores.append(score)
                rows.append(
                    {
                        "network": network,
                        "attack": name,
                        "image": index,
                        "psnr": score,
                        "ssim": float(ssim(found.images, batch.images, data_range=1.0)),
                        "stages": {
                            stage.name: float(psnr(stage.images, batch.images, data_range=1.0))
                            for stage in found.stages
                        },
                        "objective": float(found.objective.min()),
                        "seconds": found.seconds,
                        "outcome": found.outcome.value,
                    }
                )
            figures[f"psnr_mean {name} {network}"] = fmean(scores)
            figures[f"psnr_worst {name} {network}"] = min(scores)
            print(f"{network}, {name}: mean {fmean(scores):.2f} dB, worst {min(scores):.2f} dB")
    return Section(
        settings={
            "images": "embedded Fashion-MNIST test images",
            "prior": "embedded",
            "networks": {name: list(widths or (4, 12)) for name, widths in NETWORKS.items()},
            "ranks": ranks,
            "attack": preset("r-gap+prior").describe(),
            "seed": options.seed,
        },
        figures=figures,
        rows=rows,
    )
