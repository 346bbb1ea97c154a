"""Audits: what to do, running it, storing it, and reducing it to a few numbers."""
