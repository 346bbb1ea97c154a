"""Several updates of one network as one batch, against one after the other."""

import pytest
import torch

from gradinv.attacks.search.regularizers import BatchNormMatching, TotalVariation
from gradinv.data import ClientBatch
from gradinv.engine import ExactROperator, engine_for, evaluate_together, together, traced
from gradinv.engine.distances import Cosine, LayerCosine
from gradinv.federated import FedSGD, Reveal, observe, parse_defense
from tests.engine.networks import BATCH, CLASSES, IMAGE, guesses, relative
from tests.engine.test_exact import victim


def updates(model, count: int, *, defense: str = "none"):
    source = torch.Generator().manual_seed(5)
    like = next(model.parameters())
    return [
        observe(
            model,
            ClientBatch(
                torch.rand((BATCH, *IMAGE), generator=source).to(like),
                torch.randint(CLASSES, (BATCH,), generator=source),
                tuple(range(BATCH)),
            ),
            protocol=FedSGD(mode="train" if model.training else "eval"),
            defenses=parse_defense(defense),
            reveal=Reveal(bn_statistics="exact"),
            generator=source,
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("defense", ["none", "sparsify:0.5"])
@pytest.mark.parametrize("distance", [Cosine(), LayerCosine()], ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("memory", [traced.MEMORY, 1], ids=["at once", "one by one"])
def test_together_is_one_after_the_other(memory, distance, defense, mode, monkeypatch):
    monkeypatch.setattr(traced, "MEMORY", memory)
    model = victim(mode).double()
    engines = [
        engine_for(model, update, distance=distance, regularizers=(TotalVariation(0.1),))
        for update in updates(model, 3, defense=defense)
    ]
    assert all(isinstance(engine, ExactROperator) for engine in engines)
    images = guesses(model, 3)
    found = evaluate_together(engines, images)
    for engine, batch, own in zip(engines, images, found, strict=True):
        alone = engine.evaluate(batch[None])
        assert relative(own.gradient, alone.gradient) < 1e-10
        torch.testing.assert_close(own.cost, alone.cost)
        torch.testing.assert_close(own.matching, alone.matching)


def test_one_pass_where_it_can_be_and_a_loop_where_not(monkeypatch):
    model = victim("eval").double()
    first, second = updates(model, 2)
    passes = []
    step = together._step
    monkeypatch.setattr(
        together, "_step", lambda engines, x: passes.append(len(engines)) or step(engines, x)
    )
    images = guesses(model, 2)

    def engine(update, network=model, way="auto", terms=()):
        return engine_for(network, update, distance=Cosine(), way=way, regularizers=terms)

    other = victim("eval").double()
    with torch.no_grad():
        other.get_parameter("head.weight").mul_(2)
    pairs = {
        "alike": (engine(first), engine(second)),
        "networks": (engine(first), engine(updates(other, 1)[0], network=other)),
        "ways": (engine(first), engine(second, way="plain")),
        "terms": (engine(first), engine(second, terms=(TotalVariation(0.1),))),
        "statistics": tuple(
            engine(own, terms=(BatchNormMatching(0.1),)) for own in (first, second)
        ),
    }
    for name, pair in pairs.items():
        passes.clear()
        found = evaluate_together(pair, images)
        assert passes == ([2] if name == "alike" else [])
        for own, alone, batch in zip(found, pair, images, strict=True):
            expected = alone.evaluate(batch[None])
            assert relative(own.gradient, expected.gradient) < 1e-9
