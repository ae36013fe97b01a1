"""Image files of every kind: each is right, or refused with a reason, at once."""

import errno
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from jaxseq.data.images import ImageError, read_image
from jaxseq.data.images.decoding import TEMPORARY

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

SIZE = (6, 8)  # Y, X
HALVES = np.zeros((*SIZE, 3), np.uint8)  # red, above blue; the left column green
HALVES[:3] = (255, 0, 0)
HALVES[3:] = (0, 0, 255)
HALVES[:, :2] = (0, 255, 0)


def saved(path, image=None, **options):
    (Image.fromarray(HALVES) if image is None else image).save(path, **options)
    return path


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


class Failing:
    """A function that raises an error."""

    def __init__(self, error: BaseException):
        self.error = error

    def __call__(self, *_, **__):
        raise self.error


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.png", {}, 0),
        ("a.bmp", {}, 0),
        ("a.ppm", {}, 0),
        ("a.tiff", {}, 0),
        ("a.gif", {}, 0),
        ("a.webp", {"lossless": True}, 0),
        ("a.jpg", {"quality": 100, "subsampling": 0}, 6),
        ("a.jpg", {"format": "PNG"}, 0),
        ("a.txt", {"format": "PNG"}, 0),
    ],
)
def test_the_content_decides_on_the_format(tmp_path, name, options, tolerance):
    found = read_image(saved(tmp_path / name, **options), SIZE).astype(int)
    assert found.shape == (*SIZE, 3)
    assert np.abs(found - HALVES).max() <= tolerance


def test_every_kind_of_pixel_becomes_rgb(tmp_path):
    grey = np.arange(48, dtype=np.uint16).reshape(SIZE) * 1300
    rgb = np.repeat(np.round(grey / 257).astype(np.uint8)[..., None], 3, axis=-1)
    assert np.array_equal(read_image(saved(tmp_path / "16.png", Image.fromarray(grey)), SIZE), rgb)
    assert np.array_equal(read_image(saved(tmp_path / "16.tiff", Image.fromarray(grey)), SIZE), rgb)
    palette = Image.fromarray(HALVES).quantize(4)
    assert np.abs(read_image(saved(tmp_path / "p.png", palette), SIZE).astype(int) - HALVES).max() <= 4
    cmyk = Image.fromarray(HALVES).convert("CMYK")
    assert np.array_equal(read_image(saved(tmp_path / "cmyk.tiff", cmyk), SIZE), HALVES)
    jpeg = read_image(saved(tmp_path / "cmyk.jpg", cmyk, quality=100, subsampling=0), SIZE)
    assert np.abs(jpeg.astype(int) - HALVES).max() <= 8
    bits = Image.fromarray(HALVES[..., 1] > 0)
    assert np.array_equal(read_image(saved(tmp_path / "1.png", bits), SIZE), HALVES[..., 1:2].repeat(3, axis=2))


def test_what_is_transparent_is_laid_over_white(tmp_path):
    alpha = np.full((*SIZE, 1), 255, np.uint8)
    alpha[0], alpha[1] = 0, 51
    expected = HALVES.copy()
    expected[0] = 255
    expected[1] = np.round(HALVES[1] * 0.2 + 255 * 0.8)
    rgba = Image.fromarray(np.concatenate([HALVES, alpha], axis=-1))
    for name in ("a.png", "a.tiff"):
        assert np.abs(read_image(saved(tmp_path / name, rgba), SIZE).astype(int) - expected).max() <= 1
    key = read_image(saved(tmp_path / "key.png", transparency=(0, 0, 255)), SIZE)
    assert (key[4, 5].tolist(), key[0, 5].tolist()) == ([255] * 3, [255, 0, 0])
    grey = Image.fromarray(np.arange(48, dtype=np.uint16).reshape(SIZE) * 257)
    key = read_image(saved(tmp_path / "16.png", grey, transparency=0), SIZE)
    assert (key[0, 0].tolist(), key[0, 1].tolist()) == ([255] * 3, [1] * 3)
    palette = Image.fromarray(HALVES).quantize(4)
    hidden = palette.getpixel((5, 0))
    assert read_image(saved(tmp_path / "p.png", palette, transparency=hidden), SIZE)[0, 5].tolist() == [255] * 3


def test_of_an_animation_the_first_frame_is_taken(tmp_path):
    frames = [Image.fromarray(HALVES), Image.fromarray(255 - HALVES)]
    for name in ("a.gif", "a.png", "a.webp"):
        options = {"lossless": True} if name == "a.webp" else {}
        path = saved(tmp_path / name, frames[0], save_all=True, append_images=frames[1:], **options)
        assert np.array_equal(read_image(path, SIZE), HALVES)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(tmp_path, orientation):
    stored = {  # row 0 and column 0 of the file are these sides of the scene, by the EXIF standard
        1: HALVES,
        2: HALVES[:, ::-1],
        3: HALVES[::-1, ::-1],
        4: HALVES[::-1],
        5: HALVES.swapaxes(0, 1),
        6: HALVES.swapaxes(0, 1)[::-1],
        7: HALVES[::-1, ::-1].swapaxes(0, 1),
        8: HALVES.swapaxes(0, 1)[:, ::-1],
    }[orientation]
    image = Image.fromarray(np.ascontiguousarray(stored))
    for name in ("a.png", "a.tiff"):
        found = read_image(saved(tmp_path / name, image, exif=oriented(orientation)), SIZE)
        assert np.array_equal(found, HALVES), name


def test_broken_exif_and_an_unknown_orientation_leave_the_image_as_it_is(tmp_path):
    for number, exif in enumerate([b"Exif\x00\x00rubbish", b"", oriented(77)]):
        assert np.array_equal(read_image(saved(tmp_path / f"{number}.png", exif=exif), SIZE), HALVES)


def test_modes_of_resizing(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)  # three squares: red, green, blue
    for channel in range(3):
        wide[:, 20 * channel : 20 * (channel + 1), channel] = 255
    path = saved(tmp_path / "wide.png", Image.fromarray(wide))
    crop = read_image(path, (10, 10), mode="crop")
    assert (crop[:, 1:-1] == [0, 255, 0]).all()
    squash = read_image(path, (10, 12), mode="squash")
    assert [squash[5, column].argmax() for column in (1, 6, 10)] == [0, 1, 2]
    pad = read_image(path, (12, 12), mode="pad")
    assert not pad[:4].any() and not pad[8:].any() and pad[4:8].any(axis=-1).all()
    tall = saved(tmp_path / "tall.png", Image.fromarray(wide.swapaxes(0, 1)))
    for mode, expected in (("crop", crop), ("pad", pad)):
        turned = read_image(tall, expected.shape[:2], mode=mode)
        assert np.array_equal(turned, expected.swapaxes(0, 1))


def test_an_unknown_mode_and_an_empty_size_are_refused(untyped):
    with pytest.raises(ValueError, match="unknown resize mode 'fit'; known: squash, crop, pad"):
        read_image("a.png", (2, 2), mode="fit")
    with pytest.raises(ValueError, match="at least 1, not 0 and 2"):
        read_image("a.png", (0, 2))


def test_a_crop_is_the_centre_of_the_whole_image_resized_by_its_short_side(tmp_path):
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (40, 60, 3), np.uint8))
    whole = np.asarray(image.resize((30, 20), Image.Resampling.BILINEAR)).astype(int)
    found = read_image(saved(tmp_path / "a.png", image), (20, 20)).astype(int)
    assert np.abs(found - whole[:, 5:25]).max() <= 1


def test_downscaling_averages(tmp_path):
    board = np.indices((64, 64)).sum(axis=0) % 2 * np.uint8(255)
    found = read_image(saved(tmp_path / "board.png", Image.fromarray(board.astype(np.uint8))), (8, 8)).astype(int)
    assert np.abs(found - 127.5).max() < 4


def bad_files(folder):
    """A file of each bad kind, and a part of the reason."""
    good = saved(folder / "good.png").read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    jpeg = saved(folder / "good.jpg", Image.fromarray(noise)).read_bytes()
    contents = {
        "empty.jpg": (b"", "an empty file"),
        "text.jpg": (b"<html>not found</html>", "no image"),
        "header.png": (good[:8], "no image|cannot be decoded"),
        "truncated.png": (good[:-30], "cannot be decoded"),
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "cannot be decoded"),
        "postscript.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "no image"),
    }
    for name, (raw, _) in contents.items():
        (folder / name).write_bytes(raw)
    reasons = {name: reason for name, (_, reason) in contents.items()}
    saved(folder / "float.tiff", Image.fromarray(np.ones(SIZE, np.float32)))
    saved(folder / "int.tiff", Image.fromarray(np.full(SIZE, 70_000, np.int32)))
    saved(folder / "huge.png", Image.new("1", (5000, 5000)))
    reasons |= {"float.tiff": "floating-point", "int.tiff": "16 bits: 70000", "huge.png": "5000 x 5000 pixels, more"}
    (folder / "folder.jpg").mkdir()
    os.mkfifo(folder / "pipe.jpg")
    os.symlink("/dev/zero", folder / "device.jpg")
    os.symlink("loop.jpg", folder / "loop.jpg")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / "socket.jpg"))
    reasons |= {"folder.jpg": "a folder", "pipe.jpg": "not a regular file", "device.jpg": "not a regular file"}
    return reasons | {"loop.jpg": "cannot be opened", "socket.jpg": "not a regular", "missing.jpg": "no such file"}


def test_every_bad_file_is_refused_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    for name, reason in bad_files(tmp_path.relative_to(tmp_path)).items():
        with pytest.raises(ImageError, match=reason):
            read_image(name, SIZE, max_pixels=10**6)
    with pytest.raises(ImageError, match="cannot be opened"):
        read_image("a\0b", SIZE)


def test_errors_of_the_system_are_raised_and_name_the_file(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png")
    for number in TEMPORARY:
        for target in ("os.stat", "os.open", "PIL.Image.Image.resize"):
            with monkeypatch.context() as patched:
                patched.setattr(target, Failing(OSError(number, os.strerror(number))))
                with pytest.raises(OSError, match=os.strerror(number)) as caught:
                    read_image(path, SIZE)
            assert caught.value.filename == str(path)
    with monkeypatch.context() as patched:
        patched.setattr("PIL.Image.Image.resize", Failing(MemoryError("full")))
        with pytest.raises(MemoryError, match="full"):
            read_image(path, SIZE)
    for error in (OSError("truncated"), OSError(errno.EINVAL, "seek"), PermissionError(errno.EACCES, "no")):
        with monkeypatch.context() as patched:
            patched.setattr("os.open", Failing(error))
            with pytest.raises(ImageError, match="cannot be opened"):
                read_image(path, SIZE)


def test_remarks_of_pillow_are_not_written_to_the_error_output(tmp_path):
    command = (
        "import logging, sys; from jaxseq.data.images.decoding import read_image; read_image(sys.argv[1], (6, 8)); "
        "logging.getLogger('PIL.TiffImagePlugin').error('a remark')"
    )
    arguments = [sys.executable, "-c", command, saved(tmp_path / "a.png")]
    assert subprocess.run(arguments, capture_output=True, text=True, check=True).stderr == ""


@pytest.mark.full
def test_flipped_bytes_never_raise_anything_else(tmp_path):
    random = np.random.default_rng(0)
    noise = Image.fromarray(random.integers(0, 256, (30, 40, 3), np.uint8))
    outcomes = {True: 0, False: 0}
    for name in ("a.png", "a.jpg", "a.gif", "a.webp", "a.tiff", "a.bmp", "a.ppm"):
        whole = np.frombuffer(saved(tmp_path / name, noise, exif=oriented(6)).read_bytes(), np.uint8)
        for _ in range(300):
            raw = whole.copy()
            near = random.integers(0, 2)  # half of the flips in the header
            where = random.integers(0, 80 if near else len(raw), random.integers(1, 6))
            raw[where] = random.integers(0, 256, len(where))
            (tmp_path / "flipped").write_bytes(raw.tobytes()[: random.integers(1, len(raw) + 1) if near else None])
            try:
                assert read_image(tmp_path / "flipped", SIZE, max_pixels=10**6).shape == (*SIZE, 3)
                outcomes[True] += 1
            except ImageError:
                outcomes[False] += 1
    assert min(outcomes.values()) > 100
