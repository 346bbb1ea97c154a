"""What a server without the update would show is judged as reconstructions are."""

from pathlib import Path

import pytest
import torch

from gradinv.audit.baselines import LABEL_MEAN, PLACEBO, PRIOR_SAMPLES, controls_of
from gradinv.audit.plan import Cell
from gradinv.audit.runner import run_audit
from gradinv.audit.setup import prepare
from gradinv.evaluation.evaluate import evaluate
from gradinv.evaluation.memorised import REASON
from gradinv.priors.generator import Generator
from tests.audit.world import config


def flat(batch, value: float) -> torch.Tensor:
    return torch.full(batch.images.shape, round(255 * value), dtype=torch.uint8)


def test_label_mean_prior_samples_and_placebo():
    setup = prepare(config(attack=("gi-z",), prior="prior"))
    batches = setup.client.batches
    cells = [Cell("gi-z", "none", number) for number in (0, 1)]
    shown = dict(zip(cells, (flat(batches[0], 0.25), flat(batches[1], 0.75)), strict=True))
    rows = {cell: {"outcome": "all steps done"} for cell in cells}
    found = controls_of(setup, rows, lambda cell: {"reconstruction": shown[cell]})
    names = [(each.name, each.attack, each.defense) for each in found.baselines]
    assert names == [
        (LABEL_MEAN, None, None), (PRIOR_SAMPLES, None, None), (PLACEBO, "gi-z", "none"),
    ]  # fmt: skip
    mean, samples, placebo = found.baselines
    decoys = setup.judge.decoys(batches[0], 0)
    lpips = setup.judge.lpips
    expected = evaluate(torch.nanmean(decoys, dim=1), batches[0], decoys=decoys, lpips=lpips)
    assert mean.batches[0] == expected
    # The pictures of the other batch's update, not of its own.
    other = evaluate(shown[cells[1]].float() / 255, batches[0], decoys=decoys)
    assert placebo.batches[0].images[0].mse == pytest.approx(other.images[0].mse)
    row = samples.row()
    assert row["n"] == 4
    assert row["lpips_mean"] > 0
    assert 0 <= row["identified"] <= 1
    scores = [each.batches[0].images[1] for each in found.baselines]
    best = max(score.ssim for score in scores), min(score.lpips or 0 for score in scores)
    assert found.without(cells[0], 1) == best
    strange = Cell("other", "none", 0)
    scores = [each.batches[0].images[1] for each in (mean, samples)]
    best = max(score.ssim for score in scores), min(score.lpips or 0 for score in scores)
    assert found.without(strange, 1) == best


def test_one_batch_or_a_failed_one_has_no_placebo():
    setup = prepare(config())
    pictures = {"reconstruction": flat(setup.client.batches[0], 0.5)}
    cells = [Cell("gi-x", "none", number) for number in (0, 1)]
    for rows in (
        {cells[0]: {}},
        {cells[0]: {}, cells[1]: {"outcome": "no restart stayed finite"}},
    ):
        kept = {cell: row for cell, row in rows.items() if not row.get("outcome")}
        found = controls_of(setup, kept, lambda _: pictures)
        assert [each.name for each in found.baselines] == [LABEL_MEAN]


def test_images_are_compared_with_them_in_the_audit():
    audit = run_audit(config(), Path("run"))
    for cell in audit["cells"]:
        for image in cell["images"]:
            assert -1 <= image["ssim_without"] <= 1
            assert image["lpips_without"] > 0


class Remembers(Generator):
    """Makes the images that it was given, whatever the latent."""

    latent_shape = (1,)

    def __init__(self, images):
        super().__init__()
        self.image_shape = tuple(images.shape[1:])
        self.images = torch.nn.Parameter(images)

    def forward(self, z):
        return self.images[(z.flatten().abs() * 1000).long() % len(self.images)]


def test_a_prior_that_remembers_the_images_is_named():
    setup = prepare(config(attack=("gi-z",), prior="prior", batches=3))
    own = torch.cat([batch.images for batch in setup.client.batches])
    assert controls_of(setup, {}, lambda _: {}).memorised is None
    object.__setattr__(setup.server, "prior", Remembers(own))
    assert controls_of(setup, {}, lambda _: {}).memorised == REASON
