"""What belongs to a network: its parameters' names, and the constants in its graph."""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from gradinv.engine.rules.op import UnsupportedError


class Names:
    """What belongs to a network: its parameters' names, and the constants in its graph.

    Args:
        model: the network; a parameter that it has under two names goes by the first.
        constants: of its trace, by name.
    """

    def __init__(self, model: nn.Module, constants: Mapping[str, Tensor]) -> None:
        self._model, self._constants = model, constants
        self._names = {id(value): name for name, value in model.named_parameters()}
        self._like = next(model.parameters()).detach()

    def of(self, parameter: Any) -> str:
        """Returns a parameter's name."""
        if id(parameter) not in self._names:
            raise UnsupportedError("a weight that is no parameter of the network")
        return self._names[id(parameter)]

    def bias(self, parameter: Any) -> str | None:
        """Returns the name of a parameter that may be missing."""
        return None if parameter is None else self.of(parameter)

    def attribute(self, target: str) -> Any:
        """Returns what a dotted name refers to."""
        if target in self._constants:
            return self._constants[target]
        return operator.attrgetter(target)(self._model)

    def parameter(self, node: Any) -> Any:
        """Returns the parameter that a node reads; None for None."""
        if node is None:
            return None
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            raise UnsupportedError(f"a weight that is computed ({node})")
        return self.attribute(str(node.target))

    def constant(self, node: Any) -> Tensor:
        """Returns a number, or what a node reads from the network, as a tensor."""
        if isinstance(node, fx.Node):
            if node.op != "get_attr":
                raise UnsupportedError(f"arithmetic between activations ({node.name})")
            node = self.attribute(str(node.target))
            if id(node) in self._names:
                raise UnsupportedError(f"arithmetic with the parameter {self.of(node)}")
        return self.as_activation(node)

    def as_activation(self, value: Any) -> Tensor:
        """Returns a constant in the type of the activations.

        Raises:
            UnsupportedError: PyTorch computes with it in a wider type than that.
        """
        # Of a single number the type says less than of several (torch.result_type).
        wide = torch.result_type(self._like.new_empty(1), value)
        if wide != self._like.dtype:
            raise UnsupportedError(
                f"arithmetic with a constant of {wide} in a network of {self._like.dtype}"
            )
        # Not by way of a default tensor, which has float32's digits alone.
        return torch.as_tensor(value, dtype=wide, device=self._like.device).detach()

    def is_constant(self, node: Any) -> bool:
        """Whether a node is a number or read from the network."""
        return not isinstance(node, fx.Node) or node.op == "get_attr"
