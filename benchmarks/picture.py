"""Draws the README's picture from a finished audit: ``python -m benchmarks.picture RUN OUT.png``.

Only for audits of images that may be published, such as the embedded ones.
"""

import sys
from pathlib import Path

from gradinv.errors import GradinvError
from gradinv.files import read_json, write_bytes
from gradinv.report import load_cells, stage_grid_png


def main() -> int:
    """Writes the picture of the first two batches under the last defence."""
    if len(sys.argv) != 3:
        print("expected RUN and OUT.png; python -m benchmarks.picture runs/1 docs/audit.png")
        return 2
    run, out = map(Path, sys.argv[1:])
    try:
        audit = read_json(run / "audit.json")
        batches = sorted({cell["batch"] for cell in audit["cells"]})[:2]
        # The undefended update is attacked beside, first and by one attack alone.
        defense = audit["config"]["defense"][-1]
        pictures = stage_grid_png(audit, load_cells(run, audit), defense=defense, batches=batches)
        write_bytes(out, pictures)
    except GradinvError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
