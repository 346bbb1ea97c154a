"""What R-GAP can determine of a network, said before there is any update."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradinv.attacks.recursion.chain import chain_of
from gradinv.attacks.recursion.linear import system_of
from gradinv.federated.client import logits


@dataclass(frozen=True)
class LayerRank:
    """How much of a layer's input its equations determine.

    Attributes:
        name: of the layer.
        unknowns: numbers that enter it.
        equations: weight and gradient constraints together.
        rank: of the linear system, at a random image.
    """

    name: str
    unknowns: int
    equations: int
    rank: int

    @property
    def open(self) -> int:
        """Dimensions of the input that stay open."""
        return self.unknowns - self.rank


def rank_analysis(
    model: nn.Module, image_shape: tuple[int, int, int], *, seed: int = 0
) -> tuple[LayerRank, ...]:
    """Returns what R-GAP can determine of a network's layers, without any update.

    After the rank analysis of Zhu and Blaschko 2021, section 4. *Deviation:* their index counts
    equations from the shapes; here the rank is that of the system itself, at a random image, which
    also sees equations that repeat each other.

    Args:
        model: f_theta.
        image_shape: of its images.
        seed: of the random image.

    Raises:
        AttackError: the network is no chain of layers that can be undone.
    """
    links = chain_of(model, image_shape)
    if not any(isinstance(link.layer, nn.Conv2d) for link in links):
        return ()  # a linear layer's gradient determines its input alone
    source = torch.Generator().manual_seed(seed)
    weight = next(model.parameters())
    image = torch.rand((1, *image_shape), generator=source).to(weight)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        link.layer.register_forward_hook(_keep(seen, link.name))
        for link in links
        if isinstance(link.layer, nn.Conv2d)
    ]
    try:
        with torch.enable_grad():
            # Through the image, so that frozen layers have a slope too.
            output = logits(model, image.requires_grad_())
            leaving = [value for _, value in seen.values()]
            slopes = torch.autograd.grad(
                nn.functional.cross_entropy(output, output.argmin(dim=1)), leaving
            )
    finally:
        for handle in handles:
            handle.remove()
    ranks = []
    for link, slope in zip([link for link in links if link.name in seen], slopes, strict=True):
        zero = {f"{link.name}.weight": torch.zeros_like(link.layer.weight).double().cpu()}  # type: ignore[union-attr]
        known = seen[link.name][1][0].detach().double().cpu()
        system = system_of(link, known, slope[0].double().cpu(), zero)
        ranks.append(LayerRank(link.name, system.unknowns, len(system.matrix), system.rank))
    return tuple(ranks)


def _keep(
    seen: dict[str, tuple[Tensor, Tensor]], name: str
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def keep(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[name] = (inputs[0], output)

    return keep


def rank_sentence(ranks: tuple[LayerRank, ...]) -> str:
    """Returns the analysis as a reader of an audit needs it."""
    lacking = [
        f"{rank.name} ({rank.rank} of {rank.unknowns} dimensions)" for rank in ranks if rank.open
    ]
    if not lacking:
        return "R-GAP's linear systems determine the input of every layer of this network."
    return (
        f"R-GAP's linear systems leave part of the input open in {', '.join(lacking)}: what is "
        "missing there is not in the update's equations, and a prior decides it."
    )
