"""A core as an encoder of whole sequences."""

import flax.linen as nn

from jaxseq.cores import Core
from jaxseq.typing import Features, SegmentIds, Sequence


class CoreEncoder(nn.Module):
    """A core run over whole sequences from a fresh carry: every output knows what came before it."""

    core: Core

    def __call__(self, xs: Sequence, segment_ids: SegmentIds | None = None) -> Features:
        """The core's outputs."""
        return self.core(self.core.initial_carry(xs.shape[:-2]), xs, segment_ids)[1]
