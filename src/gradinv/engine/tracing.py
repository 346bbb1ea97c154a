"""From a network to its operations."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx, nn

from gradinv.engine.program import Program
from gradinv.engine.rules.names import Names
from gradinv.engine.rules.norm import BatchNorm
from gradinv.engine.rules.op import Op, UnsupportedError
from gradinv.engine.rules.piecewise import Piecewise, PReLU
from gradinv.engine.rules.pointwise import LeakyReLU, ReLU
from gradinv.engine.rules.table import (
    FUNCTIONS,
    METHODS,
    MODULES,
    Found,
    is_check,
    is_size,
    require_arguments,
)
from gradinv.models.outputs import logits_in
from gradinv.models.tracer import Tracer


def trace(model: nn.Module, wanted: frozenset[str]) -> Program:
    """Returns the network's operations.

    Args:
        model: the network in the mode that it is attacked in.
        wanted: names of the parameters whose gradient is matched.

    Raises:
        UnsupportedError: an operation has no rule, or the network cannot be traced.
    """
    tracer = Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:  # foreign code runs here, which may raise anything
        first = str(error).strip().splitlines() or [""]
        raise UnsupportedError(
            f"the network as torch.fx sees it ({type(error).__name__}: {first[0]})"
        ) from error
    names = Names(model, tracer.constants)
    ops: list[tuple[Op, tuple[int, ...]]] = []
    values: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            if values:
                if node.users:
                    raise UnsupportedError(f"a second argument ({node.name})")
                continue
            values[node] = 0
        elif node.op == "output":
            (result,) = node.args
            result = logits_in(result)
            position = values.get(result) if isinstance(result, fx.Node) else None
            if position is None or position != len(ops) or not ops:
                raise UnsupportedError("an output that is not the logits alone")
        elif node.op == "get_attr" or is_size(node) or is_check(node):
            continue
        else:
            op, inputs = _rule(node, names)
            missing = [value for value in inputs if value not in values]
            if missing:
                raise UnsupportedError(_described(node, names))
            ops.append((op, tuple(values[value] for value in inputs)))
            values[node] = len(ops)
    ops, left_out = _needed(ops)
    beside = tuple(op.layer for op in left_out if isinstance(op, BatchNorm))
    return Program(ops, wanted, norms_beside=beside)


def _needed(
    ops: list[tuple[Op, tuple[int, ...]]],
) -> tuple[list[tuple[Op, tuple[int, ...]]], list[Op]]:
    """Returns the operations that the last one needs, and the others."""
    needed = {len(ops)}
    for value in range(len(ops), 0, -1):
        if value in needed:
            needed.update(ops[value - 1][1])
    order = [value for value in range(1, len(ops) + 1) if value in needed]
    number = {0: 0} | {value: position for position, value in enumerate(order, 1)}
    kept = [(ops[v - 1][0], tuple(number[i] for i in ops[v - 1][1])) for v in order]
    return kept, [op for value, (op, _) in enumerate(ops, 1) if value not in needed]


def _rule(node: fx.Node, names: Names) -> Found:
    """Returns the node's rule and the nodes that it takes."""
    if node.op == "call_module":
        module = names.attribute(str(node.target))
        if type(module) not in MODULES or node.kwargs:
            raise UnsupportedError(_described(node, names))
        return MODULES[type(module)](names, module, str(node.target)), list(node.args)
    table: Mapping[Any, Callable[..., Found]] = METHODS if node.op == "call_method" else FUNCTIONS
    if node.target not in table:
        raise UnsupportedError(_described(node, names))
    build = table[node.target]
    require_arguments(build, names, *node.args, **node.kwargs)
    return build(names, *node.args, **node.kwargs)


def _described(node: fx.Node, names: Names) -> str:
    """Returns the operation's name as a person would look for it."""
    if node.op == "call_module":
        return f"{type(names.attribute(str(node.target))).__name__} ({node.target})"
    if node.op == "call_method":
        return f"Tensor.{node.target} ({node.name})"
    return f"{getattr(node.target, '__name__', node.target)} ({node.name})"


_KINKED = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Hardtanh, nn.Hardsigmoid)


def kinks(model: nn.Module) -> tuple[str, ...]:
    """Returns the kinds of activations whose slope jumps, where a second derivative tells nothing.

    Of a network that cannot be traced only the modules are looked at.
    """
    names = {type(layer).__name__ for layer in model.modules() if isinstance(layer, _KINKED)}
    try:
        program = trace(model, frozenset(name for name, _ in model.named_parameters()))
    except UnsupportedError:
        return tuple(sorted(names))
    ops = [node.op for node in program.nodes]
    if not names and any(isinstance(op, ReLU | LeakyReLU | PReLU | Piecewise) for op in ops):
        return ("a piecewise linear activation",)
    return tuple(sorted(names))
