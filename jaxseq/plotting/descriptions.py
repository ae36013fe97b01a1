"""What a figure shows, in words: made from its parts, stored in the file, and read from it as an alternative text."""

import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

LONGEST, CURVES = 1200, 12
"""The greatest number of characters of a description, and of curves that it names in a panel."""


class PngText(NamedTuple):
    """The size of a PNG in pixels, and the description that ``save_figure`` stored; empty where there is none."""

    width: int
    height: int
    description: str


def describe_figure(figure: Any) -> str:
    """Describe a figure: its title, and for each panel the titles, the axes, and the curves with first and last values.

    Args:
        figure: a ``matplotlib.figure.Figure``.
    """
    title = figure.get_suptitle()
    parts = [_sentence(title)] if title else []
    parts += [text for axes in figure.axes if axes.get_visible() and (text := _describe_axes(axes))]
    text = " ".join(parts)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _describe_axes(axes: Any) -> str:
    if axes.get_label() == "<colorbar>":
        return f"Colour scale: {axes.get_ylabel()}." if axes.get_ylabel() else ""
    title = axes.get_title(loc="left") or axes.get_title()
    labels = [label for label in (axes.get_ylabel(), axes.get_xlabel()) if label]
    about = " against ".join(labels)
    parts = [part for part in (title, about) if part]
    parts = [about] if title and about.lower().startswith(title.lower()) else parts
    images = [f"{image.get_array().shape[0]} by {image.get_array().shape[1]} cells" for image in axes.get_images()]
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) > 1]
    named = [text for line in lines if (text := _describe_line(line, axes.get_ylabel()))]
    parts += images[:1] if images and not lines else []
    more = [f"and {len(named) - CURVES} more curves"] if len(named) > CURVES else []
    told = "; ".join(named[:CURVES] + more)
    return _sentence(": ".join([", ".join(parts), told]) if told and parts else told or ", ".join(parts))


def _describe_line(line: Any, name: str) -> str:
    """The name of a curve with its first and last value, if it has two; empty for a curve without a name."""
    label = str(line.get_label())
    label = name if label.startswith("_") else label
    try:
        values = [float(value) for value in line.get_ydata()]
    except (TypeError, ValueError):
        return label
    limit = line.get_linestyle() != "-" and min(values) == max(values)  # whose name tells its value
    return label if limit or not label else f"{label} {values[0]:.4g} to {values[-1]:.4g}"


def _sentence(text: str) -> str:
    text = one_line(text).rstrip(".")
    return f"{text}." if text else ""


def one_line(text: str) -> str:
    """A text in one line; characters that cannot be shown, such as controls and lone surrogates, become U+FFFD."""
    return "".join(char if char.isprintable() else "\ufffd" for char in " ".join(text.split()))


def read_png(file: str | Path) -> PngText:
    """The size and the description of a PNG; zeros and an empty text where a file has none, or is no PNG."""
    content = Path(file).read_bytes()
    width, height, description, place = 0, 0, "", 8
    while place + 12 <= len(content) and content.startswith(b"\x89PNG\r\n\x1a\n"):
        length, kind = struct.unpack(">I4s", content[place : place + 8])
        body = content[place + 8 : place + 8 + length]
        if kind == b"IHDR" and length >= 8:
            width, height = struct.unpack(">II", body[:8])
        elif kind in (b"tEXt", b"zTXt", b"iTXt") and body.startswith(b"Description\0"):
            description = _text(kind, body[len(b"Description\0") :])
        place += 12 + length
    return PngText(width, height, description)


def _text(kind: bytes, body: bytes) -> str:
    """The text of a chunk, by the PNG specification, 11.3.3; empty if it is malformed."""
    try:
        if kind == b"tEXt":
            return body.decode("latin-1")
        if kind == b"zTXt":
            return zlib.decompress(body[1:]).decode("latin-1")
        compressed = body[0] == 1
        *_, text = body[2:].split(b"\0", 2)
        return (zlib.decompress(text) if compressed else text).decode()
    except (zlib.error, UnicodeDecodeError, IndexError):
        return ""
