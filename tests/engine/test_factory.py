"""Which way is taken, and what a network without rules gets."""

import pytest
import torch
from torch import Tensor, nn

from gradinv.attacks import invert, preset
from gradinv.engine import PlainDoubleBackward, engine_for
from gradinv.engine.distances import Cosine
from gradinv.errors import AttackError, ConfigError
from tests.attacks.tiny import tiny_observation
from tests.engine.networks import BATCH, guesses, relative, update


class StraightThrough(torch.autograd.Function):
    """ReLU that lets every gradient through."""

    @staticmethod
    def forward(ctx, x):
        return torch.relu(x)

    @staticmethod
    def backward(ctx, *gradients):
        return gradients[0]


class Body(nn.Module):
    """A network whose middle is to be filled in."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.register_buffer("shift", torch.tensor([0.1, 0.2, 0.3, 0.4]).view(4, 1, 1))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.fc = nn.Linear(4, 4)

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.middle(self.conv(x)).mean((2, 3)))


class CustomFunction(Body):
    def middle(self, x):
        return StraightThrough.apply(x)


class Attention(Body):
    def middle(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens)[0].transpose(1, 2).view_as(x)


class Detached(Body):
    def middle(self, x):
        with torch.no_grad():
            gate = torch.relu(x)
        return torch.relu(x) + gate


class Scaled(Body):
    def middle(self, x):
        return x * self.scale


class Quotient(Body):
    def middle(self, x):
        return x / (1 + torch.sigmoid(x))


class Branching(Body):
    def middle(self, x):
        return torch.relu(x) if x.sum() > 0 else x


class SubclassedConvolution(nn.Conv2d):
    def forward(self, input):
        return super().forward(input).abs()


class Subclassed(Body):
    def __init__(self):
        super().__init__()
        self.own = SubclassedConvolution(4, 4, 1)

    def middle(self, x):
        return self.own(x)


class OverBatch(Body):
    def middle(self, x):
        return x - x.mean(0, keepdim=True)


class OverBatchFromTheEnd(Body):
    def middle(self, x):
        return x * x.mean((-4, 2), keepdim=True)


class VectorsOverBatch(Body):
    def middle(self, x):
        x = x.mean((2, 3))
        return (x * torch.mean(x, dim=-2, keepdim=True)).view(x.size(0), 4, 1, 1)


class Padded(Body):
    def __init__(self):
        super().__init__()
        self.own = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")

    def middle(self, x):
        return self.own(x)


WITHOUT_RULES = {
    CustomFunction: "autograd function StraightThrough",
    Attention: "Tensor.transpose",
    Detached: "what the network does beside its traced operations (gradient of conv",
    Scaled: "arithmetic with the parameter scale",
    Quotient: "arithmetic between activations",
    Branching: "the network as torch.fx sees it (TraceError",
    Subclassed: "abs",
    OverBatch: "a mean over the batch",
    OverBatchFromTheEnd: "a mean over the batch",
    VectorsOverBatch: "a mean over the batch",
    Padded: "Conv2d with padding_mode='circular' (own)",
}


def built(kind: type[Body]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().double().eval()


@pytest.mark.parametrize("kind", WITHOUT_RULES, ids=lambda kind: kind.__name__)
def test_a_network_without_rules_falls_back_and_says_why(kind):
    model = built(kind)
    # The attention block's own fast path takes part in no gradient that is asked for here.
    observation = update(model, bn="none")
    engine = engine_for(model, observation, distance=Cosine())
    assert engine.way == "plain"
    assert engine.reason is not None
    assert engine.reason.startswith("no rule for ")
    assert WITHOUT_RULES[kind] in engine.reason
    images = guesses(model)
    expected = PlainDoubleBackward(model, observation, distance=Cosine()).evaluate(images)
    assert torch.equal(engine.evaluate(images).gradient, expected.gradient)
    with pytest.raises(AttackError, match=r"expected a rule for every operation.*way='auto'"):
        engine_for(model, observation, distance=Cosine(), way="exact")


# Each mixes the images of a batch, or might, by an axis counted from the end. Batch, channels and
# rows are as many, so that no shape tells a mistake.
THROUGH_THE_BATCH = {
    "mean": lambda x: x * x.mean(-4, keepdim=True),
    "sum": lambda x: x * x.sum(-4, keepdim=True),
    "amax": lambda x: x * x.amax(-4, keepdim=True),
    "var": lambda x: x * x.var(-4, keepdim=True),
    "std": lambda x: x * torch.std(x, -4, keepdim=True),
    "softmax": lambda x: x * nn.functional.softmax(x, -4),
    "log_softmax": lambda x: x * x.log_softmax(-4),
    "flatten": lambda x: torch.flatten(x, -4, -3).mean((1, 2)).view(x.size(0), 4, 1, 1),
    "unflatten": lambda x: x.unflatten(-4, (2, -1)).flatten(0, 1),
    "transpose": lambda x: x + x.transpose(-4, -3),
    "permute": lambda x: x + x.permute(-3, -4, -2, -1),
    "cat": lambda x: x * torch.cat([x, x], -4).mean((-3, -2), keepdim=True).mean(-4, keepdim=True),
    "stack": lambda x: torch.stack([x, x], -5).mean(-5),
    "squeeze": lambda x: x.unsqueeze(-5).squeeze(-5),
    "select": lambda x: x * x.select(-4, 0),
    "chunk": lambda x: torch.cat(x.chunk(2, -4)[::-1], -4),
    "split": lambda x: torch.cat(x.split(1, -4)[::-1], -4),
    "glu": lambda x: torch.cat([nn.functional.glu(x, -4)] * 2, -4),
    "flip": lambda x: x + x.flip(-4),
}


@pytest.mark.parametrize("mixed", THROUGH_THE_BATCH.values(), ids=THROUGH_THE_BATCH)
def test_the_batch_counted_from_the_end_is_the_batch(mixed):
    class Mixing(Body):
        def middle(self, x):
            return mixed(x)

    model, shape = built(Mixing), (4, 3, 9, 9)
    observation = update(model, bn="none", shape=shape)
    engine = engine_for(model, observation, distance=Cosine())
    images = guesses(model, shape=shape)
    expected = PlainDoubleBackward(model, observation, distance=Cosine()).evaluate(images)
    assert relative(engine.evaluate(images).gradient, expected.gradient) < 1e-9
    assert engine.reason is not None
    assert engine.reason.startswith("no rule for ")


class InPlace(Body):
    def middle(self, x):
        x += 1
        x = x.add_(0.5)
        return x.contiguous().relu_()


class Arithmetic(Body):
    def middle(self, x):
        return 1 - (2 * (x - self.shift) / 3 + 1) / torch.tensor(2.0).double()


class Functional(Body):
    def middle(self, x):
        f = nn.functional
        x = f.conv2d(x, self.conv.weight[:, :1]) if x.shape[1] == 0 else x
        x = f.max_pool2d(f.gelu(f.leaky_relu(x, 0.1)), 3, 1, padding=1)
        x = f.avg_pool2d(torch.tanh(x) + torch.sigmoid(x), 3, 1, 1)
        x = f.dropout(x, 0.5, training=self.training)
        return torch.cat([x, f.relu(x)], 1).reshape(x.size(0), 8, -1, 1)[:, :4]


class Views(Body):
    def middle(self, x):
        return torch.add(x.view(x.shape[0], 4, 4, 4).contiguous(), x)


class SharedLayer(Body):
    def __init__(self):
        super().__init__()
        self.own = nn.Conv2d(4, 4, 3, padding="same")

    def middle(self, x):
        return self.own(torch.relu(self.own(x)))


class FunctionalWeights(Body):
    def middle(self, x):
        weight = self.attention.out_proj.weight
        flat = nn.functional.linear(x.mean((2, 3)), weight, self.attention.out_proj.bias)
        return torch.cat([flat], 1).view(x.shape[0], 4, 1, 1)


@pytest.mark.parametrize("kind", [InPlace, Arithmetic, Views, SharedLayer, FunctionalWeights])
def test_functions_and_methods_as_fx_meets_them(kind):
    model = built(kind)
    observation = update(model, bn="none")
    engine = engine_for(model, observation, distance=Cosine())
    assert engine.reason is None
    assert engine.way == "exact"
    images = guesses(model)
    expected = PlainDoubleBackward(model, observation, distance=Cosine()).evaluate(images)
    assert relative(engine.evaluate(images).gradient, expected.gradient) < 1e-9


def test_a_value_that_was_changed_in_place_and_is_used_again_is_noticed():
    class Changed(Body):
        def middle(self, x):
            return torch.relu_(x + 0) + x.mul_(0.5).add_(x)

    model = built(Changed)
    observation = update(model, bn="none")
    engine = engine_for(model, observation, distance=Cosine())
    images = guesses(model)
    expected = PlainDoubleBackward(model, observation, distance=Cosine()).evaluate(images)
    assert relative(engine.evaluate(images).gradient, expected.gradient) < 1e-9


def test_hooks_that_change_values_are_noticed():
    model = built(Views)
    model.get_submodule("conv").register_forward_hook(lambda *call: call[-1] + call[-1])
    engine = engine_for(model, update(model, bn="none"), distance=Cosine())
    assert engine.way == "plain"


def test_an_unknown_way_is_refused(victim, observation):
    with pytest.raises(ConfigError, match=r"expected a way.*did you mean 'exact'"):
        engine_for(victim, observation, distance=Cosine(), way="exakt")


def test_plain_can_be_asked_for(victim, observation):
    engine = engine_for(victim, observation, distance=Cosine(), way="plain")
    assert isinstance(engine, PlainDoubleBackward)
    assert engine.reason is None


def test_a_search_over_labels_takes_plain_and_says_why(victim, observation):
    engine = engine_for(victim, observation, distance=Cosine(), soft_labels=True)
    assert isinstance(engine, PlainDoubleBackward)
    assert engine.reason == "labels are searched"
    assert engine.problem.labels is None
    with pytest.raises(AttackError, match="known labels for the way 'exact'"):
        engine_for(victim, observation, distance=Cosine(), soft_labels=True, way="exact")


def test_an_attack_on_a_network_without_rules_runs(batch):
    model = built(CustomFunction).float()
    with torch.no_grad():
        images = torch.rand((BATCH, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    client = type(batch)(images, torch.arange(BATCH), tuple(range(BATCH)))
    found = invert(tiny_observation(model, client), model, preset("gi-x").scaled(0.01), seed=0)
    assert torch.isfinite(found.objective).all()
