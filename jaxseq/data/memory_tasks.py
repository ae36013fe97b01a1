"""Synthetic tasks that need a memory: addition, copy and temporal order. ``batch = data(step)``, of unlimited size.

The error of the best prediction that remembers nothing is known for each of them (``baseline``): a model that does not
get below it has learned nothing of the task.
"""

import math
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int32

from jaxseq.data.batch import check_step, fingerprint_of


class MemoryBatch(NamedTuple):
    """Input vectors, a target for each position, and the positions whose prediction counts (targets elsewhere are 0).

    Targets are numbers (``Addition``) or classes (``CopyMemory``, ``TemporalOrder``).
    """

    inputs: Float32[np.ndarray, "B T D"]
    targets: Float32[np.ndarray, "B T"] | Int32[np.ndarray, "B T"]
    counts: Bool[np.ndarray, "B T"]


class Addition:
    """The sum of the two marked values of a sequence (Hochreiter & Schmidhuber 1997, section 5.4).

    ``inputs[t] = (value, marker)`` with values uniform in [0, 1]. One marker is 1 at a random position of the first
    half and one in the second half; all others are 0. The prediction at the last position counts: the sum of the two
    values. This is the form of Le et al. (2015, arXiv:1504.00941) and Arjovsky et al. (2016, arXiv:1511.06464); the
    original draws values from [-1, 1], varies the length and scales the target.

    ``baseline`` is the mean-squared error of predicting 1, the variance of the sum: 2/12 = 0.167.

    Example:
      >>> data = Addition(length=50, batch_size=32)
      >>> inputs, targets, counts = data(0)
      >>> inputs.shape, targets.shape, data.baseline
      ((32, 50, 2), (32, 50), 0.16666666666666666)

    Raises:
      ValueError: a length below 2, a batch size below 1 or a negative seed.
    """

    outputs: ClassVar[int] = 1
    """Width of a prediction: a number."""
    width: ClassVar[int] = 2
    """Width D of the inputs."""
    baseline: ClassVar[float] = 2 / 12
    """Mean-squared error."""

    def __init__(self, length: int, batch_size: int, seed: int = 0) -> None:
        _check("addition", {"length": (length, 2), "batch_size": (batch_size, 1), "seed": (seed, 0)})
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.fingerprint = fingerprint_of("Addition", [], length=length, batch_size=batch_size, seed=seed)

    def __call__(self, step: int) -> MemoryBatch:
        """The batch of this step."""
        random = np.random.default_rng((self.seed, check_step(step)))
        rows, half = np.arange(self.batch_size), self.length // 2
        inputs = np.zeros((self.batch_size, self.length, 2), np.float32)
        inputs[..., 0] = random.random(inputs.shape[:2])
        marked = random.integers(half, size=self.batch_size), random.integers(half, self.length, size=self.batch_size)
        for places in marked:
            inputs[rows, places, 1] = 1
        targets = np.zeros(inputs.shape[:2], np.float32)
        targets[:, -1] = sum(inputs[rows, places, 0] for places in marked)
        return MemoryBatch(inputs, targets, _last(targets))


class CopyMemory:
    """Recall of ``num_recalled`` symbols after ``blank`` steps (Hochreiter & Schmidhuber 1997; arXiv:1511.06464).

    With S recalled symbols and T = ``blank``, a sequence has T + 2 S positions: S symbols drawn from ``num_symbols``,
    T - 1 blanks, a cue, and S blanks. The targets are T + S blanks, then the S symbols in their order. All positions
    count.
    Inputs are one-hot: the symbols, blank, cue; the target classes are the symbols and blank.

    ``baseline`` is the cross-entropy per position, in nats, of a prediction that knows the form and not the symbols:
    ``S log(num_symbols) / (T + 2 S)``, in the paper 10 log 8 / (T + 20).

    Raises:
      ValueError: a blank, a number or a batch size below 1, one symbol alone, or a negative seed.
    """

    def __init__(
        self, blank: int, batch_size: int, seed: int = 0, *, num_symbols: int = 8, num_recalled: int = 10
    ) -> None:
        sizes = {"blank": (blank, 1), "batch_size": (batch_size, 1), "seed": (seed, 0)}
        _check("copy", sizes | {"num_symbols": (num_symbols, 2), "num_recalled": (num_recalled, 1)})
        self.blank, self.batch_size, self.seed = blank, batch_size, seed
        self.num_symbols, self.num_recalled = num_symbols, num_recalled
        self.length, self.width, self.outputs = blank + 2 * num_recalled, num_symbols + 2, num_symbols + 1
        self.baseline = num_recalled * math.log(num_symbols) / self.length
        self.fingerprint = fingerprint_of(
            "CopyMemory",
            [],
            blank=blank,
            batch_size=batch_size,
            seed=seed,
            num_symbols=num_symbols,
            num_recalled=num_recalled,
        )

    def __call__(self, step: int) -> MemoryBatch:
        """The batch of this step."""
        random = np.random.default_rng((self.seed, check_step(step)))
        recalled, blank, cue = self.num_recalled, self.num_symbols, self.num_symbols + 1
        symbols = random.integers(self.num_symbols, size=(self.batch_size, recalled))
        tokens = np.full((self.batch_size, self.length), blank)
        tokens[:, :recalled] = symbols
        tokens[:, recalled + self.blank - 1] = cue
        targets = np.full(tokens.shape, blank, np.int32)
        targets[:, -recalled:] = symbols
        return MemoryBatch(np.eye(self.width, dtype=np.float32)[tokens], targets, np.ones(tokens.shape, bool))


class TemporalOrder:
    """The order of two symbols among distractors (Hochreiter & Schmidhuber 1997; Pascanu et al. 2013, arXiv:1211.5063).

    One of A, B stands at a random position in [T/10, 2T/10], another draw of A, B in [4T/10, 5T/10]; all other
    positions hold one of four distractors. The prediction at the last position counts: the class AA, AB, BA or BB
    (0 to 3). Inputs are one-hot: A, B, four distractors.

    ``baseline`` is the cross-entropy of the uniform prediction, log 4 = 1.386 nats; its accuracy is 1/4.

    Raises:
      ValueError: a length below 10, a batch size below 1 or a negative seed.
    """

    outputs: ClassVar[int] = 4
    """Width of a prediction: the logits of the classes."""
    width: ClassVar[int] = 6
    """Width D of the inputs."""
    baseline: ClassVar[float] = math.log(4)
    """Cross-entropy in nats."""

    def __init__(self, length: int, batch_size: int, seed: int = 0) -> None:
        _check("temporal order", {"length": (length, 10), "batch_size": (batch_size, 1), "seed": (seed, 0)})
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.fingerprint = fingerprint_of("TemporalOrder", [], length=length, batch_size=batch_size, seed=seed)

    def __call__(self, step: int) -> MemoryBatch:
        """The batch of this step."""
        random = np.random.default_rng((self.seed, check_step(step)))
        tokens = random.integers(2, self.width, size=(self.batch_size, self.length))
        symbols = random.integers(2, size=(self.batch_size, 2))
        for column, tenths in enumerate((1, 4)):
            first, last = tenths * self.length // 10, (tenths + 1) * self.length // 10
            places = random.integers(first, last + 1, size=self.batch_size)
            tokens[np.arange(self.batch_size), places] = symbols[:, column]
        targets = np.zeros(tokens.shape, np.int32)
        targets[:, -1] = 2 * symbols[:, 0] + symbols[:, 1]
        return MemoryBatch(np.eye(self.width, dtype=np.float32)[tokens], targets, _last(targets))


def _last(targets: np.ndarray) -> Bool[np.ndarray, "B T"]:
    """True at the last position of each row."""
    counts = np.zeros(targets.shape, bool)
    counts[:, -1] = True
    return counts


def _check(task: str, sizes: dict[str, tuple[int, int]]) -> None:
    """Check that each size is at least its bound."""
    for name, (size, bound) in sizes.items():
        if size < bound:
            raise ValueError(f"{task}: {name} must be at least {bound}, not {size}")
