"""Makes the embedded linear heads of LPIPS: ``src/gradinv/assets/lpips_squeeze_heads.safetensors``.

Usage:
    pip download --no-deps lpips==0.1.4
    python benchmarks/make_lpips_heads.py lpips-0.1.4-py3-none-any.whl
"""

import argparse
import hashlib
import io
import zipfile
from pathlib import Path

import torch

from gradinv.files import save_tensors

MEMBER = "lpips/weights/v0.1/squeeze.pth"
SHA256 = "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76"
OUT = Path(__file__).parents[1] / "src" / "gradinv" / "assets" / "lpips_squeeze_heads.safetensors"


def main() -> None:
    """Converts the seven vectors of weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    wheel: Path = parser.parse_args().wheel
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(MEMBER)
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise SystemExit(f"expected {MEMBER} with sha256 {SHA256}, got {digest}; take lpips 0.1.4")
    # The digest says that this is the known file, and weights_only runs no code from it.
    heads = torch.load(  # noqa: TID251
        io.BytesIO(content), map_location="cpu", weights_only=True
    )
    save_tensors(
        OUT,
        {f"head{layer}": heads[f"lin{layer}.model.1.weight"].flatten() for layer in range(7)},
        {
            "kind": "lpips-heads",
            "schema": 1,
            "source": f"lpips 0.1.4, {MEMBER}",
            "sha256": SHA256,
            "licence": "BSD-2-Clause; text in LPIPS_LICENSE",
        },
    )


if __name__ == "__main__":
    main()
