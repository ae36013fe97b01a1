"""Sequences cut into chunks, one a step, for truncated back-propagation within each sequence."""

from jaxseq.data.batch import Batch, Dataset, check_step, fingerprint_of


class SequenceChunks:
    """The batches [B, T] of a dataset, each cut along time into n = T / cut chunks [B, cut], one a step.

    Step s is chunk ``s % n`` of batch ``s // n``, so that the same tokens are seen in the same order for every cut. The
    sequences of a batch start at step ``stream_start(s) = s - s % n``, where truncated back-propagation starts from the
    initial carry.

    Raises:
        ValueError: a cut that does not divide the length T.
    """

    def __init__(self, data: Dataset[Batch], cut: int) -> None:
        length = data(0).tokens.shape[1]
        if cut < 1 or length % cut:
            raise ValueError(f"cut={cut} must divide the length {length} of the sequences")
        self.data, self.cut, self.chunks_per_sequence = data, cut, length // cut
        self.fingerprint = fingerprint_of("SequenceChunks", [], data=data.fingerprint, cut=cut)

    def __call__(self, step: int) -> Batch:
        """The batch of this step, [B, cut]."""
        index, chunk = divmod(check_step(step), self.chunks_per_sequence)
        columns = slice(chunk * self.cut, (chunk + 1) * self.cut)
        return Batch(*(part[:, columns] for part in self.data(index)))

    def stream_start(self, step: int) -> int:
        """The first step of the sequences of this step's batch."""
        return check_step(step) // self.chunks_per_sequence * self.chunks_per_sequence
