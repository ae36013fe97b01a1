"""The cache of resized images: reused while it fits, rebuilt otherwise, never half written."""

import errno
import hashlib
import logging
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxseq.data.images import CaptionBatches, ImageFiles, ImageSource, read_image
from jaxseq.data.images.array_file import DIGEST_SIZE, MAGIC, ArrayFileError, new_array_file, open_array_file

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

SIZE = (4, 5)


@pytest.fixture
def paths(tmp_path):
    """Six images, of which the third is broken and the last is missing."""
    found = []
    for index in range(6):
        path = tmp_path / f"{index}.png"
        pixels = np.random.default_rng(index).integers(0, 256, (12, 20, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        found.append(path)
    found[2].write_bytes(b"broken")
    found[5].unlink()
    return found


def build(paths, **options):
    return ImageFiles(paths, SIZE, workers=2, **options)


def cache_file(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


@pytest.mark.parametrize("cached", [False, True])
def test_images_are_those_of_the_files_and_what_is_no_image_is_named(paths, tmp_path, cached):
    images = build(paths, cache=tmp_path / "cache" if cached else None)
    assert isinstance(images, ImageSource)
    assert (len(images), images.size, images.kept) == (4, SIZE, (0, 1, 3, 4))
    assert images.skipped == (
        f"{paths[2]}: no image (JPEG, PNG, GIF, BMP, WEBP, TIFF, PPM)",
        f"{paths[5]}: no such file",
    )
    expected = np.stack([read_image(paths[index], SIZE) for index in images.kept])
    assert np.array_equal(images(np.arange(4)), expected)
    assert np.array_equal(images(np.array([3, 0, 3])), expected[[3, 0, 3]])
    part = images.select([3, 1])
    assert np.array_equal(part(np.array([1])), expected[[1]])
    assert (len(part), part.kept) == (2, (4, 1))
    assert len({part.fingerprint, images.fingerprint, images.select([1, 3]).fingerprint}) == 3
    for wrong in (-1, 4):
        with pytest.raises(IndexError, match=str(wrong)):
            images(np.array([wrong]))
    data = CaptionBatches(images, [[[1, 2]]] * 4, 2, separator=0)
    assert data(0).images.dtype == np.uint8


def test_the_fingerprint_is_that_of_the_images(paths, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in paths[:5]:
        (moved / path.name).write_bytes(path.read_bytes())
    first = build(paths)
    assert build([moved / path.name for path in paths], cache=tmp_path / "cache").fingerprint == first.fingerprint
    Image.fromarray(np.zeros((12, 15, 3), np.uint8)).save(paths[0])
    assert build(paths).fingerprint != first.fingerprint
    assert build(paths[1:], mode="pad").fingerprint != build(paths[1:]).fingerprint


def test_a_cache_is_reused_while_it_fits_and_a_message_says_why_it_is_not(paths, tmp_path, caplog):
    folder = tmp_path / "cache"

    def message(**options):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            images = build(paths, cache=folder, **options)
        assert np.array_equal(images(np.arange(len(images))), build(paths, **options)(np.arange(len(images))))
        return " ".join(record.message for record in caplog.records)

    assert "there is none yet" in message()
    before = cache_file(folder).stat().st_mtime_ns
    assert message() == ""
    assert cache_file(folder).stat().st_mtime_ns == before
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(paths[0])
    assert "changed: files" in message()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(paths[5])
    assert "changed: files" in message()
    assert message() == ""
    assert "none yet" in message(mode="squash")
    assert message() == message(mode="squash") == ""


@pytest.mark.parametrize("cached", [False, True])
def test_the_sizes_of_the_upright_originals_are_known(paths, tmp_path, cached, caplog):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(np.zeros((7, 9, 3), np.uint8)).save(paths[1], exif=exif)
    folder = tmp_path / "cache" if cached else None
    expected = [[12, 20], [9, 7], [12, 20], [12, 20]]
    assert build(paths, cache=folder).original_sizes.tolist() == expected
    assert build(paths, cache=folder).select([2, 1]).original_sizes.tolist() == expected[2:0:-1]
    if cached:  # a cache without sizes, as they were written before
        stored = open_array_file(cache_file(folder))
        without = {name: value for name, value in stored.description.items() if name != "sizes"}
        with new_array_file(cache_file(folder), stored.array.shape, np.uint8, without) as rows:
            for index, row in enumerate(stored.array):
                rows[index] = row
        caplog.clear()
        assert build(paths, cache=folder).original_sizes.tolist() == expected
        assert "the old one does not hold the files' sizes" in caplog.text


def test_another_version_of_pillow_rebuilds_the_cache(paths, tmp_path, caplog, monkeypatch):
    build(paths, cache=tmp_path / "cache")
    monkeypatch.setattr("PIL.__version__", "99")
    build(paths, cache=tmp_path / "cache")
    assert "changed: Pillow" in caplog.text


def test_a_damaged_cache_is_noticed_and_rebuilt(paths, tmp_path, caplog):
    folder = tmp_path / "cache"
    expected = build(paths, cache=folder)(np.arange(4))
    path = cache_file(folder)
    whole = path.read_bytes()
    damages = [b"", whole[:100], whole[:-1], whole + b"\0", b"\0" * len(whole)]
    for place in (0, 6 * 60 - 1, 6 * 60, len(whole) // 2, len(whole) - 45, len(whole) - 20, len(whole) - 1):
        damages.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for damaged in damages:
        path.write_bytes(damaged)
        caplog.clear()
        assert np.array_equal(build(paths, cache=folder)(np.arange(4)), expected)
        assert "the old one cannot be used" in caplog.text
        assert path.read_bytes() == whole


def test_an_interrupted_build_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_array_file(tmp_path / "a", (2, 3), np.uint8, {}) as rows:
        rows[0] = np.zeros(3, np.uint8)
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with (
        pytest.raises(OSError, match=r"needs .* GB, but the disk has only"),
        new_array_file(tmp_path / "a", (2**40, 2**20), np.uint8, {}),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_system_ends_the_build_and_is_not_stored(paths, tmp_path, monkeypatch):
    real, opened = os.open, []

    def few(path, *arguments, **options):
        if str(path).endswith(".png"):
            opened.append(path)
            if len(opened) > 1:
                raise OSError(errno.EMFILE, "Too many open files", str(path))
        return real(path, *arguments, **options)

    for cache in (None, tmp_path / "cache"):
        opened.clear()
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", few)
            with pytest.raises(OSError, match="Too many open files"):
                build(paths, cache=cache)
    assert not list((tmp_path / "cache").iterdir())
    assert build(paths, cache=tmp_path / "cache").kept == (0, 1, 3, 4)


def test_unfinished_files_are_deleted_unless_they_are_new_or_being_written(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    old, new, other = tmp_path / ".a.1.x", tmp_path / ".a.2.y", tmp_path / ".b.1.x"
    for path in (old, new, other):
        path.write_bytes(b"")
    for path in (old, other):
        os.utime(path, (0, 0))
    with new_array_file(tmp_path / "a", (1, 3), np.uint8, {}):
        assert set(tmp_path.iterdir()) >= {new, other} and not old.exists()
        (writing,) = set(tmp_path.iterdir()) - {new, other}
        os.utime(writing, (0, 0))
        with new_array_file(tmp_path / "a", (1, 3), np.uint8, {}):
            assert writing.exists()
        with writing.open("rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert set(tmp_path.iterdir()) == {tmp_path / "a", new, other}


def test_a_killed_build_is_done_again_and_its_file_deleted(paths, tmp_path):
    command = (
        "import os, signal, sys; import numpy as np; from pathlib import Path\n"
        "from jaxseq.data.images.array_file import new_array_file\n"
        "with new_array_file(Path(sys.argv[1]), (6, 4, 5, 3), np.uint8, {}): os.kill(os.getpid(), signal.SIGKILL)"
    )
    expected = build(paths, cache=tmp_path / "cache").fingerprint
    path = cache_file(tmp_path / "cache")
    path.unlink()
    assert subprocess.run([sys.executable, "-c", command, path]).returncode == -9
    os.utime(cache_file(tmp_path / "cache"), (0, 0))
    assert build(paths, cache=tmp_path / "cache").fingerprint == expected
    assert cache_file(tmp_path / "cache") == path


def test_a_file_that_cannot_grow_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("pwrite", "fsync"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, fail)
            with (
                pytest.raises(OSError, match=r"No space left on device: '.*images\.array'"),
                new_array_file(tmp_path / "images.array", (2, 3), np.uint8, {}) as rows,
            ):
                rows[0] = np.zeros(3, np.uint8)
        assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patched:
        resource = pytest.importorskip("resource")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            with (
                pytest.raises(OSError, match=r"File too large: '.*images\.array'"),
                new_array_file(tmp_path / "images.array", (2000,), np.uint8, {}),
            ):
                pass
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


HEADERS = {
    "overflow": b'{"shape": [1e999], "dtype": "|u1", "description": {}}',
    "recursion": b"[" * 100_000,
    "syntax": b'{"shape": [1], "dtype": "f4,(", "description": {}}',
    "objects": b'{"shape": [1], "dtype": "|O", "description": {}}',
    "negative": b'{"shape": [-1], "dtype": "|u1", "description": {}}',
    "large": b'{"shape": [4611686018427387904, 4611686018427387904], "dtype": "|u1", "description": {}}',
    "list": b"[]",
    "text": b'{"shape": "12", "dtype": "|u1", "description": 3}',
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_description_that_lies_is_refused(tmp_path, header):
    described = HEADERS[header]
    body = bytes(DIGEST_SIZE) + described
    digest = hashlib.blake2b(body, digest_size=DIGEST_SIZE).digest()
    (tmp_path / "a").write_bytes(b"\0" + body + len(described).to_bytes(8, "little") + digest + MAGIC)
    with pytest.raises(ArrayFileError, match=r"description is damaged|size is wrong"):
        open_array_file(tmp_path / "a")


def test_an_array_file_gives_back_its_rows_and_zeros_for_the_others(tmp_path):
    for shape in ((3, 2), (3, 0), (0, 2), (2, 1, 2)):
        values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        with new_array_file(tmp_path / "a", shape, np.float32, {"é": 1}) as rows:
            for row in range(1, shape[0]):
                rows[row] = values[row]
            with pytest.raises(ValueError, match="a row of"):
                rows[0] = np.zeros(7, np.float32)
        stored = open_array_file(tmp_path / "a")
        assert stored.description == {"é": 1}
        assert np.array_equal(stored.array[1:], values[1:])
        assert not stored.array[:1].any()


def build_in_process(paths, folder, barrier, results):
    barrier.wait()
    images = ImageFiles(paths, SIZE, cache=folder)
    results.put((images.fingerprint, len(images)))


@pytest.mark.full
def test_two_processes_may_build_at_once(paths, tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    arguments = (paths, tmp_path / "cache", barrier, results)
    processes = [context.Process(target=build_in_process, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    found = {results.get(timeout=120) for _ in processes}
    for process in processes:
        process.join()
    assert found == {(build(paths).fingerprint, 4)}
    open_array_file(cache_file(tmp_path / "cache"))


@pytest.mark.full
def test_an_array_file_with_flipped_bytes_is_refused(tmp_path):
    path, random = tmp_path / "a", np.random.default_rng(0)
    with new_array_file(path, (3, 2), np.uint8, {"text": "abc"}) as rows:
        rows[1] = np.ones(2, np.uint8)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for place in range(len(whole)):
        raw = whole.copy()
        raw[place] ^= random.integers(1, 256)
        path.write_bytes(raw.tobytes())
        with pytest.raises(ArrayFileError):
            open_array_file(path)


def test_names_that_are_not_utf8_are_escaped(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    images = build([tmp_path / name], cache=tmp_path / "cache")
    assert len(images) == 0
    assert images.skipped[0].encode() == f"{tmp_path}/caf\\udce9.png: no such file".encode()
    assert build([tmp_path / "a\n\x1b[2J\x9bé.png"]).skipped == (f"{tmp_path}/a\\x0a\\x1b[2J\\x9bé.png: no such file",)


def test_without_pillow_the_error_names_the_extra(monkeypatch):
    from jaxseq.data.images import decoding

    decoding._pillow.cache_clear()
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"jaxseq\[images\]"):
        ImageFiles(["a.png"], SIZE)


def test_warnings_of_pillow_do_not_decide_what_is_kept(paths, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 200)  # the images have 240: a warning, here an error
    assert build(paths).kept == (0, 1, 3, 4)
    assert "more than max_pixels=239" in build(paths, max_pixels=239).skipped[0]


def test_many_images_in_memory_are_mentioned(paths, monkeypatch, caplog):
    monkeypatch.setattr("jaxseq.data.images.files.LARGE", 1e-9)
    build(paths)
    assert "6 images take 0.0 GB of memory without a cache folder" in caplog.text
