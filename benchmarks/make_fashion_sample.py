"""Makes the embedded sample of Fashion-MNIST's test images: ``src/gradinv/assets``.

Usage:
    python benchmarks/make_fashion_sample.py FOLDER

FOLDER holds ``t10k-images-idx3-ubyte.gz`` and ``t10k-labels-idx1-ubyte.gz`` (Debian's package
``dataset-fashion-mnist``, or https://github.com/zalandoresearch/fashion-mnist). Test images only,
so that no prior trained on the training images has seen them.
"""

import argparse
import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gradinv.data import EMBEDDED, load_images
from gradinv.files import write_bytes, write_json

ASSETS = Path(__file__).parents[1] / "src" / "gradinv" / "assets"
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
PER_CLASS, SEED, TILE = 16, 0, 28


def main() -> None:
    """Chooses the images and writes the sheet and what is said about it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    images = folder / "t10k-images-idx3-ubyte.gz"
    test = load_images(images, image_size=TILE)
    generator = torch.Generator().manual_seed(SEED)
    shuffled = torch.randperm(len(test), generator=generator)
    chosen = [
        int(index)
        for label in range(len(CLASSES))
        for index in shuffled[test.labels[shuffled] == label][:PER_CLASS]
    ]
    # One row of tiles for each class.
    tiles = test.all_images_uint8()[chosen].view(len(CLASSES), PER_CLASS, TILE, TILE)
    sheet = tiles.transpose(1, 2).reshape(len(CLASSES) * TILE, PER_CLASS * TILE).numpy()
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(sheet)).save(buffer, "PNG", optimize=True)
    write_bytes(ASSETS / f"{EMBEDDED}.png", buffer.getvalue())
    write_json(
        ASSETS / f"{EMBEDDED}.json",
        {
            "name": "Fashion-MNIST, 160 of the 10,000 test images (16 of each class)",
            "source": "https://github.com/zalandoresearch/fashion-mnist",
            "authors": "Han Xiao, Kashif Rasul, Roland Vollgraf (2017), arXiv:1708.07747",
            "licence": "MIT, Copyright (c) 2017 Zalando SE; text in FASHION_MNIST_LICENSE",
            "made_by": "python benchmarks/make_fashion_sample.py FOLDER",
            "seed": SEED,
            "source_sha256": {
                name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
                for name in (images.name, "t10k-labels-idx1-ubyte.gz")
            },
            "pixels_sha256": hashlib.sha256(np.ascontiguousarray(sheet).tobytes()).hexdigest(),
            "tile": TILE,
            "columns": PER_CLASS,
            "classes": list(CLASSES),
            "labels": test.labels[chosen].tolist(),
            "indices": chosen,
        },
    )


if __name__ == "__main__":
    main()
