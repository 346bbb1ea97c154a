"""Where the tensors that an attack works on lie: in memory of their own, whatever was handed in."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gradinv.attacks import Checkpoint, invert, preset
from gradinv.data import ClientBatch
from gradinv.federated import Observation, observe
from gradinv.memory import ALIGNMENT, copied, own_network, owned
from gradinv.models.batchnorm import BatchStatistics
from tests.attacks.tiny import tiny_batch, tiny_observation, tiny_prior, tiny_victim

OFFSETS = (4, 20, 40)  # bytes past an aligned address


def moved(tensor: Tensor, offset: int) -> Tensor:
    """Returns the same numbers as a slice of a larger block."""
    block = torch.zeros(tensor.numel() * tensor.element_size() + 2 * ALIGNMENT, dtype=torch.uint8)
    start = -block.data_ptr() % ALIGNMENT + offset
    if start % tensor.element_size():  # a whole number of elements, or torch refuses the view
        start += tensor.element_size() - start % tensor.element_size()
    bytes_ = block[start : start + tensor.numel() * tensor.element_size()]
    slice_ = bytes_.view(tensor.dtype).view(tensor.shape)
    return slice_.copy_(tensor.detach())


def moved_network(network: nn.Module, offset: int) -> nn.Module:
    network = copy.deepcopy(network)
    for value in (*network.parameters(), *network.buffers()):
        value.data = moved(value, offset)
    return network


def is_own(tensor: Tensor) -> bool:
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return whole and tensor.data_ptr() % ALIGNMENT == 0


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


def test_a_layout_without_gaps_is_kept():
    there = torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert owned(there) is there
    slipped = moved(torch.rand(2, 4, 5, 3), 4).permute(0, 3, 1, 2)
    assert owned(slipped).stride() == slipped.stride()
    assert is_own(owned(slipped))


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


def observation_of(offset: int | None) -> Observation:
    found = tiny_observation(tiny_victim(), tiny_batch(), bn="exact")
    if offset is None:
        return found
    assert found.labels is not None
    assert found.bn_statistics is not None
    return Observation(
        gradient={name: moved(value, offset) for name, value in found.gradient.items()},
        labels=moved(found.labels, offset),
        bn_statistics={
            name: BatchStatistics(moved(value.mean, offset), moved(value.var, offset))
            for name, value in found.bn_statistics.items()
        },
        batch_size=found.batch_size,
        image_shape=found.image_shape,
        num_classes=found.num_classes,
        protocol=found.protocol,
        model=found.model,
    )


def tensors_of(observation: Observation) -> list[Tensor]:
    assert observation.labels is not None
    assert observation.bn_statistics is not None
    statistics = [t for s in observation.bn_statistics.values() for t in (s.mean, s.var)]
    return [*observation.gradient.values(), observation.labels, *statistics]


@pytest.mark.parametrize("offset", OFFSETS)
def test_what_a_client_holds_may_lie_anywhere(offset):
    batch = tiny_batch()
    there = ClientBatch(moved(batch.images, offset), moved(batch.labels, offset), batch.ids)
    assert is_own(there.images)
    assert is_own(there.labels)
    found = observe(moved_network(tiny_victim(), offset), there)
    expected = observe(tiny_victim(), batch)
    assert found.gradient.keys() == expected.gradient.keys()
    for name, value in expected.gradient.items():
        assert is_own(found.gradient[name])
        assert torch.equal(found.gradient[name], value)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("name", ["gi-x+bn", "gi-z/w", "dlg", "ggl"])
def test_what_an_attack_gets_may_lie_anywhere(name, offset):
    attack = preset(name).scaled(0.005)

    def run(offset: int | None, checkpoint: Checkpoint | None = None):
        taken: list[Checkpoint] = []
        model, prior = tiny_victim(), tiny_prior()
        if offset is not None:
            model, prior = moved_network(model, offset), moved_network(prior, offset)
            prior.requires_grad_(False)
        found = invert(
            observation_of(offset),
            model,
            attack,
            prior=prior if attack.needs_prior else None,  # pyright: ignore[reportArgumentType]
            seed=1,
            callback=lambda progress: taken.append(progress.checkpoint()),
            resume=checkpoint,
        )
        return found, taken

    assert all(is_own(value) for value in tensors_of(observation_of(offset)))
    expected, taken = run(None)
    found, _ = run(offset)
    state = taken[len(taken) // 2]
    there = {key: moved(value, offset) for key, value in state.tensors.items()}
    checkpoint = Checkpoint(there, state.header)
    assert all(is_own(value) for value in checkpoint.tensors.values())
    resumed, _ = run(offset, checkpoint)
    for result in (found, resumed):
        assert torch.equal(result.images, expected.images)
        for stage, wanted in zip(result.stages, expected.stages, strict=True):
            assert torch.equal(stage.cost, wanted.cost)


def test_a_checkpoint_is_as_it_was_after_an_attack_went_on_from_it():
    taken: list[Checkpoint] = []
    observation, attack = observation_of(None), preset("gi-x").scaled(0.005)
    invert(observation, tiny_victim(), attack, callback=lambda p: taken.append(p.checkpoint()))
    state = taken[1]
    before = {name: value.clone() for name, value in state.tensors.items()}
    invert(observation, tiny_victim(), attack, resume=state)
    for name, value in before.items():
        assert torch.equal(state.tensors[name], value), name
