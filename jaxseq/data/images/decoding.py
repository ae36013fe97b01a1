"""Decoding and resizing of image files by Pillow: every file gives an RGB image of the wanted size, or a reason."""

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import UInt8

from jaxseq.files import open_regular

ResizeMode = Literal["squash", "crop", "pad"]
RESIZE_MODES: tuple[ResizeMode, ...] = get_args(ResizeMode)

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
"""Pillow's formats that are read. Formats decoded by other programs (EPS by Ghostscript) are left out."""
MAX_PIXELS = 2**26
"""The default limit on the pixels of a file (67 million, 200 MB decoded)."""
SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")
WHITE = (255, 255, 255, 255)

ORIENTATION = 0x0112
TRANSPOSITIONS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""The values of the EXIF tag Orientation, and what makes the image upright."""


TEMPORARY = {
    *(errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNRESET),
    *(errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH),
}
"""Errors of the system or of a network's file system, which say nothing about the file."""


class ImageError(ValueError):
    """A file that gives no image; the message is the reason, without the file's name."""


class Placement(NamedTuple):
    """The size and the upper left corner, in whole pixels, of what a resized image shows of the whole original."""

    height: int
    width: int
    top: int
    left: int


def read_image(
    path: str | Path, size: tuple[int, int], *, mode: ResizeMode = "crop", max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "Y X 3"]:
    """The image of a file in RGB, resized to height Y and width X.

    The content decides on the format (``FORMATS``), not the suffix. Conversion to RGB:

    - the first frame of an animation;
    - grey, palette, CMYK, YCbCr, Lab: Pillow's conversion, without colour profiles;
    - transparent: laid over white;
    - 16 bits grey: round(value / 257); 16 bits RGB: the upper byte; floating point is refused;
    - the EXIF orientation is applied.

    Modes, all with Pillow's antialiased bilinear filter: ``squash`` scales both sides on their own; ``crop`` keeps the
    aspect ratio and cuts out the centre; ``pad`` keeps it and fills the borders with black.

    Raises:
        ImageError: not a regular file, unreadable, no image, broken, truncated, or more than ``max_pixels`` pixels
            (found in the header, before anything is decoded). Pillow's own limit (``PIL.Image.MAX_IMAGE_PIXELS``,
            twice that is refused) holds too.
        ValueError: an unknown mode, or a size below 1.
        OSError, MemoryError: the system fails, not the file (``TEMPORARY``); an OSError names the file.
        ImportError: the extra ``images`` is not installed.
    """
    return read_sized_image(path, size, mode=mode, max_pixels=max_pixels)[0]


def read_sized_image(
    path: str | Path, size: tuple[int, int], *, mode: ResizeMode = "crop", max_pixels: int = MAX_PIXELS
) -> tuple[UInt8[np.ndarray, "Y X 3"], tuple[int, int]]:
    """The image as in ``read_image``, and the height and the width of the upright original."""
    check_resize(size, mode)
    pillow, formats = _pillow()
    try:
        with regular_file(path) as file, pillow.open(file, formats=formats) as image:
            if image.width * image.height > max_pixels:
                raise ImageError(f"{image.width} x {image.height} pixels, more than max_pixels={max_pixels}")
            image.load()
            upright = _turned(_rgb(image), _orientation(image))
            return np.asarray(_resized(upright, size, mode)), (upright.height, upright.width)
    except ImageError:
        raise
    except pillow.UnidentifiedImageError:
        raise ImageError(f"no image ({', '.join(FORMATS)})") from None
    except Exception as error:  # Pillow's decoders raise nearly everything on broken files
        if _is_temporary(error):
            if isinstance(error, OSError) and error.filename is None:
                error.filename = os.fspath(path)
            raise
        raise ImageError(f"cannot be decoded: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from None


def check_resize(size: tuple[int, int], mode: str) -> None:
    """Check a size and a mode.

    Raises:
        ValueError: an unknown mode, or a side below 1.
    """
    if mode not in RESIZE_MODES:
        raise ValueError(f"unknown resize mode {mode!r}; known: {', '.join(RESIZE_MODES)}")
    if min(size) < 1:
        raise ValueError(f"height and width must be at least 1, not {size[0]} and {size[1]}")


def placement(original: tuple[int, int], size: tuple[int, int], mode: ResizeMode) -> Placement:
    """The part of a resized image that shows the original: all of it (``squash``), or that between borders (``pad``).

    Args:
        original: height and width of the original.
        size: height and width of the resized image.
        mode: ``squash`` or ``pad``.

    Raises:
        ValueError: the mode ``crop``, which does not show the whole original, or what ``check_resize`` refuses.
    """
    check_resize(size, mode)
    (height, width), (y, x) = original, size
    if mode == "crop":
        raise ValueError("the resize mode 'crop' does not show the whole image; known: squash, pad")
    if mode == "squash":
        return Placement(y, x, 0, 0)
    scale = min(x / width, y / height)
    w, h = (max(1, min(full, round(side * scale))) for side, full in ((width, x), (height, y)))
    return Placement(h, w, (y - h) // 2, (x - w) // 2)


@contextmanager
def regular_file(path: str | Path) -> Iterator[BinaryIO]:
    """A regular file, opened to read its bytes; never waits for a pipe or a device.

    Raises:
        ImageError: missing, another kind of file (a folder, a pipe, a device, a socket), empty, or unreadable.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except OSError as error:
        if _is_temporary(error):
            raise
        raise ImageError(f"cannot be opened: {error.strerror or error}") from None
    except ValueError as error:
        raise ImageError(str(error).removeprefix(f"{path}: ")) from None
    with file:
        if not os.fstat(file.fileno()).st_size:
            raise ImageError("an empty file")
        yield file


def _is_temporary(error: Exception) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in TEMPORARY)


def _rgb(image: Any) -> Any:
    """The image in RGB; see ``read_image``."""
    if image.mode == "F":
        raise ImageError("floating-point pixels")
    if image.mode in SIXTEEN_BITS:
        values = np.asarray(image).astype(np.int32)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(f"pixels of more than 16 bits: {values.min()} to {values.max()}")
        pillow, _ = _pillow()
        grey = ((values + 128) // 257).astype(np.uint8)
        if isinstance(hidden := image.info.get("transparency"), int):
            grey[values == hidden] = 255
        image = pillow.fromarray(grey)
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        pillow, _ = _pillow()
        image = image.convert("RGBA")
        image = pillow.alpha_composite(pillow.new("RGBA", image.size, WHITE), image)
    return image.convert("RGB")


def _orientation(image: Any) -> int:
    """The EXIF orientation; 1 if there is none, or if it cannot be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return 1


def _turned(image: Any, orientation: int) -> Any:
    if orientation not in TRANSPOSITIONS:
        return image
    pillow, _ = _pillow()
    return image.transpose(pillow.Transpose[TRANSPOSITIONS[orientation]])


def _resized(image: Any, size: tuple[int, int], mode: ResizeMode) -> Any:
    pillow, _ = _pillow()
    y, x = size
    width, height = image.size
    bilinear = pillow.Resampling.BILINEAR
    if mode == "crop":
        scale = max(x / width, y / height)
        w, h = min(x / scale, width), min(y / scale, height)
        left, top = (width - w) / 2, (height - h) / 2
        return image.resize((x, y), bilinear, box=(left, top, min(left + w, width), min(top + h, height)))
    place = placement((height, width), size, mode)
    resized = image.resize((place.width, place.height), bilinear)
    if resized.size == (x, y):
        return resized
    padded = pillow.new("RGB", (x, y))
    padded.paste(resized, (place.left, place.top))
    return padded


def pillow_version() -> str:
    """The version of Pillow.

    Raises:
        ImportError: the extra ``images`` is not installed.
    """
    _pillow()
    import PIL

    return PIL.__version__


@cache
def _pillow() -> tuple[Any, tuple[str, ...]]:
    """The module ``PIL.Image``, and those of ``FORMATS`` that this build of Pillow has."""
    try:
        from PIL import Image
    except ImportError:
        raise ImportError('image files need Pillow: pip install "jaxseq[images]"') from None
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its remarks on broken files go to stderr
    Image.init()
    return Image, tuple(name for name in FORMATS if name in Image.OPEN)
