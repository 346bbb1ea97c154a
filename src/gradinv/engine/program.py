"""A network as a list of operations, and the four passes over it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from gradinv.engine.rules.norm import BatchNorm
from gradinv.engine.rules.op import Op, Run, Saved

# Gives what is to be added to R{gx} of a batch-norm layer, from what the layer saved.
Injection = Callable[[BatchNorm, Saved], Tensor]


@dataclass(frozen=True, eq=False)
class Node:
    """One operation; value 0 is the images, value i + 1 the result of node i.

    Attributes:
        op: its rule.
        inputs: values that it takes.
        wants_input: whether the first-order pass needs dL/d(input), which is so where a matched
            parameter lies upstream.
        last_use: values that nothing after this node takes.
    """

    op: Op
    inputs: tuple[int, ...]
    wants_input: bool
    last_use: tuple[int, ...]


class Program:
    """The network's operations in the order of their execution.

    Args:
        ops: rule and inputs of each operation; the last one gives the logits.
        wanted: names of the parameters whose gradient is matched.
        norms_beside: names of batch-norm layers that are called, but that the logits do not need.
    """

    def __init__(
        self,
        ops: list[tuple[Op, tuple[int, ...]]],
        wanted: frozenset[str],
        *,
        norms_beside: tuple[str, ...] = (),
    ) -> None:
        self.norms_beside = norms_beside
        upstream = [False]
        for op, inputs in ops:
            owns = any(name in wanted for name in op.parameters)
            upstream.append(owns or any(upstream[value] for value in inputs))
        last = {value: index for index, (_, inputs) in enumerate(ops) for value in inputs}
        self.nodes = [
            Node(
                op,
                inputs,
                wants_input=any(upstream[value] for value in inputs),
                last_use=tuple(value for value, index in last.items() if index == position),
            )
            for position, (op, inputs) in enumerate(ops)
        ]
        self.reached = upstream

    def used_once(self, names: frozenset[str]) -> list[str]:
        """Returns those of the parameters that a single operation uses."""
        uses = [name for node in self.nodes for name in node.op.parameters]
        return [name for name in uses if name in names and uses.count(name) == 1]

    def forward(self, run: Run, tape: list[Saved], images: Tensor) -> Tensor:
        """Returns the logits; ``tape`` is filled with what each operation keeps."""
        values: dict[int, Tensor] = {0: images}
        for index, node in enumerate(self.nodes):
            saved = Saved()
            tape.append(saved)
            values[index + 1] = node.op.forward(run, saved, *(values[v] for v in node.inputs))
            for value in node.last_use:
                del values[value]
        return values[len(self.nodes)]

    def activations(self, run: Run, images: Tensor) -> int:
        """Returns the number of elements of all values together."""
        tape: list[Saved] = []
        total, values = images.numel(), {0: images}
        for index, node in enumerate(self.nodes):
            tape.append(Saved())
            inputs = (values[value] for value in node.inputs)
            values[index + 1] = node.op.forward(run, tape[index], *inputs)
            total += values[index + 1].numel()
        return total

    def backward(
        self, run: Run, tape: list[Saved], gy: Tensor, *, to_images: bool = False
    ) -> Tensor | None:
        """Fills the run's gradients from dL/d(logits); returns dL/d(images) if it is asked for."""
        adjoints: dict[int, Tensor] = {len(self.nodes): gy}
        for index in range(len(self.nodes) - 1, -1, -1):
            node = self.nodes[index]
            own = adjoints.pop(index + 1, None)
            if own is None or not (to_images or self.reached[index + 1]):
                continue
            wants_input = to_images or node.wants_input
            results = node.op.backward(run, tape[index], own, wants_input=wants_input)
            for value, gx in zip(node.inputs, results, strict=True):
                if gx is not None and (to_images or self.reached[value]):
                    known = adjoints.get(value)
                    adjoints[value] = gx if known is None else known + gx
        return adjoints.get(0)

    def replay(self, run: Run, tape: list[Saved], pattern: list[Saved], images: Tensor) -> Tensor:
        """Returns the logits at other weights, with the kinks of a recorded pass."""
        values: dict[int, Tensor] = {0: images}
        for index, node in enumerate(self.nodes):
            saved = Saved()
            tape.append(saved)
            inputs = (values[value] for value in node.inputs)
            values[index + 1] = node.op.replay(run, saved, pattern[index], *inputs)
            for value in node.last_use:
                del values[value]
        return values[len(self.nodes)]

    def replay_backward(
        self,
        run: Run,
        tape: list[Saved],
        pattern: list[Saved],
        gy: Tensor,
        inject: Injection | None,
    ) -> Tensor:
        """Returns dL/d(images) of the replayed pass."""
        adjoints: dict[int, Tensor] = {len(self.nodes): gy}
        for index in range(len(self.nodes) - 1, -1, -1):
            node = self.nodes[index]
            own = adjoints.pop(index + 1, None)
            if own is None:
                continue
            results = node.op.replay_backward(run, tape[index], pattern[index], own)
            if inject is not None and isinstance(node.op, BatchNorm):
                results = (results[0] + inject(node.op, pattern[index]),)
            for value, gx in zip(node.inputs, results, strict=True):
                known = adjoints.get(value)
                adjoints[value] = gx if known is None else known + gx
        return adjoints[0]

    def tangent_forward(self, run: Run, tape: list[Saved]) -> Tensor | None:
        """Returns R{logits}."""
        tangents: dict[int, Tensor | None] = {0: None}
        for index, node in enumerate(self.nodes):
            inputs = [tangents[value] for value in node.inputs]
            tangents[index + 1] = node.op.tangent_forward(run, tape[index], *inputs)
            for value in node.last_use:
                del tangents[value]
        return tangents[len(self.nodes)]

    def tangent_backward(
        self, run: Run, tape: list[Saved], r_gy: Tensor, inject: Injection | None
    ) -> Tensor:
        """Returns R{dL/d(images)}; empties the tape from its end."""
        adjoints: dict[int, Tensor] = {len(self.nodes): r_gy}
        for index in range(len(self.nodes) - 1, -1, -1):
            node, saved = self.nodes[index], tape.pop()
            own = adjoints.pop(index + 1, None)
            if own is None:
                continue
            results = node.op.tangent_backward(run, saved, own)
            if inject is not None and isinstance(node.op, BatchNorm):
                results = (results[0] + inject(node.op, saved),)
            for value, r_gx in zip(node.inputs, results, strict=True):
                known = adjoints.get(value)
                adjoints[value] = r_gx if known is None else known + r_gx
        return adjoints[0]
