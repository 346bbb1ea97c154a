"""The report against the run folder that it is made from."""

import base64
import copy
import doctest
import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from gradinv.errors import ConfigError, StorageError
from gradinv.files import load_tensors, save_tensors, write_json
from gradinv.report import (
    CellPictures,
    StagePictures,
    load_cells,
    read_cell,
    render_report,
    stage_grid_png,
    terminal_table,
    verdict_lines,
    words,
    write_report,
)
from gradinv.report.charts import MAX_POINTS, cost_chart, strips
from gradinv.report.poster import grid_png
from gradinv.report.settings import settings_of
from gradinv.report.words import duration, interval, number, plain, significant

STAGES = {"gi-x": ("x",), "gi-z/w": ("z", "w")}
DEFENSES = ("none", "clip:1+noise:0.01")
BATCHES = 2
SIZE = 3
HOSTILE = "<script>alert(1)</script>\"'><img src=https://example.org/x.png>&amp;"
CLASSES = ("boot", HOSTILE, "bad \udce9 name")


class Page(HTMLParser):
    """What the tests ask of a page: its elements, and the text in each."""

    def __init__(self, html):
        super().__init__()
        self.elements = []
        self.open = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "attrs": dict(attrs), "text": "", "inside": list(self.open)}
        self.elements.append(element)
        if tag not in {"meta", "img", "br", "wbr", "line", "polyline", "rect", "circle"}:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1]["tag"] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def find(self, tag, **attrs):
        wanted = {key.rstrip("_"): value for key, value in attrs.items()}
        return [
            element
            for element in self.elements
            if element["tag"] == tag
            and all(
                value in (element["attrs"].get(key) or "").split() for key, value in wanted.items()
            )
        ]

    def within(self, outer, tag):
        return [
            e for e in self.elements if e["tag"] == tag and any(o is outer for o in e["inside"])
        ]

    def section(self, name):
        return next(e for e in self.elements if e["attrs"].get("id") == name)


def text_of(element):
    return " ".join(element["text"].split())


def pictures(generator):
    return torch.randint(0, 256, (SIZE, 1, 8, 8), dtype=torch.uint8, generator=generator)


@pytest.fixture
def run(tmp_path, generator):
    """A small run folder: two attacks, two defences, two batches of three images."""
    folder = tmp_path / "run"
    originals = [pictures(generator) for _ in range(BATCHES)]
    cells, summary = [], []
    for defense in DEFENSES:
        for attack, stages in STAGES.items():
            rows = []
            for batch in range(BATCHES):
                slug = f"cells/{attack.replace('/', '_')}--{defense}--{batch}.safetensors"
                tensors = {"original": originals[batch], "reconstruction": pictures(generator)}
                for index in range(len(stages)):
                    tensors[f"stage/{index}/images"] = pictures(generator)
                    tensors[f"stage/{index}/cost"] = torch.rand(5, 2, generator=generator) + 0.01
                header = {
                    "kind": "cell", "schema": 1, "stages": [{"name": name} for name in stages],
                    "labels": [0, 1, 2], "classes": list(CLASSES),
                }  # fmt: skip
                save_tensors(folder / slug, tensors, header)
                images = [
                    {
                        "original": place, "reconstruction": (place + 1) % SIZE, "label": place,
                        "psnr": 10 + 10 * torch.rand((), generator=generator).item(),
                        "ssim": torch.rand((), generator=generator).item(), "lpips": None,
                        "mse": torch.rand((), generator=generator).item(),
                        "rank": place, "decoys": 15,
                    }
                    for place in reversed(range(SIZE))
                ]  # fmt: skip
                rows.append(
                    {
                        "attack": attack, "defense": defense, "batch": batch, "seed": 7,
                        "steps": 5 * len(stages), "seconds": 3.21, "objective": 0.0123,
                        "outcome": "all steps done", "restart": 1, "images": images,
                        "stages": [{"name": name, "psnr_mean": 11.5} for name in stages],
                        "files": slug, "status": "finished",
                    }
                )  # fmt: skip
            values = [image["psnr"] for row in rows for image in row["images"]]
            severe = attack == "gi-z/w" and defense == "none"
            level = "SEVERE" if severe else "PARTIAL"
            summary.append(
                {
                    "attack": attack, "defense": defense, "n": len(values),
                    "psnr_mean": float(np.mean(values)), "psnr_best": max(values),
                    "psnr_ci95": [min(values), max(values)], "ssim_mean": 0.4 + severe * 0.1,
                    "ssim_best": 0.9, "lpips_mean": None, "identified": 1 / 3, "seconds": 3.21,
                    "level": level, "verdict": f"{level}: {attack} tells 2 of 6: act",
                }
            )  # fmt: skip
            cells += rows
    config = {
        "model": "convnet", "batch_size": SIZE, "batches": BATCHES, "mode": "eval",
        "protocol": "fedsgd", "reveal_bn": "none", "labels_known": True, "image_size": 8,
        "seed": 7, "defense": list(DEFENSES), "data": None, "images": {"name": HOSTILE},
        "versions": {"torch": "2.13.0"},
        "attacks": {"gi-x": {"kind": "Attack", "stages": [{"kind": "Stage", "steps": 5}]}},
    }  # fmt: skip
    write_json(
        folder / "audit.json",
        {
            "schema": 1, "gradinv": "0.1.0", "config": config, "cells": cells, "summary": summary,
            "notes": ["This audits data that its user holds.", f"A note, {HOSTILE}"],
        },
    )  # fmt: skip
    return folder


def audit_of(run):
    return json.loads((run / "audit.json").read_text())


def page_of(run):
    return Page(write_report(run).read_text())


# The page


def test_page_loads_nothing_and_runs_nothing(run):
    html = write_report(run).read_text()
    page = Page(html)
    assert not page.open, "an element was left open"
    loading = ("src", "href", "srcset", "data", "poster", "action", "xlink:href", "background")
    for element in page.elements:
        for name, value in element["attrs"].items():
            assert not name.startswith("on")
            if name in loading:
                assert value.startswith(("data:image/png;base64,", "#"))
    assert not {"script", "link", "iframe", "object", "base"} & {e["tag"] for e in page.elements}
    style = page.find("style")[0]["text"]
    assert "url(" not in style
    assert "@import" not in style
    policy = next(e for e in page.find("meta") if "http-equiv" in e["attrs"])["attrs"]["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_links_lead_to_sections(run):
    page = page_of(run)
    names = {element["attrs"].get("id") for element in page.elements}
    links = [element["attrs"]["href"] for element in page.find("a")]
    assert len(links) == 7
    assert all(link[1:] in names for link in links)


def decoded(page):
    """Returns the pixels of every picture on the page."""
    start = "data:image/png;base64,"
    return {
        np.asarray(
            Image.open(io.BytesIO(base64.b64decode(e["attrs"]["src"].removeprefix(start))))
        ).tobytes()
        for e in page.find("img")
    }


def test_every_picture_is_there_exactly(run):
    shown = decoded(page_of(run))
    for path in run.glob("cells/*.safetensors"):
        tensors, header = load_tensors(path, what="a cell")
        last = len(header["stages"]) - 1
        for name, images in tensors.items():
            # Where the last stage ends is the reconstruction; it is shown once.
            if not name.endswith("cost") and name != f"stage/{last}/images":
                assert all(image.numpy().tobytes() in shown for image in images), name


def test_every_picture_has_words(run):
    images = page_of(run).find("img")
    assert images
    assert all(len(image["attrs"]["alt"]) > 5 for image in images)


def test_colour_pictures_keep_their_colours(run, generator):
    path = sorted(run.glob("cells/*"))[0]
    tensors, header = load_tensors(path, what="a cell")
    colours = {n: t if n.endswith("cost") else t.repeat(1, 3, 1, 1) for n, t in tensors.items()}
    colours["reconstruction"][:, 2] = 0
    save_tensors(path, colours, header)
    audit = audit_of(run)
    name = path.relative_to(run).as_posix()
    audit["cells"] = [row for row in audit["cells"] if row["files"] == name]
    shown = decoded(Page(render_report(audit, load_cells(run, audit))))
    picture = np.moveaxis(colours["reconstruction"][0].numpy(), 0, -1)
    assert np.ascontiguousarray(picture).tobytes() in shown


def test_gallery_has_originals_first_then_a_row_for_every_stage(run):
    page = page_of(run)
    galleries = page.find("table", class_="pictures")
    assert len(galleries) == len(DEFENSES) * BATCHES
    for gallery in galleries:
        heads = [text_of(e) for e in page.within(gallery, "th")]
        assert [head.split()[0] for head in heads] == ["Original", "gi-x", "gi-z/w", "w"]
        assert "z latent code" in heads[2]
        assert "mean 11.5" in heads[3]
        assert len(page.within(gallery, "img")) == SIZE * (1 + 1 + 2)


def gallery_scores(run):
    """Returns (PSNR, starred) of the final pictures in the order of the page."""
    page = page_of(run)
    scores = []
    for element in page.find("span", class_="psnr"):
        value = page.within(element, "data")[0]["attrs"]["value"]
        scores.append((float(value), "★" in element["text"]))
    return scores


def test_long_names_break_after_colons_alone(run):
    audit = audit_of(run)
    for row in (*audit["cells"], *audit["summary"]):
        row["attack"] = row["attack"].replace("gi-x", "gi-x:fedavg=approximate:tv=<b>")
    page = Page(render_report(audit, load_cells(run, audit)))
    for section in ("verdict", "numbers", "pictures", "cost", "settings"):
        parts = [e["text"] for e in page.within(page.section(section), "span")
                 if e["attrs"].get("class") == "part"]  # fmt: skip
        assert ["gi-x:", "fedavg=approximate:", "tv=<b>"] in [
            parts[at : at + 3] for at in range(len(parts))
        ]
        assert len(page.within(page.section(section), "wbr")) >= 2
    galleries = page.find("div", class_="galleries")[0]
    assert galleries["attrs"]["style"].endswith(f"--name: {len('fedavg=approximate:')}")


def test_psnr_under_each_final_picture_is_that_of_the_audit_and_the_best_is_marked(run):
    audit = audit_of(run)
    expected = []
    for defense in DEFENSES:
        for batch in range(BATCHES):
            rows = [c for c in audit["cells"] if (c["defense"], c["batch"]) == (defense, batch)]
            by_place = [{i["original"]: i["psnr"] for i in row["images"]} for row in rows]
            for scores in by_place:
                for place in range(SIZE):
                    best = max(other[place] for other in by_place)
                    expected.append((scores[place], scores[place] == best))
    assert gallery_scores(run) == expected


def test_one_attack_alone_is_not_the_best_of_anything(run):
    audit = audit_of(run)
    for part in ("cells", "summary"):
        audit[part] = [row for row in audit[part] if row["attack"] == "gi-x"]
    write_json(run / "audit.json", audit)
    assert not any(starred for _, starred in gallery_scores(run))


def test_control_below_the_pictures(run):
    ranks = [text_of(e) for e in page_of(run).find("span", class_="rank")]
    assert ranks[:SIZE] == ["identified", "rank 2/16", "rank 3/16"]


def test_nothing_is_identified_without_decoys(run):
    audit = audit_of(run)
    for row in audit["cells"]:
        for image in row["images"]:
            image.update(rank=0, decoys=0)
    write_json(run / "audit.json", audit)
    page = page_of(run)
    assert not page.find("span", class_="rank")
    assert "The control was not made" in page.section("control")["text"]


def test_control_is_explained_with_its_numbers(run):
    text = text_of(page_of(run).section("control"))
    assert "15 decoys" in text
    assert "once in 16 times" in text


def table_rows(page, table):
    """Returns the cells of each row of a table, the exact number where there is one."""
    rows = []
    for row in page.within(table, "tr"):
        cells = []
        for cell in (e for e in page.elements if e["tag"] in {"th", "td"} and row in e["inside"]):
            values = page.within(cell, "data")
            cells.append(float(values[0]["attrs"]["value"]) if values else text_of(cell))
        rows.append(cells)
    return rows


def test_summary_table_equals_the_audit(run):
    page = page_of(run)
    rows = table_rows(page, page.find("table", class_="numbers")[0])
    shown = [row for row in rows if row[0] in STAGES]
    audit = audit_of(run)
    assert len(shown) == len(audit["summary"])
    for row, expected in zip(shown, audit["summary"], strict=True):
        low, high = expected["psnr_ci95"]
        assert row[:8] == [
            expected["attack"], expected["level"], "2 of 6", expected["psnr_mean"],
            f"{low:.2f} to {high:.2f}", expected["psnr_best"], expected["ssim_mean"], "3.2 s",
        ]  # fmt: skip


def test_summary_table_shows_a_level_of_any_name_and_a_dash_for_none(run):
    audit = audit_of(run)
    audit["summary"][0]["level"] = "A NEW <LEVEL>"
    del audit["summary"][1]["level"]
    page = Page(render_report(audit, load_cells(run, audit)))
    rows = table_rows(page, page.find("table", class_="numbers")[0])
    assert [row[1] for row in rows if row[0] in STAGES] == [
        "A NEW <LEVEL>", "–", "PARTIAL", "PARTIAL",
    ]  # fmt: skip


def test_numbers_are_rounded_for_the_eye(run):
    page = page_of(run)
    first = page.within(page.section("numbers"), "data")[0]
    assert first["text"] == f"{audit_of(run)['summary'][0]['psnr_mean']:.2f}"


def test_every_cell_and_every_image_is_listed(run):
    page = page_of(run)
    audit = audit_of(run)
    cells, images = page.find("table", class_="numbers")[1:]
    assert [row[:8] for row in table_rows(page, cells)[1:]] == [
        [c["attack"], c["defense"], str(c["batch"]), "7", str(c["steps"]), "3.2 s", "0.0123",
         "all steps done"]
        for c in audit["cells"]
    ]  # fmt: skip
    listed = table_rows(page, images)[1:]
    expected = [(c, i) for c in audit["cells"] for i in c["images"]]
    assert [(row[0], row[3], row[5], row[6], row[7], row[8]) for row in listed] == [
        (c["attack"], str(i["original"]), i["psnr"], i["ssim"], i["mse"], f"{i['rank'] + 1}/16")
        for c, i in expected
    ]


def test_verdict_names_the_gravest_attack_on_each_defence(run):
    page = page_of(run)
    cards = page.find("article", class_="verdict")
    assert [e["attrs"]["class"].split()[-1] for e in cards] == ["level-severe", "level-partial"]
    text = text_of(cards[0])
    assert "Images come back recognisably. 2 of 6 identified." in text
    assert "gi-z/w tells 2 of 6: act." in text
    assert "Strongest of 2 attacks: gi-z/w. Next: gi-x" in text
    best = max(
        i["psnr"]
        for c in audit_of(run)["cells"]
        if (c["attack"], c["defense"]) == ("gi-z/w", "none")
        for i in c["images"]
    )
    assert f"best of 6: original, rebuilt {best:.1f} dB" in text


def facts_of(page):
    sheet = page.find("dl", class_="facts")[0]
    names, values = (page.within(sheet, tag) for tag in ("dt", "dd"))
    return {text_of(a): text_of(b) for a, b in zip(names, values, strict=True)}


def test_setting_is_at_the_top(run):
    facts = facts_of(page_of(run))
    assert facts["Client model"] == "convnet"
    assert facts["Batch size"] == str(SIZE)
    assert facts["Derivatives"] == "by the exact engine"
    assert facts["Defence"] == "none, clip:1+noise:0.01"
    assert facts["Update"] == "FedSGD"
    assert facts["Labels"] == "known to the server"
    assert facts["Batch-norm mode"] == "eval"
    assert facts["Prior"] == "none"
    assert "Budget" not in facts  # an audit that does not say


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"gi-x": 0.01, "gi-z/w": 0.01}, "1 % of the preset’s steps: a first look only"),
        ({"gi-x": 1.0, "gi-z/w": 1.0}, "all of the preset’s steps"),
        ({"gi-x": 2.0}, "200 % of the preset’s steps"),
        ({"gi-x": 0.025, "gi-z/w": 1.0},
         "gi-x 2.5 %, gi-z/w all of the presets’ steps: a first look only"),
    ],
)  # fmt: skip
def test_budget_prior_and_absent_batch_norm_are_at_the_top(run, budget, said):
    audit = audit_of(run)
    audit["config"] |= {"budget": budget, "prior": "far/away/faces", "batch_norm_layers": 0}
    facts = facts_of(Page(render_report(audit, load_cells(run, audit))))
    assert facts["Budget"] == said
    assert facts["Prior"] == "faces"
    assert facts["Batch-norm mode"] == "no batch norm"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"local_epochs": 5, "local_batch_size": 4, "local_lr": 0.05, "local_momentum": 0.0},
         "FedAvg, 5 epochs in mini-batches of 4, lr 0.05"),
        ({"local_epochs": 1, "local_batch_size": 2, "local_lr": 0.1, "local_momentum": 0.9},
         "FedAvg, 1 epoch in mini-batches of 2, lr 0.1, momentum 0.9"),
    ],
)  # fmt: skip
def test_local_training_is_at_the_top_too(run, settings, words):
    audit = audit_of(run)
    audit["config"] |= {"protocol": "fedavg", **settings}
    write_json(run / "audit.json", audit)
    assert words in text_of(page_of(run).find("dl", class_="facts")[0])


def test_settings_are_all_there():
    groups = dict(
        settings_of(
            {
                "seed": 7,
                "attack": ["a", "b"],
                "versions": {"torch": "2.13.0"},
                "attacks": {"gi-x": {"kind": "Attack", "stages": [{"kind": "Stage", "steps": 5}]}},
                "nothing": {},
            }
        )
    )
    assert groups == {
        "Settings": (("seed", "7"), ("attack", "a, b")),
        "Versions": (("torch", "2.13.0"),),
        "Attacks: gi-x": (("kind", "Attack"), ("stages.1", "Stage"), ("stages.1.steps", "5")),
    }


def test_responsible_use_is_said(run):
    text = text_of(page_of(run).section("limits"))
    assert text.count("This audits data that its user holds.") == 1
    assert "A note" in text


def test_hostile_names_stay_text(run):
    page = page_of(run)
    titles = [e["attrs"]["title"] for e in page.find("span", class_="class")]
    assert HOSTILE in titles
    assert "bad ? name" in titles
    assert any(HOSTILE in e["attrs"]["alt"] for e in page.find("img"))
    assert HOSTILE in page.section("limits")["text"]
    assert not page.find("script")
    assert "&lt;script&gt;" in write_report(run).read_text()


def test_hostile_attack_and_defence_stay_text(run):
    content = (run / "audit.json").read_text().replace("gi-x", HOSTILE.replace('"', '\\"'))
    (run / "audit.json").write_text(content.replace(json.dumps("none"), json.dumps(HOSTILE)))
    audit = audit_of(run)
    for row in audit["cells"]:
        row["files"] = None
    page = Page(render_report(audit, {}))
    assert not page.find("script")
    assert HOSTILE in page.section("numbers")["text"]
    assert HOSTILE in page.section("pictures")["text"]


def test_absent_and_non_finite_values_are_dashes(run):
    audit = audit_of(run)
    for row in audit["summary"]:
        row.update(psnr_mean=None, psnr_best=float("nan"), psnr_ci95=None, ssim_mean=float("inf"))
        del row["identified"], row["verdict"], row["level"]
    for row in audit["cells"]:
        row.update(objective=None, seconds=None, stages=None, restart=None, outcome=None)
        for image in row["images"]:
            image.update(psnr=None, ssim=float("nan"), mse=None, rank=None, decoys=None)
    audit["config"] = {}
    page = Page(render_report(audit, load_cells(run, audit)))
    body = page.find("body")[0]["text"]
    assert not re.search(r"\b(nan|inf|None|null)\b", body)
    rows = table_rows(page, page.find("table", class_="numbers")[0])
    assert rows[2][:6] == ["gi-x", "–", "–", "–", "–", "–"]


def test_lpips_has_columns_only_where_it_was_measured(run):
    audit = audit_of(run)
    cells = load_cells(run, audit)
    assert "LPIPS" not in Page(render_report(audit, cells)).section("numbers")["text"]
    audit["summary"][0]["lpips_mean"] = 0.321
    page = Page(render_report(audit, cells))
    rows = table_rows(page, page.find("table", class_="numbers")[0])
    assert rows[2][7] == 0.321
    assert rows[3][7] == "–"


def test_recovered_labels_have_columns_only_where_labels_were_hidden(run):
    audit = audit_of(run)
    cells = load_cells(run, audit)
    assert "labels found" not in Page(render_report(audit, cells)).find("body")[0]["text"]
    audit["summary"][0]["label_accuracy"] = 0.875
    audit["cells"][0]["label_recovery"] = {"accuracy": 0.75}
    page = Page(render_report(audit, cells))
    summary, single = page.find("table", class_="numbers")[:2]
    rows = table_rows(page, summary)
    assert rows[0][7] == "labels found"
    assert (rows[2][7], rows[3][7]) == ("88 %", "–")
    rows = table_rows(page, single)
    assert (rows[1][7], rows[2][7]) == ("75 %", "–")


def test_cells_without_pictures_are_named(run):
    audit = audit_of(run)
    audit["cells"][0].update(files=None, outcome=None, status="stopped")
    page = Page(render_report(audit, load_cells(run, audit)))
    assert "No pictures of gi-x: stopped" in page.section("pictures")["text"]


def test_empty_audit_is_a_page(run):
    page = Page(render_report({"schema": 1, "cells": [], "summary": []}, {}))
    assert "Nothing was attacked." in page.section("verdict")["text"]


def test_many_batches_are_folded(run):
    audit = audit_of(run)
    extra = [dict(row, batch=row["batch"] + 2) for row in audit["cells"]]
    audit["cells"] += extra
    page = Page(render_report(audit, load_cells(run, audit)))
    unfolded = ["open" in e["attrs"] for e in page.find("details", class_="gallery")]
    assert unfolded == [True, True, False, False] * len(DEFENSES)


def test_file_is_small_and_the_same_twice(run):
    first = write_report(run).read_bytes()
    pixels = sum(path.stat().st_size for path in run.glob("cells/*"))
    assert len(first) < 60_000 + 3 * pixels
    assert write_report(run).read_bytes() == first


def test_cost_curves_of_every_attack(run):
    page = page_of(run)
    charts = page.find("svg", class_="chart")
    assert len(charts) == len(DEFENSES) * len(STAGES)
    assert "stages z then w" in charts[1]["attrs"]["aria-label"]
    # Two batches of two restarts in each stage, of which one is kept.
    lines = page.within(charts[1], "polyline")
    assert [line["attrs"]["class"] for line in lines] == ["thin"] * 4 + ["thick"] * 4
    stages = [text_of(e) for e in page.find("text", class_="stage") if charts[1] in e["inside"]]
    assert stages == ["z", "w"]


# Charts


def cell_with(*costs):
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    stages = tuple(
        StagePictures("xzw"[index], images, torch.tensor(cost)) for index, cost in enumerate(costs)
    )
    return CellPictures(images, images, stages, ("a",))


def points(line):
    return [tuple(map(float, point.split(","))) for point in line.split()]


def test_cost_is_logarithmic_and_falls_downwards():
    chart = cost_chart([cell_with([[1.0], [0.1], [0.01]])])
    assert chart is not None
    (_, first), (_, second), (_, third) = points(chart.thick[0])
    assert first < second < third
    assert second - first == pytest.approx(third - second, abs=0.11)
    assert chart.thin == ()


def test_kept_restart_is_thick():
    cell = cell_with([[1.0, 2.0, 3.0], [0.5, 0.1, 0.9]])
    by_cost, by_choice = cost_chart([cell]), cost_chart([cell], [2])
    assert by_cost is not None
    assert by_choice is not None
    # Down is larger in SVG: the restart of cost 0.1 ends lowest, that of 0.9 highest.
    ends = {points(line)[-1][1] for line in (*by_cost.thin, *by_cost.thick)}
    assert points(by_cost.thick[0])[-1][1] == max(ends)
    assert points(by_choice.thick[0])[-1][1] == min(ends)
    assert len(by_cost.thin) == 2


def test_gap_where_a_cost_is_not_finite():
    nan = math.nan
    chart = cost_chart([cell_with([[1.0, 1.0], [nan, 0.5], [0.5, nan], [0.4, nan]])])
    assert chart is not None
    assert chart.lost == 1
    assert [len(points(line)) for line in chart.thick] == [2, 2]  # a lone point is a dot
    assert len(chart.thin) == 1


@pytest.mark.parametrize("cost", [[[math.nan], [math.inf]], [[0.0], [-1.0]]])
def test_no_chart_without_a_positive_cost(cost):
    assert cost_chart([cell_with(cost)]) is None


def test_no_chart_without_stages():
    assert cost_chart([]) is None
    assert cost_chart([cell_with()]) is None


def test_long_searches_are_thinned_to_medians():
    curve = torch.linspace(1, 0.5, 10 * MAX_POINTS)[:, None]
    curve[5] = 1e6  # a spike, which a median does not follow
    chart = cost_chart([cell_with(curve.tolist())])
    assert chart is not None
    assert chart.thinned
    assert len(points(chart.thick[0])) == MAX_POINTS
    assert min(y for _, y in points(chart.thick[0])) > chart.frame.top + 50


def test_stages_stand_side_by_side():
    chart = cost_chart([cell_with([[1.0]] * 3, [[0.5]] * 1)])
    assert chart is not None
    assert [band.name for band in chart.bands] == ["x", "z"]
    left, right = chart.bands
    assert left.right == right.left
    assert right.right == chart.frame.right
    assert left.right - left.left == pytest.approx(3 * (right.right - right.left))
    assert [tick.label for tick in chart.x_ticks] == ["0", "3", "4"]


@given(
    low=st.floats(1e-12, 1e3),
    ratio=st.floats(1, 1e9),
    steps=st.lists(st.integers(1, 40), max_size=2),
)
def test_everything_lies_inside_the_chart(low, ratio, steps):
    chart = cost_chart([cell_with(*([[low]] * n + [[low * ratio]] for n in (*steps, 2)))])
    assert chart is not None
    frame = chart.frame
    assert 1 <= len(chart.y_ticks) <= 9
    assert all(frame.top - 0.1 <= tick.at <= frame.bottom + 0.1 for tick in chart.y_ticks)
    assert [t.at for t in chart.x_ticks] == sorted(t.at for t in chart.x_ticks)
    assert chart.x_ticks[-1].label == str(frame.steps)
    for line in chart.thick:
        for x, y in points(line):
            assert frame.left <= x <= frame.right + 0.1
            assert frame.top - 0.1 <= y <= frame.bottom + 0.1


def test_strips_share_one_axis():
    laid_out = strips([([10.2, 19.8], 15.0, (11.0, 19.0)), ([], None, None)])
    assert laid_out is not None
    (first, second), low, high = laid_out
    assert (low, high) == (10, 20)
    assert first.mean == pytest.approx(50)
    assert first.interval == (pytest.approx(12.4), pytest.approx(87.6))
    assert second.dots == ()


def test_strips_of_one_value_and_of_none():
    laid_out = strips([([12.0], 12.0, None)])
    assert laid_out is not None
    assert laid_out[0][0].dots == (50.0,)
    assert strips([([], None, None)]) is None


# Words


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.42, "0.4 s"), (9.96, "10 s"), (59.7, "1 min 00 s"), (200.4, "3 min 20 s"),
     (7500, "2 h 05 min"), (None, "–"), (math.nan, "–")],
)  # fmt: skip
def test_durations(seconds, said):
    assert duration(seconds) == said


def test_examples_in_docstrings():
    results = doctest.testmod(words)
    assert results.attempted > 0
    assert results.failed == 0


def test_numbers_in_words():
    assert number(17.256, 1) == "17.3"
    assert number(True) == number("7") == number(-math.inf) == "–"
    assert significant(0.000123456) == "0.000123"
    assert interval([1, 2.345]) == "1.00 to 2.35"
    assert interval([1, None]) is None
    assert plain([1, None, True, 0.5, {"a": "b"}]) == "1, –, yes, 0.5, a b"


# The terminal


def printed(audit, width=120):
    file = io.StringIO()
    Console(file=file, width=width).print(terminal_table(audit))
    return file.getvalue()


def test_terminal_table_equals_the_audit(run):
    audit = audit_of(run)
    text = printed(audit)
    assert "LPIPS" not in text
    for row in audit["summary"]:
        line = next(line for line in text.splitlines() if f"{row['psnr_mean']:.2f}" in line)
        assert row["attack"] in line
        assert f"{row['ssim_mean']:.3f}" in line
        assert "2 of 6" in line


def test_terminal_table_says_the_level_of_every_row_whatever_its_name(run):
    audit = audit_of(run)
    audit["summary"][1]["level"] = "A NEW LEVEL"
    del audit["summary"][3]["level"]
    shown = [re.split("  +", line.strip())[:2] for line in printed(audit).splitlines()]
    assert shown == [
        ["Attack", "Level"],
        ["none"], ["gi-x", "PARTIAL"], ["gi-z/w", "A NEW LEVEL"],
        ["clip:1+noise:0.01"], ["gi-x", "PARTIAL"], ["gi-z/w", "–"],
    ]  # fmt: skip


LONG = "gi-z/w:tv=0.0001,0.00001:lr=0.03,0.001:steps=1000,2000:restarts=16"


@pytest.mark.parametrize("width", [160, 80, 60, 40])
def test_terminal_table_never_cuts_a_name_and_loses_the_interval_first(run, width):
    audit = audit_of(run)
    specs = ["sparsify:0.9512345", "sparsify:0.9512345+clip:1.25"]
    audit["summary"] = [{**audit["summary"][1], "attack": LONG, "defense": spec} for spec in specs]
    first, *rest = printed(audit, width).splitlines()
    assert all(len(line) <= width for line in (first, *rest))
    assert [line.strip() for line in rest if line.startswith("sparsify")] == specs
    names = first.index("Level")
    table = "\n".join(rest).partition("(no room")[0].splitlines()
    folded = [line[:names].strip() for line in table if not line.startswith("sparsify")]
    assert "".join(folded) == 2 * LONG
    for text in ("SEVERE", f"{audit['summary'][0]['psnr_mean']:.2f}", "2 of 6"):
        assert sum(text in line for line in rest) == 2
    assert ("95 % CI" in first) == (width == 160)
    assert ("no room for 95 % CI" in " ".join(rest)) == (width < 160)


def test_terminal_table_of_short_names_keeps_all_but_the_interval(run):
    first, *rest = printed(audit_of(run), 76).splitlines()
    assert "95 % CI" not in first
    assert all(name in first for name in ("best", "SSIM", "identified", "per batch"))
    assert rest[-1].strip() == "(no room for 95 % CI: see the report)"
    assert "95 % CI" in printed(audit_of(run), 80)


def test_terminal_table_folds_names_after_colons(run):
    audit = audit_of(run)
    audit["summary"] = audit["summary"][:1]
    audit["summary"][0]["attack"] = "gi-x:fedavg=approximate:steps=30"
    lines = [line.split(" ")[0] for line in printed(audit, 70).splitlines()]
    assert lines[1:] == ["gi-x:fedavg=approximate:", "steps=30", "(no"]


def test_terminal_table_of_nothing_is_empty():
    assert not printed({"schema": 1, "cells": [], "summary": []}).strip()


def test_terminal_table_shows_lpips_where_it_was_measured(run):
    audit = audit_of(run)
    audit["summary"][0]["lpips_mean"] = 0.321
    assert "0.321" in printed(audit)


def test_terminal_table_shows_how_many_labels_were_found_where_they_were_hidden(run):
    audit = audit_of(run)
    assert "labels found" not in printed(audit)
    audit["summary"][0]["label_accuracy"] = 0.875
    text = printed(audit)
    assert "labels found" in text
    assert "88 %" in text


def test_terminal_table_prints_markup_as_text(run):
    audit = audit_of(run)
    audit["summary"][0]["attack"] = "[bold red]x[/] \udce9"
    assert "[bold red]x[/] ?" in printed(audit)


def test_terminal_table_of_one_defence_does_not_name_it(run):
    audit = audit_of(run)
    assert "\nnone\n" in re.sub(" +\n", "\n", printed(audit))
    audit["summary"] = audit["summary"][:2]
    assert "none" not in printed(audit)


def test_verdict_lines_come_one_for_each_defence_and_the_gravest_first(run):
    audit = audit_of(run)
    assert verdict_lines(audit) == [
        "none: SEVERE: gi-z/w tells 2 of 6: act",
        "clip:1+noise:0.01: PARTIAL: gi-x tells 2 of 6: act",
    ]
    audit["summary"][0]["level"] = audit["summary"][1]["level"] = "OPEN"
    audit["summary"][3].update(level="SEVERE", ssim_mean=0.9, verdict=None)
    line = verdict_lines(audit)[0]
    assert line.startswith(
        "clip:1+noise:0.01: gi-z/w against clip:1+noise:0.01: 2 of 6 images identified, mean PSNR"
    )
    assert "\n" not in line


def test_verdict_lines_of_nothing():
    assert verdict_lines({"schema": 1, "cells": [], "summary": []}) == ["Nothing was attacked."]


# What no server can do


def with_verdicts(run):
    """Returns the audit with verdicts, candidate search and baselines, and its pictures."""
    audit = audit_of(run)
    common = {
        "n": 6, "candidates": 64, "luck": 0.1, "named": 1, "named_known": 2, "delta": 1e-5,
        "rounds": 3, "stalled": True,
    }  # fmt: skip
    audit["verdicts"] = [
        {
            "defense": "none", "level": "PARTIAL",
            "sentence": "PARTIAL: a server names 2 of 6: act",
            "attack": "candidates", "identified": 2, **common, "ceiling": None,
            "ceiling_interval": None, "ceiling_refusal": "no <noise>", "closed_form": None,
            "closed_form_refusal": "no clip", "epsilon": None, "epsilon_refusal": "no clip",
            "sigma_needed": 0.1234,
        },
        {
            "defense": "clip:1+noise:0.01", "level": "EXCLUDED",
            "sentence": "EXCLUDED: no server names more than 7 %: know this",
            "attack": "candidates", "identified": 0, **common, "ceiling": 0.07,
            "ceiling_interval": [0.068, 0.0725], "ceiling_refusal": None, "closed_form": 0.25,
            "closed_form_refusal": None, "epsilon": 12.345, "epsilon_refusal": None,
            "sigma_needed": None,
        },
    ]  # fmt: skip
    for index, defense in enumerate(DEFENSES):
        audit["summary"].insert(
            3 * index + 2,
            {
                "attack": "candidates", "defense": defense, "n": 6, "psnr_mean": None,
                "psnr_best": None, "psnr_ci95": None, "ssim_mean": None, "lpips_mean": None,
                "identified": 2 / 6, "seconds": 1.5, "level": "PARTIAL", "verdict": "PARTIAL: x",
            },
        )  # fmt: skip
        audit["summary"][3 * index].update(stalled=2, reached=0, passed=0)
    row = {"n": 6, "psnr_mean": 11.0, "ssim_mean": 0.25, "lpips_mean": None, "identified": 0.5}
    audit["baselines"] = [
        {"name": "label mean", "attack": None, "defense": None, **row},
        {"name": "placebo", "attack": "gi-x", "defense": "none", **row},
        {"name": "placebo", "attack": "gi-z/w", "defense": "none", **row, "ssim_mean": 0.3},
    ]
    return audit, load_cells(run, audit)


def test_verdicts_of_defences_stand_at_the_top(run):
    page = Page(render_report(*with_verdicts(run)))
    cards = page.find("article", class_="verdict")
    assert [e["attrs"]["class"].split()[-1] for e in cards] == ["level-partial", "level-excluded"]
    partial, excluded = map(text_of, cards)
    assert "Updates tell which images a client holds. 2 of 6 named." in partial
    assert "a server names 2 of 6: act." in partial
    assert "Named by candidate search 2 of 6" in partial
    assert "Ceiling for these candidates none: no <noise>" in partial
    assert "Noise that would exclude naming σ ≥ 0.12" in partial
    # Candidate search makes no pictures: those of the strongest attack are shown.
    assert "Strongest of 2 attacks: gi-z/w" in partial
    assert "No server names these images much more often than luck does. 0 of 6 named." in excluded
    assert "Ceiling for these candidates at most 7.0 % named (6.8 to 7.2 %)" in excluded
    assert "Closed form from the clip at most 25.0 % named, for any images" in excluded
    assert "(ε, δ) (12.3, 1e-05) for 3 updates" in excluded
    assert "Noise that would" not in excluded


def test_certificates_that_are_refused_for_one_reason_are_one_line(run):
    audit, cells = with_verdicts(run)
    for name in ("ceiling", "closed_form", "epsilon"):
        audit["verdicts"][0][f"{name}_refusal"] = "it adds no noise"
    card = text_of(Page(render_report(audit, cells)).find("article", class_="verdict")[0])
    assert "Certificates none: it adds no noise Noise that would exclude" in card
    assert "Ceiling" not in card


def test_candidate_search_and_baselines_are_rows_of_the_table(run):
    page = Page(render_report(*with_verdicts(run)))
    rows = table_rows(page, page.find("table", class_="numbers")[0])
    names = [row[0] for row in rows[1:7]]
    assert names[1:] == ["gi-x", "gi-z/w", "candidates", "(label mean)", "(placebo of gi-z/w)"]
    assert rows[4][:4] == ["candidates", "PARTIAL", "2 of 6", "–"]
    assert rows[5][:7] == ["(label mean)", "–", "3 of 6", 11.0, "–", "–", 0.25]
    assert rows[0][7] == "search"
    assert (rows[2][7], rows[3][7]) == ("stalled 2 of 2", "–")


def test_the_same_on_the_terminal(run):
    audit, _ = with_verdicts(run)
    assert verdict_lines(audit) == [
        "none: PARTIAL: a server names 2 of 6: act",
        "clip:1+noise:0.01: EXCLUDED: no server names more than 7 %: know this",
    ]
    lines = printed(audit).splitlines()
    assert any(line.startswith("candidates") and "PARTIAL" in line for line in lines)
    assert any(line.startswith("(label mean)") and "11.00" in line for line in lines)
    assert any(line.startswith("gi-x") and "stalled 2 of 2" in line for line in lines)


def test_the_cost_of_the_truth_is_a_line_in_the_charts(run):
    audit = audit_of(run)
    assert not page_of(run).find("line", class_="truth")
    for row, cost in zip(audit["cells"], (0.4, 0.0), strict=False):
        row["truth"] = {"cost": cost, "state": "stalled"}
    page = Page(render_report(audit, load_cells(run, audit)))
    heights = [float(e["attrs"]["y1"]) for e in page.find("line", class_="truth")]
    assert len(heights) == 2
    assert "run it longer" not in page.section("cost")["text"]
    assert 24 < heights[0] < 170
    assert heights[1] == 170
    audit["summary"][0].update(stalled=1, reached=0, passed=1)
    page = Page(render_report(audit, load_cells(run, audit)))
    assert "Stalled 1 of 2, passed 1 of 2: the true images match better than what was found: " in (
        text_of(page.section("cost"))
    )


def test_who_ran_it_and_when(run):
    audit = audit_of(run)
    audit["config"].update(title="Audit <3>", owner="A. Person", date="2026-11-27")
    page = Page(render_report(audit, load_cells(run, audit)))
    assert text_of(page.find("h1")[0]) == "Audit <3>"
    facts = facts_of(page)
    assert (facts["Run by"], facts["Date"]) == ("A. Person", "2026-11-27")
    assert "Confidential" in text_of(page.find("p", class_="confidential")[0])
    assert text_of(page_of(run).find("h1")[0]) == "Gradient inversion audit"


def test_how_derivatives_were_computed(run):
    audit = audit_of(run)
    audit["notes"].append("Computed by plain double backward, which is slower: no rule.")
    facts = facts_of(Page(render_report(audit, load_cells(run, audit))))
    assert facts["Derivatives"] == "by double backward, see Limits"
    audit["config"]["protocol"] = "fedavg"
    facts = facts_of(Page(render_report(audit, load_cells(run, audit))))
    assert facts["Derivatives"] == "by autograd, through the simulated training"


# The picture


def poster(run, **options):
    audit = audit_of(run)
    png = stage_grid_png(audit, load_cells(run, audit), **options)
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_poster_shows_every_pixel_of_the_originals(run, theme):
    sheet = poster(run, side=16, theme=theme)
    originals = read_cell(run / audit_of(run)["cells"][0]["files"]).original
    for place, original in enumerate(originals):
        left = 20 + 150 + place * (16 + 8)
        tile = sheet[20:36, left : left + 16]
        assert (tile[::2, ::2, 0] == original[0].numpy()).all()
    assert (sheet[0, 0] == 255).all() == (theme == "light")


def test_poster_puts_batches_side_by_side(run):
    one, two = poster(run, side=16), poster(run, side=16, batches=(0, 1))
    assert two.shape[1] - one.shape[1] == SIZE * (16 + 8)
    assert two.shape[0] == one.shape[0]


def test_poster_of_one_attack_is_shorter(run):
    whole = poster(run, defense="clip:1+noise:0.01")
    assert poster(run, attacks=["gi-x"]).shape[0] < whole.shape[0]


@pytest.mark.parametrize(
    "options", [{"attacks": ["gi-w"]}, {"defense": "noise:1"}, {"batches": (7,)}, {"batches": ()}]
)
def test_poster_of_what_is_not_there(run, options):
    with pytest.raises(ConfigError, match=r"expected pictures under .*, got none of .*; name"):
        poster(run, **options)


# What can be wrong


def test_no_audit(tmp_path):
    with pytest.raises(StorageError, match=r"expected a finished run with audit.json in .*, got"):
        write_report(tmp_path)


def test_audit_is_no_json(run):
    (run / "audit.json").write_text("{")
    with pytest.raises(StorageError, match=r"expected a JSON file at .*audit.json, got"):
        write_report(run)


def without(audit, *path):
    audit = copy.deepcopy(audit)
    place = audit
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return audit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: [a], r"expected an object in .*audit.json, got list"),
        (lambda a: {**a, "schema": 2}, r"expected schema 1 in .*, got 2; use the version"),
        (lambda a: {**a, "config": []}, r"expected an object 'config' in .*, got list"),
        (lambda a: without(a, "cells"), r"expected a list 'cells' in .*, got NoneType"),
        (lambda a: {**a, "summary": {}}, r"expected a list 'summary' in .*, got dict"),
        (lambda a: {**a, "cells": [3]}, r"expected cells\[0\].attack in .*str, got None"),
        (lambda a: without(a, "cells", 1, "batch"), r"expected cells\[1\].batch .*int, got None"),
        (lambda a: without(a, "summary", 0, "defense"), r"expected summary\[0\].defense"),
        (
            lambda a: without(a, "cells", 0, "images", 1),
            r"expected every original 0\.\.1 once in cells\[0\].images of .*, got \[2, 0\]",
        ),
        (
            lambda a: without(a, "cells", 0, "images", 1, "original"),
            r"expected every original 0\.\.2 once .* got \[2, None, 0\]",
        ),
    ],
)
def test_audit_that_is_none(run, change, message):
    write_json(run / "audit.json", change(audit_of(run)))
    with pytest.raises(StorageError, match=message):
        write_report(run)
    assert not (run / "report.html").exists()


def first_cell(run):
    return run / audit_of(run)["cells"][0]["files"]


def test_missing_cell(run):
    first_cell(run).unlink()
    with pytest.raises(StorageError, match=r"expected the pictures of a cell .* got nothing there"):
        write_report(run)


def test_truncated_cell(run):
    path = first_cell(run)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StorageError, match="got a truncated or foreign file"):
        write_report(run)


def change_tensor(name, function):
    def change(tensors, _header):
        tensors[name] = function(tensors[name])

    return change


def drop_tensor(name):
    return lambda tensors, _header: tensors.pop(name)


def change_header(**values):
    return lambda _tensors, header: header.update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_header(kind="prior"), r"kind 'cell', schema 1.*got kind 'prior'"),
        (change_header(schema=2), r"got kind 'cell', schema 2"),
        (change_header(stages=None), "got no list 'stages' in the header"),
        (change_header(classes=["a"]), "got 1 class names for 3 images"),
        (change_header(classes=None), "got no class names for 3 images"),
        (drop_tensor("original"), "got no tensor 'original'"),
        (drop_tensor("reconstruction"), "got no tensor 'reconstruction'"),
        (drop_tensor("stage/0/images"), "got no tensor 'stage/0/images'"),
        (drop_tensor("stage/0/cost"), "got no tensor 'stage/0/cost'"),
        (change_tensor("original", lambda t: t.float()), r"original is torch.float32 \(3, 1, 8, 8"),
        (change_tensor("original", lambda t: t[0]), r"original is torch.uint8 \(1, 8, 8\), not"),
        (
            change_tensor("reconstruction", lambda t: t[:2]),
            r"reconstruction has shape \(2, 1, 8, 8\), original \(3, 1, 8, 8\)",
        ),
        (
            change_tensor("stage/0/cost", lambda t: t[:, 0]),
            r"stage/0/cost is torch.float32 \(5,\), not float \(steps, restarts\)",
        ),
    ],
)
def test_broken_cell(run, change, message):
    tensors, header = load_tensors(first_cell(run), what="a cell")
    change(tensors, header)
    save_tensors(first_cell(run), tensors, header)
    with pytest.raises(StorageError, match=message) as caught:
        write_report(run)
    assert str(first_cell(run)) in str(caught.value)
    assert f"; delete {first_cell(run)} and " in str(caught.value)


def test_all_that_is_broken_is_named(run):
    tensors, header = load_tensors(first_cell(run), what="a cell")
    save_tensors(first_cell(run), {"original": tensors["original"]}, header)
    with pytest.raises(StorageError, match=r"'reconstruction'; .*'stage/0/images'; .*/0/cost'"):
        write_report(run)


def test_another_number_of_images(run):
    audit = audit_of(run)
    audit["cells"][0]["images"] = [i for i in audit["cells"][0]["images"] if i["original"] < 2]
    write_json(run / "audit.json", audit)
    with pytest.raises(StorageError, match=r"expected 2 images in .*, as audit.json says, got 3"):
        write_report(run)


def test_other_originals_in_the_same_batch(run):
    tensors, header = load_tensors(first_cell(run), what="a cell")
    tensors["original"] = 255 - tensors["original"]
    save_tensors(first_cell(run), tensors, header)
    with pytest.raises(StorageError, match=r"expected the same originals in cells/.* \(batch 0\)"):
        write_report(run)


def test_cells_outside_the_run_folder_are_not_read(run):
    audit = audit_of(run)
    first_cell(run).rename(run.parent / "elsewhere.safetensors")
    audit["cells"][0]["files"] = "../elsewhere.safetensors"
    write_json(run / "audit.json", audit)
    with pytest.raises(StorageError, match=r"expected the cell files inside .*, got '\.\./else"):
        write_report(run)


def test_report_that_cannot_be_written(run):
    (run / "report.html").mkdir()
    with pytest.raises(StorageError, match=r"expected to write .*report.html, got"):
        write_report(run)


def test_a_grid_has_rows_of_eight_on_white(tmp_path):
    images = torch.zeros(9, 3, 4, 4, dtype=torch.uint8)
    images[8] = 200
    (tmp_path / "grid.png").write_bytes(grid_png(images, side=8))
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (8 * 8, 2 * 8)
        assert picture.getpixel((0, 0)) == (0, 0, 0)
        assert picture.getpixel((0, 8)) == (200, 200, 200)
        assert picture.getpixel((8, 8)) == (255, 255, 255)
