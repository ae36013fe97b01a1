"""Documents in rows: packed for training, and laid out in order for evaluation."""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxseq.data.batch import Batch, as_tokens, check_sizes, check_step, fingerprint_of


class PackedDocuments:
    """Whole documents side by side in rows, each a segment of its own; no target crosses documents.

    With a ``separator`` a document is read as (separator, text, separator): its first token is predicted
    from the separator and its end is predicted as one. Without, its first token is only ever an input. A
    document longer than a row is cut into pieces, each of which starts afresh. Every prediction stands in
    exactly one row.

    The pieces are packed once, longest first, each into the row it fills best (those of one length in an
    order drawn from the seed); an epoch takes the rows in an order drawn from (seed, epoch). The last batch
    of an epoch may hold empty rows.

    Raises:
        ValueError: fewer rows than ``batch_size``, or nothing to predict.
    """

    def __init__(
        self,
        documents: Sequence[np.ndarray | Sequence[int]],
        batch_size: int,
        length: int,
        *,
        seed: int = 0,
        separator: int | None = None,
    ) -> None:
        texts = [_delimited(as_tokens(text), separator, ends=True) for text in documents]
        check_sizes("packed documents", batch_size=batch_size, length=length, available=batch_size * length)
        pieces = _pieces(texts, length)
        self.tokens, self.targets, self.segment_ids = _packed(pieces, length, seed)
        self.rows = len(self.tokens)
        if self.rows < batch_size:
            raise ValueError(
                f"a batch larger than the data: {batch_size} rows of {length} tokens, "
                f"but the documents fill only {self.rows}"
            )
        self.batch_size, self.length, self.seed, self.separator = batch_size, length, seed, separator
        self.steps_per_epoch = -(-self.rows // batch_size)
        self.fingerprint = fingerprint_of(
            "PackedDocuments", texts, batch_size=batch_size, length=length, seed=seed, separator=separator
        )
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def __call__(self, step: int) -> Batch:
        """The batch of this step, [B, T]."""
        epoch, place = divmod(check_step(step), self.steps_per_epoch)
        rows = self.order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        short = ((0, self.batch_size - len(rows)), (0, 0))
        return Batch(*(np.pad(part[rows], short) for part in (self.tokens, self.targets, self.segment_ids)))

    def order(self, epoch: int) -> np.ndarray:
        """The order of the rows in this epoch (the latest one is remembered)."""
        if self._order[0] != epoch:
            random = np.random.default_rng((self.seed, 1, epoch))
            self._order = (epoch, random.permutation(self.rows))
        return self._order[1]


class HeldOutDocuments:
    """Every token of every document exactly once as a target, in batches of one shape, for evaluation.

    A document is read as (separator, text): its first token is predicted from the separator, its end is not
    predicted. The documents are dealt out, longest first, each to the row that is shortest so far, and
    stand in their row in the given order. Batch k holds places k T ... k T + T - 1 of each row, so that
    with the carry passed from batch to batch (starting afresh where segment ids change) each token is
    predicted from all of its document before it. Rows that end early are padded: one compiled shape
    evaluates everything.
    """

    def __init__(
        self,
        documents: Sequence[np.ndarray | Sequence[int]],
        batch_size: int,
        length: int,
        *,
        separator: int,
    ) -> None:
        check_sizes("evaluation", batch_size=batch_size, length=length, available=batch_size * length)
        texts = [_delimited(as_tokens(text), separator, ends=False) for text in documents]
        self.batch_size, self.length, self.separator = batch_size, length, separator
        self.num_tokens = sum(len(text) - 1 for text in texts)
        if not self.num_tokens:
            raise ValueError(f"the {len(texts)} held-out documents hold no token")
        self._rows = _dealt(texts, batch_size)
        self.steps = -(-max(len(tokens) for tokens, _, _ in self._rows) // length)
        self.fingerprint = fingerprint_of(
            "HeldOutDocuments", texts, batch_size=batch_size, length=length, separator=separator
        )

    def __len__(self) -> int:
        """The number of batches."""
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        """All batches, in order."""
        return (self(step) for step in range(self.steps))

    def __call__(self, step: int) -> Batch:
        """The batch of this step, [B, T]; past the end all of it is padding."""
        first = check_step(step) * self.length
        batch = np.zeros((3, self.batch_size, self.length), np.int32)
        for row, parts in enumerate(self._rows):
            for kind, part in enumerate(parts):
                piece = part[first : first + self.length]
                batch[kind, row, : len(piece)] = piece
        return Batch(*batch)


def _delimited(text: np.ndarray, separator: int | None, *, ends: bool) -> np.ndarray:
    if separator is None:
        return text
    mark = np.array([separator], np.int32)
    return np.concatenate([mark, text, mark] if ends else [mark, text])


def _pieces(texts: list[np.ndarray], length: int) -> list[np.ndarray]:
    """Stretches of at most ``length`` predictions (one token more than that)."""
    return [text[start : start + length + 1] for text in texts for start in range(0, max(0, len(text) - 1), length)]


def _packed(pieces: list[np.ndarray], length: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order = np.random.default_rng((seed, 0)).permutation(len(pieces)).tolist()
    rows: list[list[np.ndarray]] = []
    with_room: list[list[int]] = [[] for _ in range(length + 1)]  # the rows that have just so much room
    counts = np.zeros(length + 1, np.int64)
    for index in sorted(order, key=lambda i: -len(pieces[i])):
        size = len(pieces[index]) - 1
        room = size + int(np.argmax(counts[size:] > 0))
        if counts[room]:
            row = with_room[room].pop()
            counts[room] -= 1
        else:
            row, room = len(rows), length
            rows.append([])
        rows[row].append(pieces[index])
        with_room[room - size].append(row)
        counts[room - size] += 1
    tokens, targets, segment_ids = np.zeros((3, len(rows), length), np.int32)
    for row, parts in enumerate(rows):
        start = 0
        for number, piece in enumerate(parts, 1):
            end = start + len(piece) - 1
            tokens[row, start:end], targets[row, start:end] = piece[:-1], piece[1:]
            segment_ids[row, start:end] = number
            start = end
    return tokens, targets, segment_ids


def _dealt(texts: list[np.ndarray], batch_size: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows of (tokens, targets, segment ids), the documents dealt out longest first."""
    dealt: list[list[int]] = [[] for _ in range(batch_size)]
    filled = np.zeros(batch_size, np.int64)
    for index in sorted(range(len(texts)), key=lambda i: (-len(texts[i]), i)):
        row = int(np.argmin(filled))
        dealt[row].append(index)
        filled[row] += len(texts[index]) - 1
    none = np.zeros(0, np.int32)
    rows = []
    for indices in dealt:
        parts = [texts[index] for index in sorted(indices)]
        ids = [np.full(len(part) - 1, number, np.int32) for number, part in enumerate(parts, 1)]
        rows.append(
            (
                np.concatenate([none, *(part[:-1] for part in parts)]),
                np.concatenate([none, *(part[1:] for part in parts)]),
                np.concatenate([none, *ids]),
            )
        )
    return rows
