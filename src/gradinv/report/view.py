"""Everything that the page shows, in the order in which it shows it; the template only lays it out.

Values stay numbers as far as possible: the template prints them rounded, with the exact value
beside them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradinv.audit.truth import ADVICE, State
from gradinv.audit.ways import PLAIN
from gradinv.federated.defenses import defense_words
from gradinv.report import findings
from gradinv.report.charts import CostChart, Strip, cost_chart, strips
from gradinv.report.gallery import Evidence, Gallery, evidence_of, galleries_of, with_pictures
from gradinv.report.pictures import CellPictures
from gradinv.report.settings import settings_of
from gradinv.report.words import clean, is_number, plain, sentence_case


@dataclass(frozen=True)
class SummaryLine:
    """One row of the summary table."""

    row: Mapping[str, Any]
    level: str
    strongest: bool
    identified: str | None
    search: str | None
    strip: Strip | None


@dataclass(frozen=True)
class Curves:
    """The cost of one attack."""

    attack: str
    alt: str
    chart: CostChart
    truth: str | None


@dataclass(frozen=True)
class DefenseView:
    """Everything about one defence."""

    spec: str
    words: str
    strongest: Mapping[str, Any]
    level: str
    headline: str | None
    sentence: str
    identified: str | None
    candidates: Mapping[str, Any] | None
    bounds: tuple[tuple[str, str], ...]
    baselines: tuple[Mapping[str, Any], ...]
    others: int
    runner_up: Mapping[str, Any] | None
    runner_up_identified: str | None
    evidence: tuple[Evidence, ...]
    lines: tuple[SummaryLine, ...]
    galleries: tuple[Gallery, ...]
    longest_part: int
    curves: tuple[Curves, ...]


@dataclass(frozen=True)
class PageView:
    """The whole page."""

    version: str
    title: str
    lead: str
    facts: tuple[tuple[str, str], ...]
    defenses: tuple[DefenseView, ...]
    worst_first: tuple[DefenseView, ...]
    searched: bool
    axis: tuple[int, int] | None
    thinned: bool
    perceptual: bool
    recovered: bool
    metrics: tuple[str, ...]
    decoys: tuple[int, int] | None
    settings: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    cells: tuple[Mapping[str, Any], ...]
    classes: Mapping[tuple[int, int], str]
    notes: tuple[str, ...]


def page_view(audit: Mapping[str, Any], cells: Mapping[str, CellPictures]) -> PageView:
    """Gathers what the page shows.

    Args:
        audit: the content of a checked ``audit.json``.
        cells: pictures by the value of the cell's ``files``.
    """
    config = audit.get("config") or {}
    lines, axis = _summary_lines(audit)
    specs = findings.defenses(audit)
    views = tuple(_defense_view(audit, cells, spec, lines) for spec in specs)
    return PageView(
        version=plain(audit.get("gradinv")),
        title=clean(config.get("title") or "Gradient inversion audit"),
        lead=_lead(config),
        facts=_facts(config, specs, audit.get("notes") or ()),
        defenses=views,
        worst_first=tuple(views[specs.index(spec)] for spec in findings.worst_first(audit)),
        searched=any(findings.search_of(row) for row in audit["summary"]),
        axis=axis,
        thinned=any(curves.chart.thinned for view in views for curves in view.curves),
        perceptual=any(is_number(row.get("lpips_mean")) for row in audit["summary"]),
        recovered=any(is_number(row.get("label_accuracy")) for row in audit["summary"]),
        metrics=tuple(findings.others(audit)),
        decoys=findings.decoys(audit),
        settings=settings_of(config),
        cells=tuple(audit["cells"]),
        classes={
            (row["batch"], place): clean(name)
            for row, pictures in with_pictures(audit["cells"], cells)
            for place, name in enumerate(pictures.classes)
        },
        notes=tuple(clean(note) for note in audit.get("notes") or ()),
    )


def _lead(config: Mapping[str, Any]) -> str:
    size = config.get("batch_size")
    batch = f"a batch of {size} images" if is_number(size) and size != 1 else "a client's images"
    return (
        f"A client of federated learning computes an update on {batch} and sends only that. "
        "Here is what a curious server could make of it."
    )


def _facts(
    config: Mapping[str, Any], specs: Iterable[str], notes: Iterable[Any]
) -> tuple[tuple[str, str], ...]:
    statistics = {
        "none": "not revealed",
        "running": "running ones revealed",
        "exact": "the batch’s own revealed",
    }
    labels = {True: "known to the server", False: "unknown to the server"}
    images, labels_known = config.get("images"), config.get("labels_known")
    revealed = str(config.get("reveal_bn"))
    without_norm, prior = config.get("batch_norm_layers") == 0, config.get("prior")
    budget, owner = findings.budget(config), config.get("owner")
    shape = config.get("image_shape") or (None, config.get("image_size"), config.get("image_size"))
    pixels = "\u00a0×\u00a0".join(map(str, shape[1:])) if is_number(shape[1]) else None
    name = images.get("name") if isinstance(images, Mapping) else config.get("data")
    return (
        ("Date", plain(config.get("date"))),
        *((("Run by", clean(owner)),) if owner else ()),
        ("Client model", plain(config.get("model"))),
        ("Images", f"{plain(name)}, {pixels}" if pixels else plain(name)),
        ("Batch size", plain(config.get("batch_size"))),
        ("Batches", plain(config.get("batches"))),
        ("Defence", ", ".join(clean(spec) for spec in specs) or plain(None)),
        ("Update", _update(config)),
        ("Batch-norm mode", "no batch norm" if without_norm else plain(config.get("mode"))),
        ("Batch-norm statistics", statistics.get(revealed, plain(config.get("reveal_bn")))),
        ("Labels", labels[labels_known] if isinstance(labels_known, bool) else plain(None)),
        ("Prior", Path(clean(prior)).name if prior else "none"),
        ("Derivatives", _way(config, notes)),
        *((("Budget", budget),) if budget else ()),
    )


def _update(config: Mapping[str, Any]) -> str:
    """Returns what the client computed, ``FedAvg, 5 epochs in mini-batches of 2, lr 0.01``."""
    protocol = plain(config.get("protocol"))
    if protocol != "fedavg":
        return {"fedsgd": "FedSGD"}.get(protocol, protocol) + _client(config)
    epochs, images, lr, momentum = (
        config.get(f"local_{name}") for name in ("epochs", "batch_size", "lr", "momentum")
    )
    words = (
        f"FedAvg, {plain(epochs)} epoch{'' if epochs == 1 else 's'} in mini-batches of "
        f"{plain(images)}, lr {plain(lr)}"
    )
    return (f"{words}, momentum {plain(momentum)}" if momentum else words) + _client(config)


def _way(config: Mapping[str, Any], notes: Iterable[Any]) -> str:
    """Returns how the gradients of the attacks' costs were computed."""
    if config.get("protocol") == "fedavg":
        return "by autograd, through the simulated training"
    slower = any(str(note).startswith(PLAIN) for note in notes)
    return "by double backward, see Limits" if slower else "by the exact engine"


def _client(config: Mapping[str, Any]) -> str:
    """Returns the optimiser and the loss, where they are not the usual ones."""
    given = {name: config.get(name) for name in ("optimizer", "loss")}
    return "".join(f", {name} {clean(value)}" for name, value in given.items() if value is not None)


def _defense_view(
    audit: Mapping[str, Any],
    cells: Mapping[str, CellPictures],
    spec: str,
    lines: Mapping[int, SummaryLine],
) -> DefenseView:
    ranked = findings.attacks_ranked(audit, spec)
    rows = findings.summary_of(audit, spec)
    own = findings.verdict_of(audit, spec)
    verdict = own or findings.ranking(audit, spec)[0]
    level = verdict["level"] if verdict.get("level") in findings.LEVELS else ""
    return DefenseView(
        spec=clean(spec),
        words=sentence_case(clean(defense_words(spec))),
        strongest=ranked[0],
        level=level,
        headline=findings.headline(verdict),
        # The level stands beside the sentence already.
        sentence=findings.sentence(verdict).removeprefix(f"{level}: "),
        identified=findings.identified(ranked[0]),
        candidates=next((row for row in rows if row["attack"] == findings.CANDIDATES), None),
        bounds=tuple(findings.bounds(own)),
        baselines=tuple(findings.baselines(audit, spec)),
        others=len(ranked) - 1,
        runner_up=ranked[1] if len(ranked) > 1 else None,
        runner_up_identified=findings.identified(ranked[1]) if len(ranked) > 1 else None,
        evidence=evidence_of(findings.cells_of(audit, ranked[0]), cells),
        lines=tuple(lines[id(row)] for row in rows),
        # A name breaks after its colons; the column of names is as wide as its longest part.
        longest_part=max(len(part) for row in rows for part in clean(row["attack"]).split(":")) + 1,
        galleries=galleries_of([c for c in audit["cells"] if c["defense"] == spec], cells),
        curves=tuple(c for row in rows if (c := _curves(audit, cells, row))),
    )


def _summary_lines(
    audit: Mapping[str, Any],
) -> tuple[dict[int, SummaryLine], tuple[int, int] | None]:
    """Returns the lines of the summary table by the identity of their row, and the strips' axis."""
    rows = audit["summary"]
    values = []
    for row in rows:
        ends = row.get("psnr_ci95")
        whole = isinstance(ends, list) and len(ends) == 2 and all(map(is_number, ends))
        values.append(
            (
                [i["psnr"] for i in findings.images_of(audit, row) if is_number(i.get("psnr"))],
                row["psnr_mean"] if is_number(row.get("psnr_mean")) else None,
                (ends[0], ends[1]) if whole else None,
            )
        )
    laid_out = strips(values)
    strongest = [findings.ranking(audit, spec)[0] for spec in findings.defenses(audit)]
    return {
        id(row): SummaryLine(
            row=row,
            level=findings.level_of(row),
            strongest=any(row is other for other in strongest),
            identified=findings.identified(row),
            search=findings.search_of(row),
            strip=laid_out[0][index] if laid_out else None,
        )
        for index, row in enumerate(rows)
    }, (laid_out[1], laid_out[2]) if laid_out else None


def _curves(
    audit: Mapping[str, Any], cells: Mapping[str, CellPictures], row: Mapping[str, Any]
) -> Curves | None:
    shown = with_pictures(findings.cells_of(audit, row), cells)
    kept = [r.get("restart") if isinstance(r.get("restart"), int) else None for r, _ in shown]
    truths = [(r.get("truth") or {}).get("cost") for r, _ in shown]
    chart = cost_chart([pictures for _, pictures in shown], kept, truths)
    if chart is None:
        return None
    stages = " then ".join(band.name for band in chart.bands)
    alt = (
        f"Cost of {clean(row['attack'])} under {clean(row['defense'])} over {chart.frame.steps} "
        f"steps (stages {stages}), {len(shown)} batches, up to {chart.restarts} restarts"
    )
    return Curves(clean(row["attack"]), alt, chart, _truth(row))


def _truth(row: Mapping[str, Any]) -> str | None:
    """Returns where the searches ended beside the true images, and what to do about it."""
    found = findings.search_of(row)
    if found is None:
        return None
    first: State = next(state for state in ADVICE if row.get(state))
    return f"{found}: {ADVICE[first]}"
