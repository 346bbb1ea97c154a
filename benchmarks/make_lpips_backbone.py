"""Writes LPIPS' network into the package: ``python -m benchmarks.make_lpips_backbone FILE.npz``.

The file holds torchvision's ``squeezenet1_1`` ImageNet weights as arrays, in 16 bits; its
classifier is left out.
"""

import io
import sys

import numpy as np

from benchmarks.results import ROOT
from gradinv.evaluation.lpips import BACKBONE, Lpips
from gradinv.files import write_bytes


def main(arguments: list[str] | None = None) -> int:
    """Copies the features, and checks that they load."""
    (path,) = arguments or sys.argv[1:]
    with np.load(path, allow_pickle=False) as file:
        kept = {name: file[name] for name in file.files if name.startswith("features.")}
    buffer = io.BytesIO()
    # The stub of savez takes the names for its own options.
    np.savez(buffer, **kept)  # pyright: ignore[reportArgumentType]
    out = ROOT / "src" / "gradinv" / "assets" / BACKBONE
    write_bytes(out, buffer.getvalue())
    Lpips()
    print(out.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
