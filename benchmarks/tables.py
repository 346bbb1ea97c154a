"""Writes the tables of README and docs from ``results/*.json``: ``make tables``.

A table stands between ``<!-- table:NAME -->`` and ``<!-- /table -->``, each on a line of its own,
and is made from ``results/NAME.json`` alone (``frozen-gains`` and ``frozen-networks``
from that of ``frozen``). A test fails when the two differ.
"""

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.engine_cases import ONE_GRAPH
from benchmarks.results import RESULTS, ROOT, SCHEMA, cases_of, figure_key
from gradinv.errors import ConfigError, GradinvError
from gradinv.evaluation.verdict import Level
from gradinv.files import read_json, write_text

Results = Mapping[str, Any]

_BLOCK = re.compile(
    r"^(?P<start><!-- table:(?P<name>[\w-]+) -->\n).*?^(?P<end><!-- /table -->)$",
    re.DOTALL | re.MULTILINE,
)
_START = re.compile(r"^<!-- table:", re.MULTILINE)
_ATTACK_COLUMNS = (
    "images",
    "defence",
    "attack",
    "PSNR, mean (dB)",
    "PSNR, best of batch (dB)",
    "SSIM, mean",
    "seconds per update",
    "n",
)


def attack_table(results: Results) -> str:
    """Returns a row for each (data, setting) and attack; the highest mean PSNR of each is bold.

    Raises:
        ConfigError: a figure is missing.
    """
    main = results["settings"]["main"]
    cases = cases_of(results["rows"])

    def figure(metric: str, data: str, setting: str, attack: str) -> float:
        key = figure_key(metric, attack, f"{data} {setting}", main)
        if key not in results["figures"]:
            raise ConfigError(
                f"expected figure '{key}' in results/{results['name']}.json, got none; "
                "measure it again"
            )
        return results["figures"][key]

    highest: dict[tuple[str, str], float] = {}
    for data, setting, attack in cases:
        value = figure("psnr_mean", data, setting, attack)
        highest[data, setting] = max(value, highest.get((data, setting), value))

    lines = [
        "| " + " | ".join(_ATTACK_COLUMNS) + " |",
        "|" + "|".join(["---"] * 3 + ["---:"] * 5) + "|",
    ]
    for (data, setting, attack), rows in cases.items():
        psnr = figure("psnr_mean", data, setting, attack)
        bold = "**" if psnr == highest[data, setting] else ""
        cells = (
            data,
            setting,
            f"`{attack}`",
            f"{bold}{psnr:.2f}{bold}",
            f"{figure('psnr_best', data, setting, attack):.2f}",
            f"{figure('ssim_mean', data, setting, attack):.3f}",
            f"{figure('seconds', data, setting, attack):.0f}",
            str(len(rows)),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


_PRIORS = {
    "untrained": "nothing: an untrained generator (`gi-w`)",
    "wrong": "a prior of other data",
    "learned": "**a prior learned from the updates**",
    "ceiling": "a prior trained on the real data",
}


def prior_table(results: Results) -> str:
    """Returns a row for each prior that a server may have, and for the outer steps of the learned.

    Raises:
        ConfigError: a figure is missing.
    """

    def figure(key: str) -> str:
        if key not in results["figures"]:
            raise ConfigError(
                f"expected figure '{key}' in results/{results['name']}.json, got none; "
                "measure it again"
            )
        return f"{results['figures'][key]:.2f}"

    *earlier, last = results["settings"]["snapshots"]
    distances = {"untrained": "| outer step 0", "learned": f"| outer step {last}"}
    lines = [
        "| prior | `gi-z`, PSNR (dB) | `gi-z/w`, PSNR (dB) | kernel distance of its samples |",
        "|---|---:|---:|---:|",
    ]
    for step in earlier:
        names = ("psnr_z learned", "psnr learned", "kernel_distance")
        cells = [figure(f"{name} | outer step {step}") for name in names]
        lines.append(f"| learned, outer step {step} | {' | '.join(cells)} |")
    for name, words in _PRIORS.items():
        cells = [
            "" if name == "untrained" else figure(f"psnr_z {name}"),
            figure(f"psnr {name}"),
            figure(f"kernel_distance {distances.get(name, name)}"),
        ]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def standard_table(results: Results) -> str:
    """Returns a row for each data set and network: ``standard`` and the others at equal time."""
    lines = [
        "| images | network, update | seconds | `gi-x` | `gi-z/w` | `standard` | gain (dB) "
        "| `standard` in a third of the time |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    cases = {(row["data"], row["model"]): row for row in results["rows"] if row["fraction"] == 1.0}
    for (data, model), row in cases.items():
        figures = [
            f"{results['figures'][f'{figure} {data} {model}{suffix}']:.2f}"
            for figure, suffix in (
                ("psnr_mean gi-x", ""),
                ("psnr_mean gi-z/w", ""),
                ("psnr_mean standard", ""),
                ("gain_db", ""),
                ("psnr_mean standard", " | a third"),
            )
        ]
        figures[2] = f"**{figures[2]}**"
        cells = (data, f"{model}, {row['setting']}", f"{row['seconds_allowed']:.0f}", *figures)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def engine_table(results: Results) -> str:
    """Returns a row for each case: every way's speed over plain double backward, and its memory.

    Memory of several restarts is over that of a loop and over that of one graph of them all.
    """
    ways = [way for way in dict.fromkeys(row["way"] for row in results["rows"]) if way != ONE_GRAPH]
    plain, exact, *others = ways
    lines = [
        f"| case | {plain}, ms | {' | '.join((exact, *others))} "
        f"| peak memory, {exact} over {plain} | error, {exact} |",
        "|---|" + "---:|" * (len(ways) + 2),
    ]
    cases: dict[str, dict[str, Any]] = {}
    for row in results["rows"]:
        cases.setdefault(row["case"], {})[row["way"]] = row
    for name, rows in cases.items():
        against = [rows[way]["peak_mib"] for way in (plain, ONE_GRAPH) if way in rows]
        memory = " / ".join(f"{rows[exact]['peak_mib'] / other:.2f}" for other in against)
        ratios = [f"{rows[way]['ratio']:.2f}x" for way in (exact, *others)]
        cells = (
            name, f"{rows[plain]['ms']:.0f}", *ratios, memory,
            f"{rows[exact]['error']:.0e}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ways_table(results: Results) -> str:
    """Returns a row for each way: where the same attack ends, and how far from the exact way."""
    figures = results["figures"]
    ways = list(dict.fromkeys(row["way"] for row in results["rows"]))
    lines = ["| way | PSNR, dB | against the exact way, dB |", "|---|---:|---:|"]
    for way in ways:
        difference = figures.get(f"psnr_difference {way}")
        shown = "" if difference is None else f"{difference:+.2f}"
        lines.append(f"| {way} | {figures[f'psnr_mean {way}']:.2f} | {shown} |")
    return "\n".join(lines)


def defense_table(results: Results) -> str:
    """Returns a row for each defence: what was shown of it, what is excluded, and what it costs."""
    figures, settings = results["figures"], results["settings"]
    lines = [
        "| defence | verdict | strongest attack: PSNR (dB) | SSIM | identified "
        "| named among candidates | no server names more than | (ε, δ) of one update "
        f"| accuracy, {settings['trained_on']} |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for verdict in settings["verdicts"]:
        defense = verdict["defense"]
        found = settings["strongest"][defense]
        identified = round(figures[f"identified {defense}"] * found["n"])
        bounds = [verdict[name] for name in ("ceiling", "closed_form") if verdict[name] is not None]
        epsilon, accuracy = verdict["epsilon"], figures.get(f"accuracy {defense}")
        cells = (
            f"`{defense}`", verdict["level"], f"{figures[f'psnr_mean {defense}']:.2f}",
            f"{figures[f'ssim_mean {defense}']:.2f}", f"{identified} of {found['n']}",
            f"{verdict['named_known']} of {found['n']} ({verdict['named']} without the rest)",
            f"{100 * min(bounds):.1f} %" if bounds else "–",
            f"({_thousands(epsilon)}, 1e-5)" if epsilon is not None else "–",
            f"{100 * accuracy:.1f} %" if accuracy is not None else "–",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _thousands(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def verdict_table(results: Results) -> str:
    """Returns a row for each image set, size of batch and kind of audit: how often which level."""
    levels = [level.value for level in Level]
    lines = [
        f"| images | images in a batch | what came back | {' | '.join(levels)} |",
        "|---|---:|---|" + "---:|" * len(levels),
    ]
    for row in results["rows"]:
        shares = [f"{100 * row[name]:.1f} %" for name in levels]
        lines.append(
            f"| {row['data']} | {row['batch_size']} | {row['case']} | {' | '.join(shares)} |"
        )
    return "\n".join(lines)


def noise_table(results: Results) -> str:
    """Returns a row for each image set: the least noise that excludes naming, and its price."""
    figures = results["figures"]
    lines = [
        "| images | update | least noise that excludes naming, σ | accuracy with it | without |",
        "|---|---|---:|---:|---:|",
    ]
    for name, setting in results["settings"]["sets"].items():
        for clip, words in (("", "as it is"), (" clip:1", "clipped to length 1")):
            costs = [figures.get(f"accuracy {name}{clip} {end}") for end in ("least", "none")]
            shown = ["–" if cost is None else f"{100 * cost:.1f} %" for cost in costs]
            sigma = figures[f"sigma_needed {name}{clip}"]
            lines.append(f"| {setting['words']} | {words} | {sigma:.2g} | {' | '.join(shown)} |")
    return "\n".join(lines)


def preflight_table(results: Results) -> str:
    """Returns a row for each planted fault: how often it was named, and how often another one."""
    figures = results["figures"]
    lines = [
        "| what is not as it is said | named, labels known | another fault named "
        "| named, labels hidden | another fault named |",
        "|---|---:|---:|---:|---:|",
    ]
    faults = dict.fromkeys(row["planted"] for row in results["rows"] if not row["sound"])
    for fault in faults:
        shares = [
            f"{100 * figures[f'{what} {fault} | labels {labels}']:.0f} %"
            for labels in ("known", "hidden")
            for what in ("right", "other")
        ]
        lines.append(f"| {fault} | {' | '.join(shares)} |")
    sound = sum(row["sound"] for row in results["rows"])
    alarms = f"{100 * figures['false_alarm']:.1f} %"
    lines.append(f"| nothing ({sound} sound updates) | | {alarms} | | |")
    return "\n".join(lines)


_CONTROLS = "what a server without the update would show"


def frozen_table(results: Results) -> str:
    """Returns a row for each attack and control: its mean PSNR in every case, the best in bold."""
    figures = results["figures"]
    cases = list(dict.fromkeys((row["images"], row["update"]) for row in results["rows"]))
    attacks = list(dict.fromkeys(row["attack"] for row in results["rows"]))
    controls = dict.fromkeys(name for row in results["rows"] for name in row["without"])

    def value(name: str, case: tuple[str, str]) -> float | None:
        return figures.get(f"psnr_mean {name} | {' '.join(case)}")

    best = {case: max(value(name, case) or 0.0 for name in attacks) for case in cases}
    lines = [
        "| attack | " + " | ".join(f"{images}, `{update}`" for images, update in cases) + " |",
        "|---|" + "---:|" * len(cases),
    ]
    for name in attacks:
        lines.append(f"| `{name}` |")
        for case in cases:
            bold = "**" if value(name, case) == best[case] else ""
            lines[-1] += f" {bold}{_decibels(value(name, case))}{bold} |"
    for name in controls:
        lines.append(f"| *{name}: {_CONTROLS}* |")
        lines[-1] += "".join(f" {_decibels(value(name, case))} |" for case in cases)
    lines.append("| *images that candidate search names* |")
    for case in cases:
        share = figures.get(f"candidates named | {' '.join(case)}")
        lines[-1] += f" {_decibels(None) if share is None else f'{100 * share:.0f} %'} |"
    return "\n".join(lines)


def gain_table(results: Results) -> str:
    """Returns a row for each image set and attack: its gain over ``gi-x``, with the interval."""
    figures = results["figures"]
    updates = list(dict.fromkeys(row["update"] for row in results["rows"]))
    lines = [
        "| images | attack | " + " | ".join(f"`{update}`" for update in updates) + " |",
        "|---|---|" + "---:|" * len(updates),
    ]
    for images, name in dict.fromkeys((row["images"], row["attack"]) for row in results["rows"]):
        keys = [f"{name} | {images} {update}" for update in updates]
        found = [[figures.get(f"{word} {key}") for word in ("gain", "low", "high")] for key in keys]
        if not any(gain is not None for gain, _, _ in found):
            continue
        cells = [
            "–" if gain is None else f"{gain:+.2f} [{low:+.2f}, {high:+.2f}]"
            for gain, low, high in found
        ]
        lines.append(f"| {images} | `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def network_table(results: Results) -> str:
    """Returns a row for each case and attack: its mean PSNR on the batches of each network."""
    networks = list(dict.fromkeys(row["network"] for row in results["rows"]))
    lines = [
        "| images | update | attack | " + " | ".join(networks) + " |",
        "|---|---|---|" + "---:|" * len(networks),
    ]
    found: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for row in results["rows"]:
        case = found.setdefault((row["images"], row["update"], row["attack"]), {})
        case.setdefault(row["network"], []).append(fmean(row["psnr"]))
    for (images, update, name), own in found.items():
        cells = [_decibels(fmean(own[network])) for network in networks]
        lines.append(f"| {images} | `{update}` | `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _decibels(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


RENDERERS: dict[str, Callable[[Results], str]] = {
    "audit-convnet": attack_table,
    "audit-resnet18": attack_table,
    "frozen": frozen_table,
    "frozen-gains": gain_table,
    "frozen-networks": network_table,
    "giml": prior_table,
    "standard": standard_table,
    "defences": defense_table,
    "verdict": verdict_table,
    "defences-sweep": noise_table,
    "preflight": preflight_table,
    "engine-cpu": engine_table,
    "engine-ways": ways_table,
}

FILES = {"frozen-gains": "frozen", "frozen-networks": "frozen"}
"""Tables that share the results of another."""


def source_line(results: Results) -> str:
    """Returns where the numbers of a table come from."""
    machine = results["machine"]
    commit, _, dirty = results["revision"].partition("-")
    where = f"{machine['cores']} cores of {machine['processor']}"
    if machine.get("accelerator"):
        where = f"{machine['accelerator']}, {where}"
    return (
        f"From `results/{results['name']}.json`: revision {commit[:12]}"
        f"{' with changes' if dirty else ''}, {results['date'][:10]}, {where}, "
        f"torch {results['versions']['torch']}."
    )


def render(name: str, folder: Path = RESULTS) -> str:
    """Returns the text of table ``name``; a sentence that says so where nothing is measured.

    Raises:
        ConfigError: there is no such table, or its results have another schema.
        StorageError: the results are not JSON.
    """
    if name not in RENDERERS:
        raise ConfigError(
            f"expected a table among {', '.join(RENDERERS)}, got '{name}'; "
            "add its renderer to benchmarks/tables.py"
        )
    file = FILES.get(name, name)
    path = Path(folder) / f"{file}.json"
    if not path.exists():
        return f"*Not measured yet: there is no `results/{file}.json`.*\n"
    results = read_json(path)
    if results.get("schema") != SCHEMA:
        raise ConfigError(
            f"expected schema {SCHEMA} in {path}, got {results.get('schema')}; measure it again"
        )
    return f"{RENDERERS[name](results)}\n\n{source_line(results)}\n"


def fill(text: str, folder: Path = RESULTS, *, where: str = "the text") -> str:
    """Returns the text with every table made anew.

    Raises:
        ConfigError: a table is not closed, or as :func:`render`.
    """
    filled, count = _BLOCK.subn(
        lambda block: block["start"] + render(block["name"], folder) + block["end"], text
    )
    if count != len(_START.findall(text)):
        raise ConfigError(
            f"expected every table of {where} to end with '<!-- /table -->', got one that does "
            "not; close it"
        )
    return filled


def documents(root: Path = ROOT) -> list[Path]:
    """Returns the files that may hold tables."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def main() -> int:
    """Rewrites the tables and names the files that changed; 2 and one line when it cannot."""
    try:
        for path in documents():
            text = path.read_text("utf-8")
            filled = fill(text, where=path.name)
            if filled != text:
                write_text(path, filled)
                print(f"wrote {path.relative_to(ROOT)}")
    except GradinvError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
