"""How torch.fx sees a client's network."""

from typing import Any

from torch import fx, nn

from gradinv.models.normalize import Normalize
from gradinv.models.outputs import logits_in


class Tracer(fx.Tracer):
    """Keeps our normalisation whole, and takes the logits out of outputs that fx does not know."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Returns whether a module is one operation."""
        return isinstance(m, Normalize) or super().is_leaf_module(m, module_qualified_name)

    def create_arg(self, a: Any) -> Any:
        """Returns what the graph holds of a value."""
        # A proxy says yes to every attribute.
        holds = not isinstance(a, fx.Proxy) and hasattr(a, "logits")
        return super().create_arg(logits_in(a) if holds else a)
