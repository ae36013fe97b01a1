"""The free baseline: what a general compressor needs for the held-out text, knowing the training text."""

import lzma

LIMIT = 2**24


def lzma_bits_per_character(train_text: str, held_out_text: str, *, limit: int = LIMIT) -> float:
    """Bits per character that LZMA needs for the held-out text with the training text as its dictionary.

        (size(train + held_out) - size(train)) * 8 / characters(held_out)

    LZMA2, raw (no container), the strongest preset, a dictionary that spans everything. Of a longer training
    text only the last ``limit`` characters are used (it takes about a second for a million).

    Raises:
        ValueError: the held-out text is empty.
    """
    if not held_out_text:
        raise ValueError("the held-out text is empty")
    train, held_out = train_text[-limit:].encode(), held_out_text.encode()
    return (_size(train + held_out) - _size(train)) * 8 / len(held_out_text)


def _size(data: bytes) -> int:
    span = max(2**16, 1 << (len(data) - 1).bit_length()) if data else 2**16
    chain = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": span}]
    return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=chain))
