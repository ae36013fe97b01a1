"""Object proposals: selective search, sliding windows, jittered objects, and their cache. NumPy only, no JAX."""

from jaxseq.data.proposals.cached import ProposalMethod, Proposals, ProposalSource, padded_boxes
from jaxseq.data.proposals.selective_search import Preset, SelectiveSearch, selective_search
from jaxseq.data.proposals.windows import SlidingWindows, jittered_boxes, sliding_windows

__all__ = [
    "Preset",
    "ProposalMethod",
    "ProposalSource",
    "Proposals",
    "SelectiveSearch",
    "SlidingWindows",
    "jittered_boxes",
    "padded_boxes",
    "selective_search",
    "sliding_windows",
]
