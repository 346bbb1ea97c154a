"""How much of what its preset does an attack was allowed to do."""

from collections.abc import Mapping

from gradinv.attacks import PRESETS, Attack


def budgets(attacks: Mapping[str, Attack], given: Mapping[str, Attack]) -> dict[str, float]:
    """Returns the steps of each attack as a fraction of its preset's; 1 where it has no steps.

    Args:
        attacks: spec -> attack as it is run, with ``--steps-scale`` and the spec's own steps.
        given: spec -> attack as it was handed in; an attack that is no preset is compared with it.
    """
    fractions = {}
    for spec, attack in attacks.items():
        usual = PRESETS.get(spec.partition(":")[0], given[spec]).total_steps
        fractions[spec] = attack.total_steps / usual if usual else 1.0
    return fractions


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
