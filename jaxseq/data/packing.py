"""Batches of documents: packed into rows for training, in reading order for evaluation."""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxseq.data.batch import Batch, Rows, as_tokens, check_sizes, check_step, fingerprint_of, row_indices


class PackedDocuments:
    """Several documents per row, each with its own segment id; no target crosses documents.

    With a ``separator`` a document becomes (separator, text, separator): its first token is predicted from the
    separator, and its end is predicted as a separator. Without, its first token is never predicted. A document longer
    than a row is cut into pieces, each of which is a segment. Every prediction occurs in exactly one row.

    The pieces are packed once by best-fit decreasing (pieces of one length in an order drawn from the seed); an epoch
    takes the rows in an order drawn from (seed, epoch). The last batch of an epoch may contain rows of padding.

    Args:
        documents: the token ids of each document.
        batch_size: the number of rows of a batch, B.
        length: the number of tokens of a row, T.
        seed: the seed of the packing and of the epochs' orders.
        separator: the id before and after each document, or None.

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

    def __call__(self, step: int, rows: Rows = None) -> Batch:
        """The batch of this step, [B, T], or some of its rows."""
        epoch, place = divmod(check_step(step), self.steps_per_epoch)
        places = place * self.batch_size + row_indices(rows, self.batch_size)
        short = ((0, int((places >= self.rows).sum())), (0, 0))
        packed = self.order(epoch)[places[places < self.rows]]
        return Batch(*(np.pad(part[packed], short) for part in (self.tokens, self.targets, self.segment_ids)))

    def order(self, epoch: int) -> np.ndarray:
        """The order of the rows in this epoch (the last one is cached)."""
        if self._order[0] != epoch:
            random = np.random.default_rng((self.seed, 1, epoch))
            self._order = (epoch, random.permutation(self.rows))
        return self._order[1]


class HeldOutDocuments:
    """Every token of every document as a target exactly once, in batches of one shape, for evaluation.

    A document becomes (separator, text): its first token is predicted from the separator, its end is not predicted.
    Documents are assigned, longest first, to the row that is shortest so far, and keep their given order within a row.
    Batch k contains positions k T ... k T + T - 1 of each row: if the carry is passed from batch to batch (and reset
    where segment ids change), each token is predicted from all previous tokens of its document. Rows are padded to
    the same length.

    Args:
        documents: the token ids of each document.
        batch_size: the number of rows of a batch, B.
        length: the number of tokens of a row, T.
        separator: the id before each document.

    Raises:
        ValueError: sizes below 1, or nothing to predict.
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
            raise ValueError(f"the {len(texts)} documents contain no token")
        self._rows = _dealt(texts, batch_size)
        self.num_steps = -(-max(len(tokens) for tokens, _, _ in self._rows) // length)
        self.fingerprint = fingerprint_of(
            "HeldOutDocuments", texts, batch_size=batch_size, length=length, separator=separator
        )

    def __len__(self) -> int:
        """The number of batches."""
        return self.num_steps

    def __iter__(self) -> Iterator[Batch]:
        """All batches, in order."""
        return (self(step) for step in range(self.num_steps))

    def __call__(self, step: int) -> Batch:
        """The batch of this step, [B, T]; after the last step it is padding only."""
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
    """Pieces of at most ``length`` predictions (one token more than that)."""
    return [text[start : start + length + 1] for text in texts for start in range(0, max(0, len(text) - 1), length)]


def _packed(pieces: list[np.ndarray], length: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order = np.random.default_rng((seed, 0)).permutation(len(pieces)).tolist()
    rows: list[list[np.ndarray]] = []
    with_room: list[list[int]] = [[] for _ in range(length + 1)]  # rows by their free space
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
    """Rows of (tokens, targets, segment ids), the documents assigned longest first to the shortest row."""
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
