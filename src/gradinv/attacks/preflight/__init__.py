"""What can be told about an update and its network before any attack; no ground truth in here."""

from gradinv.attacks.preflight.findings import Finding, Kind, Preflight, Severity
from gradinv.attacks.preflight.preflight import preflight, preflight_derivative

__all__ = ["Finding", "Kind", "Preflight", "Severity", "preflight", "preflight_derivative"]
