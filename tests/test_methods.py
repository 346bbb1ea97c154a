from benchmarks.publish_methods import SECTIONS, merged
from benchmarks.results import Section

OLD = {
    "settings": {"labels": {"seed": 0}, "r-gap": {"seed": 1}},
    "figures": {"labels: exact counts": 99, "r-gap: psnr_mean": 80.0},
    "rows": [{"section": "labels", "exact": 99}, {"section": "r-gap", "psnr": 80.0}],
}


def test_a_section_replaces_itself_and_leaves_the_others_alone():
    new = Section({"seed": 2}, {"psnr_mean": 90.0}, [{"psnr": 90.0}, {"psnr": 91.0}])
    content = merged(OLD, "r-gap", new, {"command": "c", "revision": "r"})
    assert content == {
        "settings": {
            "labels": {"seed": 0},
            "r-gap": {"command": "c", "revision": "r", "seed": 2},
        },
        "figures": {"labels: exact counts": 99, "r-gap: psnr_mean": 90.0},
        "rows": [
            {"section": "labels", "exact": 99},
            {"section": "r-gap", "psnr": 90.0},
            {"section": "r-gap", "psnr": 91.0},
        ],
    }


def test_the_first_section_starts_the_file():
    content = merged(None, "labels", Section({}, {"a": 1}, []), {})
    assert content == {"settings": {"labels": {}}, "figures": {"labels: a": 1}, "rows": []}


def test_a_section_whose_name_begins_like_another_is_not_replaced():
    old = {"settings": {}, "figures": {"r-gap+prior: a": 1}, "rows": []}
    assert merged(old, "r-gap", Section({}, {}, []), {})["figures"] == {"r-gap+prior: a": 1}
    assert {"labels", "r-gap"} <= set(SECTIONS)
