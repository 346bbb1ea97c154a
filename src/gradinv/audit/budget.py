"""How much of what its preset does an attack was allowed to do."""

from collections.abc import Mapping

from gradinv.attacks import Attack, preset


def budgets(attacks: Mapping[str, Attack]) -> dict[str, float]:
    """Returns the steps of each attack as a fraction of its preset's; 1 where it has no steps.

    Args:
        attacks: spec -> attack as it is run, with ``--steps-scale`` and the spec's own steps.
    """
    return {
        spec: attack.total_steps / usual if (usual := _usual_steps(spec)) else 1.0
        for spec, attack in attacks.items()
    }


def _usual_steps(spec: str) -> int:
    return preset(spec.partition(":")[0]).total_steps


def budget_note(fractions: Mapping[str, float]) -> str | None:
    """Returns a sentence about the attacks that did less than their presets; None without any."""
    few = {spec: fraction for spec, fraction in fractions.items() if fraction < 1}
    if not few:
        return None
    steps = ", ".join(f"{spec} {100 * fraction:.3g} %" for spec, fraction in few.items())
    return (
        f"A first look only: not all of the presets' steps were done ({steps}). With all of them "
        "these attacks may find more; run the audit without --steps-scale and steps= to decide."
    )
