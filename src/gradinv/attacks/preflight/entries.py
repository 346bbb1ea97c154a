"""What the numbers of an update say by themselves: rounded, dropped, or all of one magnitude."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from gradinv.attacks.preflight.findings import Finding, Kind
from gradinv.federated.defense import changes_direction, rounds
from gradinv.federated.observation import Observation

_ALIKE = 0.6
"""Share of the entries within a fifth of their median magnitude: of a Gaussian it is 0.17."""
_SCATTERED = 0.1
_ENOUGH = 64  # entries of which a share means something


def entry_findings(observation: Observation) -> list[Finding]:
    """Returns what the entries of the update say, without a look at the network."""
    values = [value.detach().cpu() for value in observation.gradient.values()]
    if rounds(observation.defenses):
        return []
    found = _coarse(values)
    if changes_direction(observation.defenses):
        return found
    zeros = scattered_zeros(values)
    if zeros > _SCATTERED:
        return [*found, Finding(Kind.SPARSE, f"{100 * zeros:.0f} % of them", {"share": zeros})]
    adaptive = _one_magnitude(torch.cat([value.double().flatten() for value in values]).abs())
    return found if adaptive is None else [*found, adaptive]


def scattered_zeros(values: Iterable[Tensor]) -> float:
    """Returns the share of zeros among the entries of matrices where there should be none.

    A unit that is off, or an input that is zero, leaves a whole row or column of zeros; what
    somebody dropped lies among others. Kernels of convolutions on a few pixels prove nothing.
    """
    zeros = count = 0
    for value in values:
        if value.ndim != 2:
            continue
        there = value != 0
        inside = there.any(dim=1)[:, None] & there.any(dim=0)[None]
        entries = value[inside]
        zeros += int((entries == 0).sum())
        count += entries.numel()
    return zeros / count if count >= _ENOUGH else 0.0


def _one_magnitude(magnitudes: Float[Tensor, " entry"]) -> Finding | None:
    """Returns a finding where nearly all entries that are not zero have the same magnitude."""
    there = magnitudes[magnitudes > 0]
    if len(there) < _ENOUGH:
        return None
    median = float(there.median())
    alike = float((there.sub(median).abs() <= 0.2 * median).double().mean())
    if alike < _ALIKE:
        return None
    detail = f"{100 * alike:.0f} % of them within a fifth of {median:.3g}"
    return Finding(Kind.ADAPTIVE, detail, {"share": alike, "magnitude": median})


def _coarse(values: list[Tensor]) -> list[Finding]:
    """Returns the shorter type that every entry would survive, if there is one."""
    if sum(int(value.count_nonzero()) for value in values) < _ENOUGH:
        return []
    for short in (torch.bfloat16, torch.float16):
        if all(bool((value.to(short).to(value.dtype) == value).all()) for value in values):
            return [Finding(Kind.COARSE, str(short).removeprefix("torch."))]
    return []
