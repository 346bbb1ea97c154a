"""The client's gradient. The attacker recomputes it with the same function."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from gradinv.errors import ModelError


def logits(
    model: nn.Module, images: Float[Tensor, "batch channel height width"]
) -> Float[Tensor, "batch class"]:
    """Returns the logits of images in [0, 1] and leaves the model's buffers as they were.

    Batch norm in train mode writes its running statistics; it gets copies to write to.
    """
    if not any(module.training for module in model.modules()):
        return model(images)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return functional_call(model, buffers, (images,))


def loss_gradient(
    model: nn.Module,
    images: Float[Tensor, "batch channel height width"],
    labels: Int[Tensor, " batch"] | Float[Tensor, "batch class"],
    *,
    create_graph: bool = False,
) -> dict[str, Tensor]:
    """Returns the gradient of the mean cross entropy with respect to the parameters.

    g = (1/B) sum_j grad_theta l(f_theta(x_j), y_j) over the batch of B images (Jeon et al. 2021,
    section 3). The model's mode is taken as it is; its buffers and ``.grad`` stay untouched.

    Args:
        model: f_theta; maps images in [0, 1] to logits.
        images: x_1 ... x_B.
        labels: y_1 ... y_B as classes, or as one distribution over the classes for each image.
        create_graph: keep the graph, so that the gradient can itself be differentiated with
            respect to the images and to soft labels.

    Returns:
        Parameter name -> gradient, for every parameter with ``requires_grad``, in the model's
        order; zeros for a parameter that the loss does not reach.

    Raises:
        ModelError: no parameter is trainable, or the logits carry no gradient at all.
    """
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if not parameters:
        raise ModelError(
            "expected at least one parameter with requires_grad, got none; "
            "unfreeze what the client trains"
        )
    with torch.enable_grad():
        loss = functional.cross_entropy(logits(model, images), labels)
    if loss.grad_fn is None:
        raise ModelError(
            "expected logits that depend on the parameters, got logits without a gradient; "
            "take no_grad and detach out of the model's forward"
        )
    gradients = torch.autograd.grad(
        loss,
        list(parameters.values()),
        create_graph=create_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(parameters, gradients, strict=True))
