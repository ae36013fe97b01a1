"""``python -m jaxseq doctor``: does this machine compute right, and what would make it faster? See docs/doctor.md."""

from jaxseq.doctor.check import Check, Finding, run_checks

__all__ = ["Check", "Finding", "run_checks"]
