"""Where the tensors that an attack works on lie: in memory of their own, whatever was handed in."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gradinv.attacks import Attack, Checkpoint, invert, preset
from gradinv.attacks.driver import Search
from gradinv.data import ClientBatch
from gradinv.federated import Observation, client, observe
from gradinv.memory import ALIGNMENT, copied, own_network, owned
from gradinv.models.batchnorm import BatchStatistics
from tests.attacks.tiny import tiny_batch, tiny_observation, tiny_prior, tiny_victim

OFFSETS = (4, 8, 20, 40)  # bytes past an aligned address

Move = Callable[[Tensor, int], Tensor]


def moved(tensor: Tensor, offset: int) -> Tensor:
    """Returns the same numbers as a slice of a larger block."""
    block = torch.zeros(tensor.numel() * tensor.element_size() + 2 * ALIGNMENT, dtype=torch.uint8)
    start = -block.data_ptr() % ALIGNMENT + offset
    if start % tensor.element_size():  # a whole number of elements, or torch refuses the view
        start += tensor.element_size() - start % tensor.element_size()
    bytes_ = block[start : start + tensor.numel() * tensor.element_size()]
    slice_ = bytes_.view(tensor.dtype).view(tensor.shape)
    return slice_.copy_(tensor.detach())


def spread(tensor: Tensor, _: int) -> Tensor:
    """Returns the same numbers, another number between any two of them."""
    there = torch.zeros(*tensor.shape, 2, dtype=tensor.dtype)[..., 0]
    return there.copy_(tensor.detach())


def channels_last(tensor: Tensor, _: int) -> Tensor:
    """Returns the same numbers, the channels of a pixel beside each other as in a picture."""
    if tensor.ndim != 4:
        return tensor.detach().clone()
    picture = tensor.detach().movedim(1, -1)
    return torch.empty(picture.shape, dtype=tensor.dtype).copy_(picture).movedim(-1, 1)


def moved_network(network: nn.Module, offset: int, move: Move = moved) -> nn.Module:
    network = copy.deepcopy(network)
    for value in (*network.parameters(), *network.buffers()):
        value.data = move(value, offset)
    return network


def is_own(tensor: Tensor) -> bool:
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    rows = torch.empty(tensor.shape, device="meta").stride()
    return whole and tensor.data_ptr() % ALIGNMENT == 0 and tensor.stride() == rows


@given(
    st.lists(st.integers(0, 4), min_size=0, max_size=4),
    st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool, torch.uint8]),
    st.sampled_from(OFFSETS),
)
def test_the_same_numbers_in_memory_of_its_own(shape, dtype, offset):
    there = moved((torch.rand(shape) * 9).to(dtype), offset)
    for mine in (owned(there), copied(there)):
        assert is_own(mine)
        assert mine.dtype == dtype
        assert torch.equal(mine, there)
        assert owned(mine) is mine
        assert copied(mine) is not mine


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[1:],
        lambda x: x[:, ::2],
        lambda x: x[:1].expand(3, 4, 5, 6),
        lambda x: x.T[..., 1] if x.ndim == 2 else x.movedim(0, 1)[1:],
    ],
    ids=["slice", "gaps", "overlap", "part of a transposed one"],
)
def test_views_become_whole(view):
    there = view(torch.rand(3, 4, 5, 6))
    mine = owned(there)
    assert is_own(mine)
    assert torch.equal(mine, there)


@pytest.mark.parametrize("channels", [3, 1])
def test_every_layout_becomes_row_by_row(channels):
    """To PyTorch one channel is contiguous either way, and channels last too."""
    there = channels_last(torch.rand(2, channels, 4, 5), 0)
    assert not is_own(there)
    mine = owned(there)
    assert is_own(mine)
    assert torch.equal(mine, there)
    assert is_own(copied(there))


def test_a_network_keeps_its_ties_and_its_maker_keeps_the_views():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight
            self.register_buffer("mean", torch.zeros(3))

    tied = Tied()
    assert own_network(tied) is tied
    there = moved_network(tied, 20)
    before = {name: value.data_ptr() for name, value in there.state_dict().items()}
    mine = own_network(there)
    assert mine is not there
    assert len(list(mine.parameters())) == 3  # one weight, two biases
    assert mine.state_dict().keys() == tied.state_dict().keys()
    assert all(is_own(value) for value in mine.state_dict().values())
    assert {name: value.data_ptr() for name, value in there.state_dict().items()} == before


def observation_of(offset: int | None, move: Move = moved) -> Observation:
    found = tiny_observation(tiny_victim(channels=3), tiny_batch(channels=3), bn="exact")
    if offset is None:
        return found
    assert found.labels is not None
    assert found.bn_statistics is not None
    return replace(
        found,
        gradient={name: move(value, offset) for name, value in found.gradient.items()},
        labels=move(found.labels, offset),
        bn_statistics={
            name: BatchStatistics(move(value.mean, offset), move(value.var, offset))
            for name, value in found.bn_statistics.items()
        },
    )


def tensors_of(observation: Observation) -> list[Tensor]:
    assert observation.labels is not None
    assert observation.bn_statistics is not None
    statistics = [t for s in observation.bn_statistics.values() for t in (s.mean, s.var)]
    return [*observation.gradient.values(), observation.labels, *statistics]


WAYS: list[tuple[Move, int]] = [
    *((moved, offset) for offset in OFFSETS),
    (spread, 0),
    (channels_last, 0),
]
way = pytest.mark.parametrize(
    ("move", "offset"), WAYS, ids=[f"{move.__name__}-{offset}" for move, offset in WAYS]
)


@way
def test_what_a_client_holds_may_lie_anywhere(move, offset, monkeypatch):
    batch = tiny_batch(channels=3)
    there = ClientBatch(move(batch.images, offset), move(batch.labels, offset), batch.ids)
    assert is_own(there.images)
    assert is_own(there.labels)
    worked_on: list[nn.Module] = []

    def loss_gradient(model: nn.Module, *data: Tensor, **settings: Any) -> dict[str, Tensor]:
        worked_on.append(model)
        return client.loss_gradient(model, *data, **settings)

    monkeypatch.setattr("gradinv.federated.observing.loss_gradient", loss_gradient)
    found = observe(moved_network(tiny_victim(channels=3), offset, move), there)
    assert len(worked_on) == 1
    assert all(is_own(value) for value in worked_on[0].state_dict().values())
    expected = observe(tiny_victim(channels=3), batch)
    assert found.gradient.keys() == expected.gradient.keys()
    for name, value in expected.gradient.items():
        assert is_own(found.gradient[name])
        assert torch.equal(found.gradient[name], value)


class Recorded(Search):
    """The loop that steps attacks, which keeps what it was handed to work on."""

    handed: ClassVar[list[Tensor]] = []

    def __init__(
        self, observation: Observation, model: nn.Module, attack: Attack, **parts: Any
    ) -> None:
        prior = parts["prior"]
        networks = [model] if prior is None else [model, prior]
        self.handed.extend(value for net in networks for value in net.state_dict().values())
        self.handed.extend(tensors_of(observation))
        super().__init__(observation, model, attack, **parts)

    def resume(self, checkpoint: Checkpoint) -> None:
        self.handed.extend(checkpoint.tensors.values())
        super().resume(checkpoint)


@way
@pytest.mark.parametrize("name", ["gi-x+bn", "gi-z/w", "dlg", "ggl"])
def test_what_an_attack_gets_may_lie_anywhere(name, move, offset, monkeypatch):
    """Where things lie is asserted too: not every processor rounds differently at another place."""
    attack = preset(name).scaled(0.005)
    monkeypatch.setattr("gradinv.attacks.inversion.Search", Recorded)
    monkeypatch.setattr(Recorded, "handed", [])

    def run(offset: int | None, checkpoint: Checkpoint | None = None):
        taken: list[Checkpoint] = []
        model, prior = tiny_victim(channels=3), tiny_prior(channels=3)
        if offset is not None:
            model = moved_network(model, offset, move)
            prior = moved_network(prior, offset, move)
            prior.requires_grad_(False)
        found = invert(
            observation_of(offset, move),
            model,
            attack,
            prior=prior if attack.needs_prior else None,  # pyright: ignore[reportArgumentType]
            seed=1,
            callback=lambda progress: taken.append(progress.checkpoint()),
            resume=checkpoint,
        )
        assert all(is_own(value) for value in Recorded.handed)
        return found, taken

    expected, taken = run(None)
    found, _ = run(offset)
    state = taken[len(taken) // 2]
    there = {key: move(value, offset) for key, value in state.tensors.items()}
    checkpoint = Checkpoint(there, state.header)
    before = len(Recorded.handed)
    resumed, _ = run(offset, checkpoint)
    assert len(Recorded.handed) > before + len(there)  # the state among them
    for result in (found, resumed):
        assert torch.equal(result.images, expected.images)
        for stage, wanted in zip(result.stages, expected.stages, strict=True):
            assert torch.equal(stage.cost, wanted.cost)


def test_a_checkpoint_is_as_it_was_after_an_attack_went_on_from_it():
    taken: list[Checkpoint] = []
    observation, attack = observation_of(None), preset("gi-x").scaled(0.005)
    invert(
        observation,
        tiny_victim(channels=3),
        attack,
        callback=lambda p: taken.append(p.checkpoint()),
    )
    state = taken[1]
    before = {name: value.clone() for name, value in state.tensors.items()}
    invert(observation, tiny_victim(channels=3), attack, resume=state)
    for name, value in before.items():
        assert torch.equal(state.tensors[name], value), name
