"""benchmarks/tables.py: the tables in README and docs are what the results say."""

import json

import pytest

from benchmarks import tables
from benchmarks.frozen import NETWORKS
from benchmarks.frozen import figures_of as frozen_figures
from benchmarks.publish_standard import figures_of
from benchmarks.results import RESULTS, image_figures
from gradinv.errors import ConfigError, StorageError

ROWS = [
    {
        "data": data,
        "setting": setting,
        "attack": attack,
        "batch": batch,
        "psnr": psnr + batch + image,
        "ssim": 0.5,
        "seconds": 30.4,
    }
    for data, setting, attack, psnr in [
        ("faces", "none", "gi-x", 20.0),
        ("faces", "none", "gi-z/w", 18.0),
        ("faces", "sparsify:0.95", "gi-x", 12.0),
        ("faces", "sparsify:0.95", "gi-z/w", 16.25),
    ]
    for batch in (0, 1)
    for image in (0, 1)
]
MACHINE = {"processor": "Some CPU", "cores": 2, "accelerator": None, "system": "Linux"}
TABLE = """\
| images | defence | attack | PSNR, mean (dB) | PSNR, best of batch (dB) | SSIM, mean \
| seconds per update | n |
|---|---|---|---:|---:|---:|---:|---:|
| faces | none | `gi-x` | **21.00** | 21.50 | 0.500 | 30 | 4 |
| faces | none | `gi-z/w` | 19.00 | 19.50 | 0.500 | 30 | 4 |
| faces | sparsify:0.95 | `gi-x` | 13.00 | 13.50 | 0.500 | 30 | 4 |
| faces | sparsify:0.95 | `gi-z/w` | **17.25** | 17.75 | 0.500 | 30 | 4 |

From `results/audit-convnet.json`: revision 0123456789ab with changes, 2026-01-02, \
2 cores of Some CPU, torch 2.13.0.
"""


@pytest.fixture
def content():
    return {
        "schema": 1,
        "name": "audit-convnet",
        "revision": "0123456789abcdef0123456789abcdef01234567-dirty",
        "date": "2026-01-02T03:04:05+00:00",
        "machine": MACHINE,
        "versions": {"torch": "2.13.0"},
        "settings": {"main": "faces none"},
        "figures": image_figures(ROWS, main="faces none"),
        "rows": ROWS,
    }


@pytest.fixture
def folder(tmp_path, content):
    (tmp_path / "audit-convnet.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize("path", tables.documents(), ids=lambda path: path.name)
def test_the_tables_of_the_repository_are_what_the_results_say(path):
    text = path.read_text("utf-8")
    assert tables.fill(text, where=path.name) == text, "run `make tables`"


@pytest.mark.parametrize(
    "name", [name for name, renderer in tables.RENDERERS.items() if renderer is tables.attack_table]
)
def test_the_figures_of_the_repository_follow_from_its_rows(name):
    path = RESULTS / f"{name}.json"
    # Where nothing is measured, README says so, and the test above holds it to that.
    if path.exists():
        content = json.loads(path.read_text("utf-8"))
        expected = image_figures(content["rows"], main=content["settings"]["main"])
        for key, value in expected.items():
            assert content["figures"][key] == pytest.approx(value), key


def test_the_figures_of_what_was_learned_follow_from_its_rows():
    content = json.loads((RESULTS / "giml.json").read_text("utf-8"))
    settings, figures = content["settings"], content["figures"]
    whole = {"kind": "attack", "steps_scale": settings["steps_scale"]}
    steps = {"learned": settings["snapshots"][-1]}
    for name in ("learned", "untrained", "wrong", "ceiling"):
        own = {**whole, "prior": name, "outer_step": steps.get(name)}
        rows = [row for row in content["rows"] if own.items() <= row.items()]
        assert len(rows) == 4 * settings["batches"]
        assert figures[f"psnr {name}"] == pytest.approx(
            sum(row["psnr"] for row in rows) / len(rows)
        )
    for name in ("untrained", "wrong"):
        gain = figures["psnr learned"] - figures[f"psnr {name}"]
        assert figures[f"gain_db over {name}"] == pytest.approx(gain)


def test_every_table_that_was_measured_stands_in_a_document():
    text = "".join(path.read_text("utf-8") for path in tables.documents())
    for name in tables.RENDERERS:
        if (RESULTS / f"{tables.FILES.get(name, name)}.json").exists():
            assert f"<!-- table:{name} -->" in text


def test_standard_stands_beside_the_others():
    rows = [
        {
            "data": "faces", "model": "convnet", "setting": "none", "attack": attack,
            "fraction": fraction, "seconds_allowed": 60.0 * fraction, "psnr": psnr,
        }
        for attack, fraction, psnr in (
            ("gi-x", 1.0, 14.0), ("gi-z/w", 1.0, 16.0), ("standard", 1.0, 18.0),
            ("standard", 1 / 3, 17.0),
        )
    ]  # fmt: skip
    *_, line = tables.standard_table({"rows": rows, "figures": figures_of(rows)}).splitlines()
    assert line == "| faces | convnet, none | 60 | 14.00 | 16.00 | **18.00** | 2.00 | 17.00 |"


def test_a_case_of_the_engine_is_one_row_with_all_ways():
    rows = [
        {"case": "net", "way": way, "ratio": ratio, "ms": 20.4, "error": 1e-6, "peak_mib": peak}
        for way, ratio, peak in (("plain", 1.0, 200.0), ("exact", 2.0, 150.0), ("other", 2.5, 9.0))
    ]
    header, _, line = tables.engine_table({"rows": rows}).splitlines()
    assert header.startswith("| case | plain, ms | exact | other |")
    assert line == "| net | 20 | 2.00x | 2.50x | 0.75 | 1e-06 |"


def test_memory_of_restarts_is_over_a_loop_and_over_one_graph():
    row = {"case": "net", "ratio": 1.0, "ms": 20.4, "error": 1e-6}
    peaks = {"plain": 100.0, "exact": 150.0, tables.ONE_GRAPH: 200.0}
    rows = [row | {"way": way, "peak_mib": peak} for way, peak in peaks.items()]
    header, _, line = tables.engine_table({"rows": rows}).splitlines()
    assert tables.ONE_GRAPH not in header
    assert line == "| net | 20 | 1.00x | 1.50 / 0.75 | 1e-06 |"


def test_every_way_stands_beside_the_exact_one():
    rows = [{"way": way} for way in ("exact", "exact", "bf16")]
    figures = {"psnr_mean exact": 20.0, "psnr_mean bf16": 19.9, "psnr_difference bf16": -0.1}
    assert tables.ways_table({"rows": rows, "figures": figures}).splitlines()[2:] == [
        "| exact | 20.00 |  |",
        "| bf16 | 19.90 | -0.10 |",
    ]


def test_the_figures_of_the_ways_follow_from_their_rows():
    content = json.loads((RESULTS / "engine-ways.json").read_text("utf-8"))
    rows, figures = content["rows"], content["figures"]
    ways = dict.fromkeys(row["way"] for row in rows)
    psnr = {way: [row["psnr"] for row in rows if row["way"] == way] for way in ways}
    for way, values in psnr.items():
        assert len(values) == 4 * content["settings"]["batches"]
        assert figures[f"psnr_mean {way}"] == pytest.approx(sum(values) / len(values))
        if way != "exact":
            difference = figures[f"psnr_mean {way}"] - figures["psnr_mean exact"]
            assert figures[f"psnr_difference {way}"] == pytest.approx(difference)


def test_a_table_has_a_row_for_each_case_and_the_best_is_bold(folder):
    assert tables.render("audit-convnet", folder) == TABLE


def test_filling_replaces_what_stood_there_and_nothing_else(folder):
    text = "before\n<!-- table:audit-convnet -->\nold\n<!-- /table -->\nafter\n"

    filled = tables.fill(text, folder)

    assert filled == f"before\n<!-- table:audit-convnet -->\n{TABLE}<!-- /table -->\nafter\n"
    assert tables.fill(filled, folder) == filled


def test_a_changed_result_changes_the_table(folder, content):
    text = tables.fill("<!-- table:audit-convnet -->\n<!-- /table -->\n", folder)
    content["figures"]["psnr_mean gi-x"] = 20.5
    (folder / "audit-convnet.json").write_text(json.dumps(content))

    assert tables.fill(text, folder) != text


def test_a_table_without_results_says_so(tmp_path):
    text = "<!-- table:audit-resnet18 -->\n<!-- /table -->\n"
    assert "Not measured yet: there is no `results/audit-resnet18.json`" in tables.fill(
        text, tmp_path
    )


def test_an_accelerator_is_named(content):
    content["machine"] = MACHINE | {"accelerator": "Some GPU"}
    assert "Some GPU, 2 cores of Some CPU" in tables.source_line(content)


def test_a_missing_figure_is_an_error(folder, content):
    del content["figures"]["seconds gi-x | faces sparsify:0.95"]
    (folder / "audit-convnet.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"figure 'seconds gi-x \| faces sparsify:0.95' in"):
        tables.render("audit-convnet", folder)


def test_an_unknown_table_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"expected a table among .*, got 'audit-vgg'"):
        tables.fill("<!-- table:audit-vgg -->\n<!-- /table -->\n", tmp_path)


def test_a_table_that_is_not_closed_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"every table of README\.md to end with"):
        tables.fill("<!-- table:audit-convnet -->\n", tmp_path, where="README.md")


def test_results_of_another_schema_are_an_error(tmp_path):
    (tmp_path / "audit-convnet.json").write_text('{"schema": 2}')
    with pytest.raises(ConfigError, match=r"expected schema 1 in .*, got 2"):
        tables.render("audit-convnet", tmp_path)


def test_results_that_are_not_json_are_an_error(tmp_path):
    (tmp_path / "audit-convnet.json").write_text("{")
    with pytest.raises(StorageError, match="expected a JSON file at"):
        tables.render("audit-convnet", tmp_path)


def test_the_command_rewrites_documents_and_reports_errors(folder, monkeypatch, capsys):
    document = folder / "README.md"
    document.write_text("<!-- table:audit-convnet -->\n<!-- /table -->\n")
    monkeypatch.setattr(tables, "ROOT", folder)
    monkeypatch.setattr(tables, "documents", lambda: [document])
    monkeypatch.setattr(tables, "render", lambda name, _: f"made {name}\n")

    assert tables.main() == 0
    assert document.read_text() == (
        "<!-- table:audit-convnet -->\nmade audit-convnet\n<!-- /table -->\n"
    )
    assert capsys.readouterr().out == "wrote README.md\n"
    assert tables.main() == 0
    assert capsys.readouterr().out == ""

    document.write_text("<!-- table:audit-convnet -->\n")
    assert tables.main() == 2
    assert "close it" in capsys.readouterr().err


def test_the_table_of_priors(content):
    content["name"] = "giml"
    content["settings"] = {"snapshots": [500, 4000]}
    content["figures"] = {
        "psnr untrained": 10.0, "psnr wrong": 11.0, "psnr learned": 12.0, "psnr ceiling": 13.0,
        "psnr_z wrong": 9.0, "psnr_z learned": 9.5, "psnr_z ceiling": 9.75,
        "psnr_z learned | outer step 500": 8.0, "psnr learned | outer step 500": 11.5,
        "kernel_distance wrong": 2.5, "kernel_distance ceiling": 0.5,
        "kernel_distance | outer step 0": 30.0, "kernel_distance | outer step 500": 1.25,
        "kernel_distance | outer step 4000": 0.75,
    }  # fmt: skip
    assert tables.prior_table(content).splitlines()[2:] == [
        "| learned, outer step 500 | 8.00 | 11.50 | 1.25 |",
        "| nothing: an untrained generator (`gi-w`) |  | 10.00 | 30.00 |",
        "| a prior of other data | 9.00 | 11.00 | 2.50 |",
        "| **a prior learned from the updates** | 9.50 | 12.00 | 0.75 |",
        "| a prior trained on the real data | 9.75 | 13.00 | 0.50 |",
    ]
    del content["figures"]["psnr ceiling"]
    with pytest.raises(ConfigError, match=r"expected figure 'psnr ceiling' in results/giml.json"):
        tables.prior_table(content)


def frozen_rows():
    return [
        {
            "images": images, "update": update, "network": "init-0", "batch": batch,
            "attack": attack, "version": "1", "psnr": [psnr + batch * share], "ssim": [0.5],
            "seconds": 1.0, "without": {"label mean": 14.0},
            **({"candidates": [batch == 0]} if attack == "gi-x" else {}),
        }
        for images in ("faces", "tiny")
        for update in ("none", "sparsify:0.95")
        for attack, psnr, share in (("gi-x", 20.0, 1.0), ("gi-z", 18.0, 0.5))
        if (images, update, attack) != ("tiny", "none", "gi-z")
        for batch in (0, 1)
    ]  # fmt: skip


def test_an_attack_of_the_frozen_evaluation_is_one_row_over_all_cases():
    rows = frozen_rows()
    table = tables.frozen_table({"rows": rows, "figures": frozen_figures(rows)}).splitlines()
    assert table[0].startswith("| attack | faces, `none` | faces, `sparsify:0.95` | tiny, `none` |")
    assert table[2] == "| `gi-x` | **20.50** | **20.50** | **20.50** | **20.50** |"
    assert table[3] == "| `gi-z` | 18.25 | 18.25 | – | 18.25 |"
    assert table[4].startswith(
        "| *label mean: what a server without the update would show* | 14.00"
    )
    assert table[5] == "| *images that candidate search names* | 50 % | 50 % | 50 % | 50 % |"


def test_gains_stand_beside_their_intervals():
    rows = frozen_rows()
    table = tables.gain_table({"rows": rows, "figures": frozen_figures(rows)}).splitlines()
    # Differences -2 and -2.5: 12.706 deviations of a mean of two batches, each 0.25.
    assert table[2] == "| faces | `gi-z` | -2.25 [-5.43, +0.93] | -2.25 [-5.43, +0.93] |"
    assert table[3] == "| tiny | `gi-z` | – | -2.25 [-5.43, +0.93] |"
    assert len(table) == 4


def test_every_network_has_a_column():
    rows = [
        {"images": "faces", "update": "none", "attack": "gi-x", "network": name, "psnr": psnr}
        for name, psnr in (("new", [10.0, 12.0]), ("trained", [8.0, 8.0]), ("new", [13.0, 13.0]))
    ]
    table = tables.network_table({"rows": rows}).splitlines()
    assert table[0] == "| images | update | attack | new | trained |"
    assert table[2:] == ["| faces | `none` | `gi-x` | 12.00 | 8.00 |"]


def test_the_figures_of_the_frozen_evaluation_follow_from_its_rows():
    content = json.loads((RESULTS / "frozen.json").read_text("utf-8"))
    assert content["figures"] == pytest.approx(frozen_figures(content["rows"]))
    batches = len(NETWORKS) * content["settings"]["batches_of_each"]
    cases = {(row["images"], row["update"], row["attack"]) for row in content["rows"]}
    assert batches >= 25
    assert len(content["rows"]) == batches * len(cases)
