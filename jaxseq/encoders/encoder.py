"""The protocol of encoders."""

from typing import Any, Protocol, runtime_checkable

from jaxseq.typing import Features, SegmentIds


@runtime_checkable
class Encoder(Protocol):
    """``encoder(xs, segment_ids) -> ys``: any Linen module with this call is an encoder.

    ``xs`` are features ``[*B T D]``, or the input of a first encoder: tokens (``TextEncoder``), images. ``ys`` are
    features ``[*B S F]``; those at padded positions (id 0) are zero. An encoder may look ahead, so it has no carry and
    cannot generate.
    """

    def __call__(self, xs: Any, segment_ids: SegmentIds | None = None, /) -> Features:
        """Encodes whole sequences."""
        ...
