"""What the last layer's gradient of a single image says of its loss and weights, exactly.

With one image dW = d h^T and db = d, d = s (p - t) being the slope of the loss at the logits, h
what the layer saw, t the target and s what a clip left of the length. So h = dW^T d / |d|^2, and
with it p = softmax(W h + b) at the weights that the server holds: the target that the client must
have had is t = p - d / s, which is one-hot for a cross entropy, (1 - e) of that and e / K
everywhere with labels smoothed by e, and neither where the layer had other weights (*ours*).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from gradinv.attacks.preflight.findings import Finding, Kind

_EXACT = 1e-3  # of the largest slope: float32 through a softmax
_RANK_ONE = 1e-3  # of the layer's gradient
_SPREAD = 1e-2  # of p: less does not tell a clip from smoothing


def one_image_findings(
    gradient: Float[Tensor, "class column"],
    weights: Float[Tensor, "class column"],
    *,
    clipped: bool,
) -> list[Finding]:
    """Returns whether the labels were smoothed or the last layer's weights are others.

    Args:
        gradient: [dW | db] of one image, float64, without noise.
        weights: [W | b] that the server holds.
        clipped: whether the update may be shorter than the gradient.
    """
    slope = gradient[:, -1]
    size = float(slope.abs().max())
    if size == 0:
        return []
    features = gradient[:, :-1].T @ slope / slope.square().sum()
    alone = torch.outer(slope, features)
    if (gradient[:, :-1] - alone).norm() > _RANK_ONE * gradient.norm():
        return []  # several local steps: what h was is not known
    p = torch.softmax(weights[:, :-1] @ features + weights[:, -1], dim=0)
    label = int(slope.argmin())
    others = torch.arange(len(p)) != label
    scale = 1.0
    if clipped:
        if float(p[others].std()) <= _SPREAD * float(p[others].mean()):
            return []
        # d = s p - s e / K there: a line through the others' points.
        centred = p[others] - p[others].mean()
        scale = float(centred @ slope[others] / centred.square().sum())
        if scale <= 0:
            return [_other_weights(p, slope)]
    target = p - slope / scale
    rest = target[others]
    uneven = float((rest - rest.mean()).abs().max())
    allowed = _EXACT * max(size / scale, float(p.max()))
    if uneven > allowed:
        return [_other_weights(p, slope)]
    smoothing = float(rest.mean()) * len(p)
    if smoothing <= len(p) * allowed:
        return []
    detail = f"by about {smoothing:.2g}"
    return [Finding(Kind.SMOOTHED, detail, {"smoothing": smoothing})]


def _other_weights(p: Tensor, slope: Tensor) -> Finding:
    gap = float((p - slope)[slope > 0].abs().max()) if bool((slope > 0).any()) else 0.0
    detail = f"the last layer's probabilities are off by up to {gap:.2g}"
    return Finding(Kind.OTHER_WEIGHTS, detail, {"gap": gap})
