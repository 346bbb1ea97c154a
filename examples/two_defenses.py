"""Compares two settings of a defence on the same batches: is the stronger one enough?

    python examples/two_defenses.py [FOLDER]

The images are the 160 of Fashion-MNIST that the package has. With a folder, the run and its report
are written there. This audits data that you hold.
"""

import sys

import gradinv
from gradinv.data import load_images
from gradinv.models import build_model


def main(steps: int = 300, batches: int = 2) -> gradinv.AuditResult:
    """Audits both settings and prints one verdict for each, the worst first."""
    images = load_images(None)
    channels, size, _ = images.image_shape
    model = build_model(
        "lenet", num_classes=images.num_classes, channels=channels, image_size=size, seed=0
    )
    result = gradinv.audit(
        model,
        images.images(range(len(images))),
        images.labels,
        classes=images.classes,
        batch_size=1,
        batches=batches,
        defense=["sparsify:0.9", "clip:1+noise:0.1"],
        attack=f"gi-x:steps={steps}",
    )
    for verdict in result.verdicts:
        print(verdict)
    return result


if __name__ == "__main__":
    found = main()
    if len(sys.argv) > 1:
        print(found.save(sys.argv[1]))
