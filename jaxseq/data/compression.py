"""A baseline without training: the compressed size of the held-out text, given the training text."""

import lzma

MAX_TRAIN_CHARACTERS = 2**24


def lzma_bits_per_character(
    train_text: str, held_out_text: str, *, max_train_characters: int = MAX_TRAIN_CHARACTERS
) -> float:
    """Bits per character that LZMA needs for the held-out text, with the training text as its dictionary.

        (size(train + held_out) - size(train)) * 8 / characters(held_out)

    LZMA2 without a container, the strongest preset, a dictionary as long as the text. Only the last
    ``max_train_characters`` of the training text are used (a million characters take about a second).

    Raises:
        ValueError: the held-out text is empty.
    """
    if not held_out_text:
        raise ValueError("the held-out text is empty")
    train, held_out = train_text[-max_train_characters:].encode(), held_out_text.encode()
    return (_size(train + held_out) - _size(train)) * 8 / len(held_out_text)


def _size(data: bytes) -> int:
    span = max(2**16, 1 << (len(data) - 1).bit_length()) if data else 2**16
    chain = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": span}]
    return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=chain))
