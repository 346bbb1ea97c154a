"""The frozen evaluation: every attack, the same updates, the same time, each version once.

``python -m benchmarks.frozen --images NAME TEST TRAIN GAN FLOW ...``. A case is an image set and
what its clients send; its 25 batches come from five networks (three first weights and a trained one
with batch norm in eval mode, one in train mode), are drawn once and known by their hash
(``benchmarks/frozen.json``). Nothing may be tuned on them. Every attack gets the time that 600
steps of ``gi-x`` take there (150 against local training), measured side by side in steps of it, and
spends it as it likes: on steps, on restarts, on a search of its prior.

A version of an attack is all its numbers and its prior; the folder of its cells is named after it,
and a version in ``results/frozen.json`` is not measured again. ``--part 1/2`` and ``--part 2/2``
share the work of two processes; ``--collect`` writes the results.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.equal_time import Costs, costs_of, factor_of
from benchmarks.results import RESULTS, ROOT, command_line, write_results
from benchmarks.utility import trained_weights
from gradinv.api.progress import AuditProgress
from gradinv.audit.baselines import PRIOR_SAMPLES
from gradinv.audit.cell import observe_planned
from gradinv.audit.plan import AuditConfig, cells_of
from gradinv.audit.runner import run_audit
from gradinv.audit.setup import Setup, prepare
from gradinv.errors import DataError
from gradinv.evaluation.intervals import mean_interval
from gradinv.files import read_json, write_json

SEED = 2027
BATCHES = 5  # of each network
BATCH_SIZE = 4
CANDIDATES = 64
HASHES = Path(__file__).with_suffix(".json")
RUNS = ROOT / "runs" / "frozen"
YARDSTICK = "gi-x"


@dataclass(frozen=True)
class Network:
    """Which network the clients of five batches hold.

    Attributes:
        name: in the rows.
        number: of its batches and first weights, added to the seed.
        mode: of batch norm.
        trained: on the training images, or at its first weights.
    """

    name: str
    number: int
    mode: str = "eval"
    trained: bool = False


NETWORKS = (
    Network("init-0", 0),
    Network("init-1", 1),
    Network("init-2", 2),
    Network("trained", 3, trained=True),
    Network("train-mode", 4, mode="train"),
)


@dataclass(frozen=True)
class Update:
    """What clients send.

    Attributes:
        name: in the rows.
        settings: of the audit.
        budget: the time of an attack, in steps of ``gi-x``.
    """

    name: str
    settings: Mapping[str, Any]
    budget: int = 600


UPDATES = (
    Update("none", {"defense": ("none",)}),
    Update("sparsify:0.95", {"defense": ("sparsify:0.95",)}),
    Update("noise:0.001", {"defense": ("noise:0.001",)}),
    Update("fedavg", {"defense": ("none",), "protocol": "fedavg", "local_epochs": 5}, budget=150),
)


@dataclass(frozen=True)
class Entry:
    """One attack of the evaluation.

    Attributes:
        spec: as the command line takes it.
        prior: the kind that it is given: ``gan``, ``flow`` or none.
        share: of the time that the others get.
    """

    spec: str
    prior: str | None = None
    share: float = 1.0

    @property
    def name(self) -> str:
        """What tables call it."""
        words = [self.spec]
        if self.spec == "standard":
            words.append(f"({self.prior})")
        if self.share != 1:
            words.append(f"in {self.share:g} of the time")
        return " ".join(words)

    @property
    def slug(self) -> str:
        """A folder's name."""
        plain = self.name.translate(str.maketrans("/:= ", "----", "()"))
        return plain.replace("--", "-")


_STARTS = "restarts=4:averaged=3"
ENTRIES = (
    Entry("gi-x"),
    Entry(f"gi-x:{_STARTS}"),
    Entry("gi-x:published"),
    Entry("gi-w", "gan"),
    Entry("gi-z", "gan"),
    Entry(f"gi-z:{_STARTS}", "gan"),
    Entry("gi-z/x", "gan"),
    Entry(f"gi-z/x:keep=all:{_STARTS}", "gan"),
    Entry("gi-z/w", "gan"),
    Entry(f"gi-z/w:keep=all:{_STARTS}", "gan"),
    Entry("ggl", "gan"),
    Entry("gifd", "gan"),
    Entry("gi-x+flow", "flow"),
    Entry(f"gi-x+flow:{_STARTS}", "flow"),
    Entry("standard", "gan"),
    Entry("standard", "flow"),
    Entry("standard", "flow", share=0.2),
)


@dataclass(frozen=True)
class Pictures:
    """An image set.

    Attributes:
        name: in the rows.
        test: whose batches are attacked.
        train: which priors and the trained network come from.
        priors: kind -> folder.
    """

    name: str
    test: str
    train: str
    priors: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, words: Sequence[str]) -> "Pictures":
        """Returns what five words of the command line say."""
        name, test, train, gan, flow = words
        return cls(name, test, train, {"gan": gan, "flow": flow})


@dataclass(frozen=True)
class Case:
    """An image set and what its clients send."""

    pictures: Pictures
    update: Update

    @property
    def name(self) -> str:
        """In figures."""
        return f"{self.pictures.name} {self.update.name}"

    def config(self, network: Network, entry: Entry, scale: float = 1.0) -> AuditConfig:
        """Returns the audit of an attack on one network's batches."""
        weights = RUNS / f"trained-{self.pictures.name}.safetensors"
        alone = entry.spec == YARDSTICK  # the judge's own search is the same beside every attack
        return AuditConfig(
            data=self.pictures.test,
            prior=self.pictures.priors[entry.prior] if entry.prior else None,
            mode=network.mode,  # pyright: ignore[reportArgumentType] - one of two
            weights=str(weights) if network.trained else None,
            attack=(entry.spec,),
            batch_size=BATCH_SIZE,
            batches=BATCHES,
            candidates=CANDIDATES if alone else 2,
            seed=SEED + network.number,
            steps_scale=scale,
            workers=1,
            **self.update.settings,
        )


@dataclass(frozen=True)
class Plan:
    """How one version of an attack is run in one case.

    Attributes:
        version: hash of all numbers of the attack and of its prior.
        scale: of its steps.
        costs: of its steps, in steps of ``gi-x``.
    """

    version: str
    scale: float
    costs: Costs


def version_of(setups: Sequence[Setup]) -> str:
    """Returns the hash of an attack as it meets each network's first update."""
    found = []
    for setup in setups:
        (attack,) = setup.server.attacks.values()
        own = attack.resolved(_first(setup), setup.model, setup.server.prior).describe()
        if own not in found:
            found.append(own)
    content = json.dumps([*found, setups[0].identity()["inputs"]["prior"]], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _first(setup: Setup) -> Any:
    """Returns what the server sees of the first batch."""
    return observe_planned(setup, next(c for c in cells_of(setup.config) if not c.is_candidates))


def folder_of(case: Case, entry: Entry, version: str) -> Path:
    """Returns where the cells of one version of an attack lie."""
    return RUNS / case.name.replace(":", "-").replace(" ", "-") / f"{entry.slug}-{version}"


def planned(case: Case, entry: Entry) -> tuple[Path, Plan]:
    """Returns the folder of an attack's present version and how it is run, measured once."""
    setup, *others = [prepare(case.config(network, entry)) for network in NETWORKS]
    version = version_of([setup, *others])
    folder = folder_of(case, entry, version)
    if (folder / "plan.json").exists():
        kept = read_json(folder / "plan.json")
        costs = Costs(tuple(kept["costs"]), kept["apart"])
        return folder, Plan(version, kept["scale"], costs)
    observation = _first(setup)
    (attack,) = setup.server.attacks.values()
    own = attack.resolved(observation, setup.model, setup.server.prior)
    costs = costs_of(own, observation, setup.model, setup.server.prior)
    scale = factor_of(own, costs, case.update.budget * entry.share)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"scale": scale, "costs": list(costs.steps), "apart": costs.apart}
    write_json(folder / "plan.json", content)
    return folder, Plan(version, scale, costs)


def check_batches(case: Case, network: Network, found: str, *, freeze: bool) -> None:
    """Compares the hash of batches with the one on record.

    Raises:
        DataError: they are others, or none is on record and ``freeze`` is off.
    """
    known = read_json(HASHES) if HASHES.exists() else {}
    key = f"{case.pictures.name} {network.name}"
    if freeze and key not in known:
        write_json(HASHES, {**known, key: found})
    elif known.get(key) != found:
        raise DataError(
            f"expected the batches {known.get(key)} of {key}, got {found}; "
            f"use the image set that {HASHES.name} was made from"
        )


def measure(
    case: Case, entry: Entry, *, known: Mapping[tuple[str, str, str], str], freeze: bool
) -> None:
    """Runs what is left of one attack in one case, unless its version is on record.

    Args:
        case: where.
        entry: the attack.
        known: images, update and attack -> version on record.
        freeze: record hashes of batches that are not known yet.
    """
    folder, plan = planned(case, entry)
    if known.get((case.pictures.name, case.update.name, entry.name)) == plan.version:
        return
    for network in NETWORKS:
        own = folder / network.name
        config = case.config(network, entry, plan.scale)
        # Before anything is measured: a finished folder would hide other batches at the next run.
        check_batches(case, network, prepare(config).identity()["inputs"]["images"], freeze=freeze)
        if not (own / "audit.json").exists():
            with AuditProgress().shown() as progress:
                run_audit(config, own, monitor=progress)


def rows_of(case: Case, entry: Entry) -> list[dict[str, Any]]:
    """Returns a row for each batch of an attack in a case; none unless it was measured whole."""
    folder, plan = planned(case, entry)
    audits = [folder / network.name / "audit.json" for network in NETWORKS]
    if not all(path.exists() for path in audits):
        return []
    rows: list[dict[str, Any]] = []
    for network, path in zip(NETWORKS, audits, strict=True):
        audit = read_json(path)
        named = (
            {row["batch"]: row for row in audit["candidates"]} if entry.spec == YARDSTICK else {}
        )
        without = {
            _named(row["name"], entry): row["psnr_mean"]
            for row in audit["baselines"]
            if row["attack"] is None
        }
        for cell in audit["cells"]:
            candidates = named.get(cell["batch"])
            rows.append(
                {
                    "images": case.pictures.name,
                    "update": case.update.name,
                    "network": network.name,
                    "batch": cell["batch"],
                    "attack": entry.name,
                    "version": plan.version,
                    "psnr": [image["psnr"] for image in cell["images"]],
                    "ssim": [image["ssim"] for image in cell["images"]],
                    "identified": [
                        image["rank"] == 0 for image in cell["images"] if image["rank"] is not None
                    ],
                    "objective": cell["objective"],
                    "steps": cell["steps"],
                    "seconds": cell["seconds"],
                    "without": without,
                    **(
                        {"candidates": [image["rank"] == 0 for image in candidates["images"]]}
                        if candidates
                        else {}
                    ),
                }
            )
    return rows


def _named(baseline: str, entry: Entry) -> str:
    """Returns a baseline's name; samples differ by prior."""
    return f"{baseline} ({entry.prior})" if baseline == PRIOR_SAMPLES else baseline


def figures_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns every attack's mean and its gain over ``gi-x`` in every case, with the interval."""
    figures: dict[str, float] = {}
    for case, own in _by(rows, "images", "update"):
        means = {
            name: {(row["network"], row["batch"]): fmean(row["psnr"]) for row in attack}
            for (name,), attack in _by(own, "attack")
        }
        for (name,), attack in _by(own, "attack"):
            key = f"{name} | {' '.join(case)}"
            figures[f"psnr_mean {key}"] = fmean(means[name].values())
            figures[f"ssim_mean {key}"] = fmean(value for row in attack for value in row["ssim"])
            figures[f"seconds {key}"] = fmean(row["seconds"] for row in attack)
            if name != YARDSTICK and YARDSTICK in means:
                for word, value in paired(means[name], means[YARDSTICK]).items():
                    figures[f"{word} {key}"] = value
        for word in dict.fromkeys(word for row in own for word in row["without"]):
            values = [row["without"][word] for row in own if word in row["without"]]
            figures[f"psnr_mean {word} | {' '.join(case)}"] = fmean(values)
        named = [hit for row in own for hit in row.get("candidates", ())]
        if named:
            figures[f"candidates named | {' '.join(case)}"] = fmean(named)
    return figures


def paired(own: Mapping[Any, float], other: Mapping[Any, float]) -> dict[str, float]:
    """Returns the mean difference over batches, with its 95 % interval, in decibels."""
    differences = [own[batch] - other[batch] for batch in sorted(own)]
    interval = mean_interval(differences)
    assert interval is not None, "two batches or more"
    return {"gain": fmean(differences), "low": interval[0], "high": interval[1]}


def _by(rows: Sequence[Mapping[str, Any]], *keys: str) -> Iterator[tuple[tuple[str, ...], list]]:
    """Yields the rows by the values of some keys, in the order in which these first appear."""
    groups: dict[tuple[str, ...], list] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    yield from groups.items()


def _what(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["images"], row["update"], row["attack"]


def merged(
    before: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Returns the rows on record with those of attacks that were measured anew in their place."""
    new = {_what(row) for row in found}
    order = {entry.name: number for number, entry in enumerate(ENTRIES)}
    kept = [row for row in before if _what(row) not in new and row["attack"] in order]
    updates = [update.name for update in UPDATES]
    return sorted(
        [*kept, *found],
        key=lambda row: (row["images"], updates.index(row["update"]), order[row["attack"]]),
    )


def parser() -> argparse.ArgumentParser:
    """Returns what the command line takes."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument(
        "--images", nargs=5, action="append", required=True,
        metavar=("NAME", "TEST", "TRAIN", "GAN", "FLOW"),
    )  # fmt: skip
    made.add_argument("--update", action="append", choices=[update.name for update in UPDATES])
    made.add_argument("--attack", action="append", choices=[entry.name for entry in ENTRIES])
    made.add_argument("--part", default="1/1", help="K/N: every N-th job, from the K-th")
    made.add_argument("--freeze", action="store_true", help="record hashes that are not yet known")
    made.add_argument("--collect", action="store_true", help="write results/frozen.json only")
    return made


def jobs(options: argparse.Namespace) -> list[tuple[Case, Entry]]:
    """Returns what was asked for, attack by attack, so that every case has its first ones early."""
    wanted = options.attack or [entry.name for entry in ENTRIES]
    cases = [
        Case(pictures, update)
        for update in UPDATES
        if update.name in (options.update or [update.name])
        for pictures in map(Pictures.of, options.images)
    ]
    return [(case, entry) for entry in ENTRIES if entry.name in wanted for case in cases]


def main(arguments: list[str] | None = None) -> int:
    """Measures the jobs of a part, or collects what was measured."""
    options = parser().parse_args(arguments)
    all_jobs = jobs(options)
    for pictures in map(Pictures.of, options.images):
        path = RUNS / f"trained-{pictures.name}.safetensors"
        if not path.exists():
            trained_weights(pictures.train, path, seed=SEED)
    path = RESULTS / "frozen.json"
    before = read_json(path)["rows"] if path.exists() else []
    if not options.collect:
        known = {_what(row): row["version"] for row in before}
        part, parts = map(int, options.part.split("/"))
        for case, entry in all_jobs[part - 1 :: parts]:
            print(f"{case.name}: {entry.name}", flush=True)
            measure(case, entry, known=known, freeze=options.freeze)
        return 0
    rows = merged(before, [row for job in all_jobs for row in rows_of(*job)])
    written = write_results(
        "frozen",
        command=command_line("frozen", arguments or sys.argv[1:]),
        settings={
            "model": "convnet", "image_size": 32, "batch_size": BATCH_SIZE, "seed": SEED,
            "networks": [network.name for network in NETWORKS],
            "batches_of_each": BATCHES, "labels_known": True,
            "budget": {update.name: update.budget for update in UPDATES},
            "hashes": read_json(HASHES),
        },
        figures=figures_of(rows),
        rows=rows,
    )  # fmt: skip
    print(written.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
