"""How torch.fx sees a client's network."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from gradinv.models.normalize import Normalize
from gradinv.models.outputs import logits_in


class Tracer(fx.Tracer):
    """Keeps our normalisation whole, and takes the logits out of outputs that fx does not know.

    Attributes:
        constants: by the names that the graph reads them by, tensors that the network's forward
            makes of nothing. They would stay on the network, more of them with every trace.
    """

    constants: dict[str, Tensor]

    def trace(
        self,
        root: nn.Module | Callable[..., Any],
        concrete_args: dict[str, Any] | None = None,
    ) -> fx.Graph:
        """Returns the network's graph, and leaves the network as it was.

        A forward that keeps what it computes, as ``self.features = x``, keeps proxies in a trace;
        one that counts its batches counts this one.
        """
        assert isinstance(root, nn.Module)
        before = {module: dict(vars(module)) for module in root.modules()}
        buffers = [(value, value.clone()) for value in root.buffers()]
        try:
            return super().trace(root, concrete_args)
        finally:
            own = vars(root)
            self.constants = {
                name: own[name]
                for name in own.keys() - before[root].keys()
                if isinstance(own[name], Tensor)
            }
            for module, state in before.items():
                vars(module).clear()
                vars(module).update(state)
            with torch.no_grad():
                for value, own in buffers:
                    value.copy_(own)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Returns whether a module is one operation."""
        return isinstance(m, Normalize) or super().is_leaf_module(m, module_qualified_name)

    def create_arg(self, a: Any) -> Any:
        """Returns what the graph holds of a value."""
        # A proxy says yes to every attribute.
        holds = not isinstance(a, fx.Proxy) and hasattr(a, "logits")
        return super().create_arg(logits_in(a) if holds else a)
