"""The client's gradient and local training; the attacker recomputes both with these functions."""

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradinv.errors import ModelError
from gradinv.federated.loss import Loss
from gradinv.federated.protocol import FedAvg, Order
from gradinv.models.outputs import logits_of


def logits(
    model: nn.Module,
    images: Float[Tensor, "batch channel height width"],
    *,
    state: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, "batch class"]:
    """Returns the logits of images in [0, 1] and leaves the model's buffers as they were.

    Batch norm in train mode writes its running statistics; it gets copies to write to. A tuple, a
    dict or an object with ``.logits`` is unwrapped (:mod:`gradinv.models.outputs`).

    Args:
        model: the network.
        images: in [0, 1].
        state: parameters and buffers by name in place of the model's own; buffers are written to.

    Raises:
        ModelError: there are no logits in what the network returns.
    """
    if state is None:
        if not any(module.training for module in model.modules()):
            return logits_of(model(images))
        state = _buffers(model)
    return logits_of(functional_call(model, dict(state), (images,)))


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters that the client trains, by name, in the model's order.

    Raises:
        ModelError: there are none.
    """
    parameters: dict[str, Tensor] = {
        name: value for name, value in model.named_parameters() if value.requires_grad
    }
    if not parameters:
        raise ModelError(
            "expected at least one parameter with requires_grad, got none; "
            "unfreeze what the client trains"
        )
    return parameters


def loss_gradient(
    model: nn.Module,
    images: Float[Tensor, "batch channel height width"],
    labels: Int[Tensor, " batch"] | Float[Tensor, "batch class"],
    *,
    loss: Loss = Loss(),  # noqa: B008 -- a frozen value
    create_graph: bool = False,
) -> dict[str, Tensor]:
    """Returns the gradient of the client's loss with respect to the parameters.

    g = (1/B) sum_j grad_theta l(f_theta(x_j), y_j) over the batch of B images (Jeon et al. 2021,
    section 3), where l is the cross entropy unless another loss is given. The model's mode is
    taken as it is; its buffers and ``.grad`` stay untouched.

    Args:
        model: f_theta; maps images in [0, 1] to logits.
        images: x_1 ... x_B.
        labels: y_1 ... y_B as classes, or as one distribution over the classes for each image.
        loss: what the client minimises.
        create_graph: keep the graph, so that the gradient can itself be differentiated with
            respect to the images and to soft labels.

    Returns:
        Parameter name -> gradient, for every parameter with ``requires_grad``, in the model's
        order; zeros for a parameter that the loss does not reach.

    Raises:
        ModelError: no parameter is trainable, or the logits carry no gradient at all.
    """
    weights = trainable(model)
    return _gradient(model, images, labels, weights, None, loss, create_graph=create_graph)


def local_update(
    model: nn.Module,
    images: Float[Tensor, "batch channel height width"],
    labels: Int[Tensor, " batch"] | Float[Tensor, "batch class"],
    protocol: FedAvg,
    order: Order,
    *,
    create_graph: bool = False,
) -> dict[str, Tensor]:
    """Returns (theta_0 - theta_T) / lr of local training from the model's weights.

    By SGD, for t = 1 ... T: v_t = momentum v_(t-1) + grad l(theta_(t-1), batch_t) with v_0 = 0, and
    theta_t = theta_(t-1) - lr v_t; other optimisers move as their class in ``torch.optim``. The
    weights really move, so the difference has the rounding that a client's has. Buffers live on
    from step to step in copies; the model's own state stays untouched.

    Args:
        model: the network with theta_0, in the protocol's mode.
        images: of the whole local data set.
        labels: as classes, or as one distribution over the classes for each image.
        protocol: the settings of local training.
        order: which images make each step.
        create_graph: keep the graph of all steps, so that the update can be differentiated with
            respect to the images; its memory grows with the number of steps.

    Returns:
        Parameter name -> update, for every parameter with ``requires_grad``.

    Raises:
        ModelError: no parameter is trainable, or the logits carry no gradient at all.
    """
    start = trainable(model)
    weights, buffers, moments = start, _buffers(model), None
    for number, step in enumerate(order, 1):
        chosen = torch.tensor(step, device=images.device)
        gradient = _gradient(
            model,
            images[chosen],
            labels[chosen],
            weights,
            buffers,
            protocol.loss,
            create_graph=create_graph,
        )
        with torch.set_grad_enabled(create_graph):
            weights, moments = protocol.stepper.step(
                weights, gradient, moments, lr=protocol.lr, number=number
            )
        if not create_graph:
            weights = {name: value.requires_grad_() for name, value in weights.items()}
    with torch.set_grad_enabled(create_graph):
        return {name: (value - weights[name]) / protocol.lr for name, value in start.items()}


def _gradient(
    model: nn.Module,
    images: Float[Tensor, "batch channel height width"],
    labels: Int[Tensor, " batch"] | Float[Tensor, "batch class"],
    weights: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor] | None,
    criterion: Loss,
    *,
    create_graph: bool,
) -> dict[str, Tensor]:
    """Returns the gradient at ``weights``; these are the model's own where there are no buffers."""
    state = None if buffers is None else {**buffers, **weights}
    # The fused kernels of attention have no second derivative; products and a softmax have one.
    kernel = sdpa_kernel(SDPBackend.MATH) if create_graph else nullcontext()
    with torch.enable_grad(), kernel:
        loss = criterion(logits(model, images, state=state), labels)
    if loss.grad_fn is None:
        raise ModelError(
            "expected logits that depend on the parameters, got logits without a gradient; "
            "take no_grad and detach out of the model's forward"
        )
    gradients = torch.autograd.grad(
        loss,
        list(weights.values()),
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(weights, gradients, strict=True))
