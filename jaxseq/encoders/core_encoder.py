"""A core as an encoder."""

import flax.linen as nn

from jaxseq.cores import Core
from jaxseq.typing import Features, SegmentIds, Sequence


class CoreEncoder(nn.Module):
    """A core run over whole sequences from its initial carry: every output depends on the positions up to its own."""

    core: Core

    def __call__(self, xs: Sequence, segment_ids: SegmentIds | None = None) -> Features:
        """The core's outputs."""
        return self.core(self.core.initial_carry(xs.shape[:-2]), xs, segment_ids)[1]
