"""The numbers and figures behind docs/errata.md: one function for each entry."""

from jaxseq.pipelines.errata.figures import draw_errata
from jaxseq.pipelines.errata.table import ERRATA, compute_errata

__all__ = ["ERRATA", "compute_errata", "draw_errata"]
