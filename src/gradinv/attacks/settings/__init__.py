"""The numbers of attacks: as text, and as they were found by tuning."""

from gradinv.attacks.settings.text import with_settings
from gradinv.attacks.settings.tuned import Shown, Tuned, settings_of

__all__ = ["Shown", "Tuned", "settings_of", "with_settings"]
