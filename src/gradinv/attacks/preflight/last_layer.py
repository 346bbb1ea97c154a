"""What the last layer's gradient must be if loss, labels, sign and scale are what they are said.

With logits z = W h + b, softmax p and the mean cross entropy over B images, row c of the layer's
gradient is dW_c = (1/B) sum_j (p_jc - [y_j = c]) h_j and db_c = (1/B) sum_j (p_jc - [y_j = c]). So
all rows sum to zero, in a gradient as in any number of local steps; db_c of a class without images
is positive; and the positive db_c sum to less than 1. Weight decay adds a multiple of the weights,
whose rows do not sum to zero.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradinv.attacks.evidence.head import Head, find_head, random_images
from gradinv.attacks.preflight.findings import Finding, Kind
from gradinv.attacks.preflight.one_image import one_image_findings
from gradinv.errors import AttackError
from gradinv.federated.defense import changes_length, keeps_entries, noise_of
from gradinv.federated.observation import Observation
from gradinv.federated.protocol import FedAvg

_PROBES = 4
_SIGMAS = 6.0
_EXACT = 1e-5
"""Of the length of all rows: what a float32 sum of zero may be."""
_SHORT_TYPE = 0.02
"""The same where every entry was rounded to three digits."""
_OTHER = 30.0  # times that: no rounding and no weight decay
_NEAR = 0.03
_MOST = 0.75
_BOUND = 0.15
_LEAST_STEP = 0.9  # learning rates: Adam's first step is one
_ENTRIES, _TENSORS = 16, 4
_ALONG = 0.9  # cosine between what is left over and the weights' own sum


def last_layer_findings(
    observation: Observation, model: nn.Module, *, coarse: bool, seed: int
) -> list[Finding]:
    """Returns how the last layer's gradient is not what it should be; nothing without such a layer.

    Args:
        observation: the update, on the CPU.
        model: f_theta in the protocol's mode.
        coarse: whether its numbers were rounded to a shorter type.
        seed: of the random images that find the layer.
    """
    rows = _Rows.of(observation, model, coarse=coarse, seed=seed)
    if rows is None or not keeps_entries(observation.defenses):
        return []
    found = _sums(rows, observation)
    # What is no sum of gradients at all need not have their signs and lengths.
    if rows.bias is None or any(finding.kind is not Kind.WEIGHT_DECAY for finding in found):
        return found
    signs = _signs(rows.bias, rows.bias_error, observation)
    found += [*signs, *_length(rows, observation)]
    # Several local steps have no single h, and noise and weight decay are not part of the slope.
    single = observation.batch_size == 1 and _gradients(observation) == 1
    if found or coarse or rows.sigma or not single:
        return found
    clipped = changes_length(observation.defenses)
    return one_image_findings(rows.gradient, rows.start, clipped=clipped)


@dataclass(frozen=True, eq=False)
class _Rows:
    """The last layer's gradient beside the layer, float64.

    Attributes:
        gradient: [dW | db].
        start: [W | b] at theta_0.
        bias: db; None where the update has none.
        sigma: standard deviation of the noise in an entry.
        rounding: how inexact an entry can be.
        inexact: the same, relative to the length of all rows.
    """

    gradient: Float[Tensor, "class column"]
    start: Float[Tensor, "class column"]
    bias: Float[Tensor, " class"] | None
    sigma: float
    rounding: float
    inexact: float

    @classmethod
    def of(
        cls, observation: Observation, model: nn.Module, *, coarse: bool, seed: int
    ) -> "_Rows | None":
        weight = next(model.parameters())
        source = torch.Generator().manual_seed(seed)
        probes = random_images(_PROBES, observation.image_shape, source)
        try:
            head = find_head(model, probes.to(weight.device, weight.dtype))
        except AttackError:
            return None
        if head.weight_name not in observation.gradient or not head.alone:
            return None
        parts = [(observation.gradient[head.weight_name], head.weight)]
        bias = None
        if head.bias is not None and head.bias_name in observation.gradient:
            bias = observation.gradient[head.bias_name].detach().double().cpu()
            parts.append((bias[:, None], head.bias[:, None]))
        sent, start = (
            torch.cat([part[side].detach().double().cpu() for part in parts], dim=1)
            for side in (0, 1)
        )
        return cls(
            gradient=sent,
            start=start,
            bias=bias,
            sigma=noise_of(observation.defenses),
            rounding=_rounding(observation, head),
            inexact=_SHORT_TYPE if coarse else _EXACT,
        )

    @property
    def bias_error(self) -> float:
        """How far an entry of db can be from what it is, by noise and rounding."""
        assert self.bias is not None
        return _SIGMAS * self.sigma + self.rounding + self.inexact * float(self.bias.abs().max())


def _rounding(observation: Observation, head: Head) -> float:
    """Returns how inexact an entry of local training is: as its two sets of weights are."""
    protocol = observation.protocol
    if not isinstance(protocol, FedAvg):
        return 0.0
    eps = torch.finfo(observation.gradient[head.weight_name].dtype).eps
    steps = protocol.steps(observation.batch_size)
    return 4 * steps * eps * float(head.weight.abs().max()) / protocol.lr


def _sums(rows: _Rows, observation: Observation) -> list[Finding]:
    """Returns what the sum over the classes says, which is zero for every gradient."""
    classes, columns = rows.gradient.shape
    left = rows.gradient.sum(dim=0)
    own = rows.start.sum(dim=0)
    length = float(rows.gradient.norm())
    random = math.sqrt(classes * columns) * (_SIGMAS * rows.sigma + rows.rounding)
    allowed = rows.inexact * length + random
    size = float(left.norm())
    if size <= allowed:
        return []
    along = float(left @ own) / float(own.square().sum().clamp_min(torch.finfo(own.dtype).tiny))
    cosine = float(left @ own) / max(size * float(own.norm()), torch.finfo(own.dtype).tiny)
    if cosine > _ALONG:
        decay = along / _gradients(observation)
        detail = f"{decay:.2g} of the weights for each gradient"
        return [Finding(Kind.WEIGHT_DECAY, detail, {"decay": decay})]
    if size <= _OTHER * allowed:
        return []
    adaptive = None if rows.bias is None else _whole_steps(rows.bias)
    adaptive = adaptive or _one_bound(observation)
    if adaptive is not None:
        return [adaptive]
    share = size / length
    return [Finding(Kind.OTHER_LOSS, f"{100 * share:.1f} % of it are left", {"share": share})]


def _whole_steps(bias: Float[Tensor, " class"]) -> Finding | None:
    """Returns a finding where nearly every db_c is one whole number of steps of +1 or -1."""
    steps = round(float(bias.abs().median()))
    near = float(((bias.abs() - steps).abs() <= _NEAR * steps).double().mean())
    if steps < 1 or near < _MOST:
        return None
    detail = f"{steps} for most classes of the last layer"
    return Finding(Kind.ADAPTIVE, detail, {"share": near, "magnitude": float(steps)})


def _one_bound(observation: Observation) -> Finding | None:
    """Returns a finding where the largest entries of most tensors are alike, and a step or more.

    No step of Adam is much longer than its learning rate, and in every tensor some entry goes one
    way at all steps. The gradients of layers differ by orders of magnitude.
    """
    values = [g for g in observation.gradient.values() if g.numel() >= _ENTRIES]
    if len(values) < _TENSORS:
        return None
    largest = torch.stack([value.abs().max().double().cpu() for value in values])
    bound = float(largest.median())
    alike = float(((largest - bound).abs() <= _BOUND * bound).double().mean())
    if alike < _MOST or bound < _LEAST_STEP:
        return None
    detail = f"at most about {bound:.2g} in most tensors"
    return Finding(Kind.ADAPTIVE, detail, {"share": alike, "magnitude": bound})


def _gradients(observation: Observation) -> float:
    """Returns how many gradients the update is a sum of."""
    protocol = observation.protocol
    return protocol.gradients(observation.batch_size) if isinstance(protocol, FedAvg) else 1.0


def _signs(bias: Float[Tensor, " class"], error: float, observation: Observation) -> list[Finding]:
    """Returns what the signs of db say, which are positive where a class has no image."""
    if observation.labels is None:
        count = observation.batch_size
        down, up = int((bias < -error).sum()), int((bias > error).sum())
        if down <= count:
            return []
        numbers = {"classes": float(down)}
        detail = f"{down} classes grow with {count} image{'s' if count > 1 else ''}"
        kind = Kind.WRONG_SIGN if up <= count else Kind.OTHER_LABELS
        return [Finding(kind, detail, numbers)]
    absent = torch.ones(len(bias), dtype=torch.bool)
    absent[observation.labels.cpu()] = False
    wrong = absent & (bias < -error)
    if not wrong.any():
        return []
    names = ", ".join(map(str, wrong.nonzero().flatten().tolist()[:5]))
    more = f" and {int(wrong.sum()) - 5} more" if int(wrong.sum()) > 5 else ""
    detail = f"class {names}{more} grows without an image of it"
    # All of them the other way round: that is the sign, not the labels.
    turned = bool((bias[absent] <= error).all()) and int(absent.sum()) > 1
    kind = Kind.WRONG_SIGN if turned else Kind.OTHER_LABELS
    return [Finding(kind, detail, {"classes": float(wrong.sum())})]


def _length(rows: _Rows, observation: Observation) -> list[Finding]:
    """Returns whether the positive db_c sum to more than 1 for each gradient."""
    assert rows.bias is not None
    if changes_length(observation.defenses):
        return []
    noise = rows.sigma * math.sqrt(len(rows.bias)) * _SIGMAS
    beyond = float(rows.bias.clamp_min(0).sum()) - noise - len(rows.bias) * rows.rounding
    most = _gradients(observation)
    if beyond <= 1.02 * most:
        return []
    detail = f"at least {beyond / most:.1f} times as long"
    return [Finding(Kind.TOO_LONG, detail, {"times": beyond / most})]
