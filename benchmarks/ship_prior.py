"""Writes a prior into the package, in 16 bits: ``python -m benchmarks.ship_prior PRIOR NAME``.

Only priors whose training images may be published in the form of weights belong there.
"""

import argparse
import shutil
from pathlib import Path

import torch

from benchmarks.results import ROOT
from gradinv.errors import PriorError
from gradinv.files import load_tensors, save_tensors, write_json
from gradinv.priors import load_generator
from gradinv.priors.generator import CARD, CONFIG, WEIGHTS, load_card
from gradinv.priors.samples import SAMPLES, save_sample_grid

_LARGEST = 8e6  # bytes


def main(arguments: list[str] | None = None) -> int:
    """Copies one prior, and checks that it loads and is small enough."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prior", type=Path)
    parser.add_argument("name", help="of the folder in the package's assets")
    options = parser.parse_args(arguments)
    out = ROOT / "src" / "gradinv" / "assets" / options.name
    tensors, header = load_tensors(options.prior / WEIGHTS, what="a prior")
    half = {
        name: value.half() if value.is_floating_point() else value
        for name, value in tensors.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(options.prior / CONFIG, out / CONFIG)
    write_json(out / CARD, {**load_card(options.prior), "weights": "rounded to 16 bits"})
    save_tensors(out / WEIGHTS, half, header)
    if (out / WEIGHTS).stat().st_size > _LARGEST:
        raise PriorError(
            f"expected at most 8 MB of weights, got more in {out}; train a smaller one"
        )
    generator = load_generator(out)
    assert next(generator.parameters()).dtype == torch.float32
    save_sample_grid(generator, out / SAMPLES, rows=4)
    print(out.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
