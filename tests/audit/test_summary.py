import json
from collections import Counter
from pathlib import Path

import pytest

from gradinv import __version__
from gradinv.attacks.result import Outcome
from gradinv.audit.runner import run_audit
from gradinv.audit.summary import scores_of, signed_off
from gradinv.evaluation.intervals import mean_interval
from gradinv.federated import parse_defense
from gradinv.report import write_report
from tests.audit.world import config


def cell(batch, psnrs, *, lpips=None, attack="gi-x", ranks=(0, 5)):
    return {
        "attack": attack,
        "defense": "none",
        "batch": batch,
        "seconds": 10.0 * (batch + 1),
        "images": [
            {
                "original": i, "reconstruction": i, "label": i, "mse": 0.1, "psnr": psnr,
                "ssim": psnr / 100, "lpips": lpips, "rank": rank, "decoys": 15,
            }
            for i, (psnr, rank) in enumerate(zip(psnrs, ranks, strict=True))
        ],
    }  # fmt: skip


def summarise(cells, **settings):
    """Returns the rows of attacks on undefended updates."""
    budgets = {row["attack"]: 1.0 for row in cells}
    return signed_off(cells, [], defenses={"none": ()}, budgets=budgets, **settings)[0]


def test_numbers_are_reduced_as_their_names_say():
    cells = [cell(0, (10.0, 20.0), lpips=0.25), cell(1, (30.0, 16.0), lpips=0.75)]
    (row,) = summarise(cells)
    assert (row["attack"], row["defense"], row["n"]) == ("gi-x", "none", 4)
    assert row["psnr_mean"] == pytest.approx(19)
    assert row["psnr_best"] == pytest.approx(25)
    assert row["ssim_mean"] == pytest.approx(0.19)
    assert row["ssim_best"] == pytest.approx(0.25)
    assert row["lpips_mean"] == pytest.approx(0.5)
    assert row["seconds"] == pytest.approx(15)
    assert row["identified"] == pytest.approx(0.5)
    assert row["psnr_ci95"] == list(mean_interval([15.0, 23.0]) or ())
    assert row["level"] in row["verdict"]
    assert "gi-x" in row["verdict"]


def test_one_batch_has_no_interval_and_no_weights_no_lpips():
    (row,) = summarise([cell(0, (10.0, 20.0))])
    assert row["psnr_ci95"] is None
    assert row["lpips_mean"] is None


def test_label_accuracy_is_averaged_where_labels_were_hidden():
    cells = [cell(0, (10.0, 20.0)), cell(1, (10.0, 20.0))]
    assert summarise(cells)[0]["label_accuracy"] is None
    for accuracy, row in zip((0.5, 1.0), cells, strict=True):
        row["label_recovery"] = {"accuracy": accuracy}
    assert summarise(cells)[0]["label_accuracy"] == pytest.approx(0.75)


def test_batches_on_which_the_attack_failed_are_no_all_clear():
    fine, broken = cell(0, (10.0, 20.0), ranks=(4, 5)), cell(1, (5.0, 5.0), ranks=(4, 5))
    (row,) = summarise([fine] * 20)
    assert (row["failed"], row["level"]) == (0, "OPEN")
    broken["outcome"] = Outcome.NON_FINITE.value
    (row,) = summarise([fine] * 20 + [broken])
    assert (row["failed"], row["level"], row["n"], row["psnr_mean"]) == (1, "OPEN", 40, 15.0)
    assert "it left the finite numbers on 1 of 21 batches" in row["verdict"]
    (row,) = summarise([broken, broken])
    assert (row["failed"], row["level"], row["n"]) == (2, "OPEN", 4)
    assert "nothing was tried in earnest; check the prior and the weights" in row["verdict"]


def test_nothing_is_identified_where_there_was_nothing_to_compare_with():
    alone = cell(0, (10.0, 20.0))
    for image in alone["images"]:
        image["decoys"] = 0
    assert summarise([alone])[0]["identified"] is None


def test_an_audit_with_hidden_labels_says_so_and_how_many_were_found():
    audit = run_audit(config(hide_labels=True), Path("run"))
    assert not audit["config"]["labels_known"]
    threat, hidden = audit["notes"][1], audit["notes"][2]
    assert "knows the network, the defence, and no batch-norm" in threat
    assert "labels were hidden" in hidden
    for row in audit["cells"]:
        recovery = row["label_recovery"]
        assert recovery["method"] == "counts"
        true = sorted(image["label"] for image in row["images"])
        same = sum((Counter(true) & Counter(recovery["labels"])).values())
        assert recovery["accuracy"] == same / 2
    mean = sum(row["label_recovery"]["accuracy"] for row in audit["cells"]) / 2
    assert audit["summary"][0]["label_accuracy"] == pytest.approx(mean)


def test_an_audit_in_closed_form_says_what_its_equations_leave_open():
    attacks = ("r-gap", "r-gap+prior")
    settings = {"model": "tiny_net:leaky", "batch_size": 1, "batches": 1, "prior": "prior"}
    audit = run_audit(config(attack=attacks, hide_labels=True, **settings), Path("run"))
    (note,) = [note for note in audit["notes"] if note.startswith("R-GAP")]
    assert "open in 0 (" in note
    assert "of 1024 dimensions)" in note
    plain, prior = audit["cells"]
    assert [stage["name"] for stage in plain["stages"]] == ["layers"]
    assert [stage["name"] for stage in prior["stages"]] == ["layers", "z", "w"]
    assert plain["outcome"].startswith("solved")
    assert plain["label_recovery"]["exact"]
    assert plain["label_recovery"]["accuracy"] == 1
    page = write_report(Path("run")).read_text()
    assert "closed form, layer by layer" in page


def test_each_attack_has_its_row():
    cells = [cell(0, (10.0, 20.0)), cell(0, (30.0, 31.0), attack="gi-z"), cell(1, (12.0, 22.0))]
    rows = summarise(cells)
    assert [(row["attack"], row["n"]) for row in rows] == [("gi-x", 4), ("gi-z", 2)]


def test_scores_come_back_as_they_were_stored():
    first, second = scores_of(cell(0, (10.0, 20.0)))
    assert (first.psnr, first.identified, second.identified) == (10.0, True, False)


def test_the_audit_has_the_keys_of_the_contract():
    audit = run_audit(config(attack=("gi-w",), prior="prior"), Path("run"))
    assert (audit["schema"], audit["gradinv"]) == (1, __version__)
    settings = config().settings()
    assert set(settings) <= set(audit["config"])
    known = audit["config"]
    assert (known["device"], known["prior"], known["labels_known"]) == ("cpu", "prior", True)
    assert {"versions", "machine", "revision", "inputs", "attacks"} <= set(known)
    assert known["attacks"]["gi-w"]["stages"][0]["steps"] == audit["cells"][0]["steps"]
    assert known["images"] == {"name": "images", "count": 18, "classes": 3}
    cell_keys = "attack defense batch seed steps seconds objective outcome images files status"
    image_keys = (
        "original reconstruction psnr ssim lpips mse label rank decoys nearest_decoy second_decoy "
        "ssim_without lpips_without alike"
    )
    summary_keys = "attack defense n psnr_mean psnr_best psnr_ci95 ssim_mean lpips_mean seconds"
    assert set(cell_keys.split()) <= set(audit["cells"][0])
    assert set(image_keys.split()) == set(audit["cells"][0]["images"][0])
    assert set(summary_keys.split()) <= set(audit["summary"][0])
    (verdict,) = audit["verdicts"]
    verdict_keys = (
        "defense level sentence attack n identified candidates luck ceiling ceiling_interval "
        "closed_form epsilon stalled"
    )
    assert set(verdict_keys.split()) <= set(verdict)
    assert [row["attack"] for row in audit["summary"]] == ["gi-w", "candidates"]
    assert audit["cells"][0]["truth"]["state"] in {"stalled", "reached", "passed"}
    searched, _ = audit["candidates"]
    assert len(searched["images"]) == len(audit["cells"][0]["images"])
    assert [row["name"] for row in audit["baselines"]] == [
        "label mean",
        "prior samples",
        "placebo",
    ]
    assert not any("LPIPS is absent" in note for note in audit["notes"])
    assert all(row["lpips_mean"] > 0 for row in audit["baselines"])
    assert not any("The undefended update was left out" in note for note in audit["notes"])
    json.dumps(audit, allow_nan=False)


def candidates_cell(ranks, *, defense="none", refusal: str | None = "it adds no noise", **image):
    return {
        "attack": "candidates", "defense": defense, "batch": 0, "seconds": 2.0,
        "refusal": refusal, "sigma_needed": 0.5,
        "images": [
            {
                "original": i, "label": i, "candidates": 64, "rank": rank, "posterior": None,
                "rank_known": rank, "posterior_known": None, "control": 3, "control_known": 4,
                "ceiling": None, "ceiling_interval": None, **image,
            }
            for i, rank in enumerate(ranks)
        ],
    }  # fmt: skip


def test_verdicts_come_one_for_each_defence_and_the_worst_first():
    cells = [cell(0, (10.0, 20.0), ranks=(4, 5)) for _ in range(2)]
    quiet = {**cells[1], "defense": "clip:1+noise:100"}
    known = {"ceiling": 0.02, "ceiling_interval": [0.016, 0.03]}
    searched = [
        candidates_cell((0, 0)),
        candidates_cell((5, 6), defense="clip:1+noise:100", refusal=None, **known),
    ]
    rows, verdicts = signed_off(
        [quiet, cells[0]],
        searched[::-1],
        defenses={"clip:1+noise:100": parse_defense("clip:1+noise:100"), "none": ()},
        budgets={"gi-x": 1.0},
        rounds=4,
    )
    assert [(row["attack"], row["defense"], row["level"]) for row in rows] == [
        ("gi-x", "clip:1+noise:100", "OPEN"), ("candidates", "clip:1+noise:100", "EXCLUDED"),
        ("gi-x", "none", "OPEN"), ("candidates", "none", "PARTIAL"),
    ]  # fmt: skip
    leak, excluded = verdicts
    assert (leak["defense"], leak["level"], leak["identified"]) == ("none", "PARTIAL", 2)
    assert leak["epsilon"] is leak["ceiling"] is leak["closed_form"] is None
    assert (excluded["level"], excluded["rounds"]) == ("EXCLUDED", 4)
    assert (excluded["ceiling"], excluded["ceiling_interval"]) == (0.02, [0.016, 0.03])
    # Sensitivity 2, sigma 100, four rounds: 0.04 standard deviations away.
    assert excluded["closed_form"] == pytest.approx(0.0171, abs=2e-4)
    assert 0 < excluded["epsilon"] < 0.3


def test_where_searches_ended_is_counted():
    cells = [cell(batch, (10.0, 20.0)) for batch in range(3)]
    for row, state in zip(cells, ("stalled", "stalled", "passed"), strict=True):
        row["truth"] = {"cost": 0.25, "state": state}
    (row,) = summarise(cells)
    assert (row["stalled"], row["reached"], row["passed"], row["truth"]) == (2, 0, 1, 0.25)
    (row,) = summarise([cell(0, (10.0, 20.0))])
    assert (row["stalled"], row["truth"]) == (0, None)


def test_what_a_memorised_prior_brings_back_is_no_leak():
    cells = [cell(batch, (10.0, 20.0), ranks=(0, 0)) for batch in range(8)]
    assert summarise(cells)[0]["level"] == "PARTIAL"
    (row,) = summarise(cells, memorised={"gi-x": "its prior has seen them"})
    assert row["level"] == "OPEN"
    assert "its prior has seen them" in row["verdict"]
