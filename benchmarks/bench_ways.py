"""Whether the approximate ways end at the same pictures: ``python -m benchmarks.bench_ways``.

The same attack on the same updates, once in the exact way, once with frozen patterns, once with
bf16 tangents, from the same starting points. Plain double backward takes part too: it computes what
the exact way does with other rounding, so what it differs by is what no way can be held to. Writes
``results/engine-ways.json``.
"""

import argparse
import shlex
import sys
from statistics import fmean

from benchmarks.results import ROOT, rows_of_audit, write_results
from gradinv.api.progress import AuditProgress
from gradinv.audit.plan import AuditConfig
from gradinv.audit.runner import run_audit

WAYS = ("exact", "plain", "frozen-pattern", "bf16")


def main(arguments: list[str] | None = None) -> int:
    """Runs the attack in every way and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attack", default="gi-x")
    parser.add_argument("--model", default="convnet")
    parser.add_argument("--defense", default="none")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--steps-scale", type=float, default=1.0)
    options = parser.parse_args(arguments)
    config = AuditConfig(
        model=options.model,
        defense=(options.defense,),
        batches=options.batches,
        steps_scale=options.steps_scale,
        attack=tuple(f"{options.attack}:way={way}" for way in WAYS),
    )
    with AuditProgress().shown() as progress:
        audit = run_audit(config, ROOT / "runs" / "ways" / options.model, monitor=progress)
    rows = [
        {**row, "way": row["attack"].split("way=")[1]}
        for row in rows_of_audit(audit, data="fashion-mnist")
    ]
    psnr = {way: fmean(row["psnr"] for row in rows if row["way"] == way) for way in WAYS}
    given = sys.argv[1:] if arguments is None else arguments
    path = write_results(
        "engine-ways",
        command=shlex.join(["python", "-m", "benchmarks.bench_ways", *given]),
        settings=vars(options),
        figures={
            **{f"psnr_mean {way}": psnr[way] for way in WAYS},
            **{f"psnr_difference {way}": psnr[way] - psnr["exact"] for way in WAYS[1:]},
        },
        rows=rows,
    )
    print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
