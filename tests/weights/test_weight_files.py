"""Files of weights: round trips, recognition by content, damaged files, atomic writing, fingerprints."""

import io
import json
import os
import random
import struct
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest

from jaxseq.weights import WeightsError, read_weight_file, read_weights, weights_fingerprint, write_weights

DTYPES = ["bool", "int8", "uint8", "int16", "int32", "int64", "uint64", "float16", "float32", "float64", "complex64"]
SUFFIXES = [".npz", ".safetensors"]


def arrays(dtypes=DTYPES):
    chance = np.random.default_rng(0)
    made = {f"layer.{dtype}/weight": chance.integers(0, 2, (2, 3)).astype(dtype) for dtype in dtypes}
    columns = np.asfortranarray(chance.normal(size=(3, 4)))
    return {
        **made,
        "file": np.float32(2) + np.zeros(()),
        "empty": np.zeros((0, 3)),
        "columns": columns,
        "é": columns[::2, 1:],
    }


def written(tmp_path, suffix, tensors):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors", reason="the images extra is not installed")
    write_weights(tmp_path / f"weights{suffix}", tensors)
    return tmp_path / f"weights{suffix}"


def refused(file, match=None):
    with pytest.raises(WeightsError, match=match) as caught:
        read_weights(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def header(descr, shape):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def archive(entries, compression=zipfile.ZIP_STORED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, data in entries:
            file.writestr(name, data)
    return stream.getvalue()


def safetensors_file(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_arrays_are_written_and_read_unchanged(tmp_path, suffix):
    tensors = arrays(DTYPES + (["bfloat16"] if suffix == ".safetensors" else []))
    file = written(tmp_path, suffix, tensors)
    moved = tmp_path / "without-suffix"
    moved.write_bytes(file.read_bytes())
    found = read_weights(moved)
    assert set(found) == set(tensors)
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert np.array_equal(found[name], array)
        assert not found[name].flags.writeable
    assert weights_fingerprint(found) == weights_fingerprint(tensors)
    assert os.listdir(tmp_path) == [file.name, moved.name] or os.listdir(tmp_path) == [moved.name, file.name]


def test_files_of_the_libraries_themselves_are_read(tmp_path):
    tensors = {"a": np.arange(6.0).reshape(2, 3), "b": np.asfortranarray(np.arange(6).reshape(2, 3))}
    np.savez_compressed(tmp_path / "file", **tensors, big=tensors["a"].astype(">f4"), text=np.array("v2"))
    found = read_weight_file(tmp_path / "file.npz")
    assert found.others == {"text": "v2"}
    assert found.tensors["big"].dtype == np.float32
    assert all(np.array_equal(found.tensors[name], array) for name, array in {**tensors, "big": tensors["a"]}.items())
    library = pytest.importorskip("safetensors.numpy", reason="the images extra is not installed")
    library.save_file(tensors | {"b": tensors["a"].astype(ml_dtypes.bfloat16)}, tmp_path / "x", {"format": "np"})
    found = read_weight_file(tmp_path / "x")
    assert found.others == {"format": "np"}
    assert found.tensors["b"].dtype == ml_dtypes.bfloat16
    assert np.array_equal(found.tensors["a"], tensors["a"])


def test_npz_files_that_lie_are_refused(tmp_path):
    file = tmp_path / "weights.npz"
    long = header("<f8", (2 * 10**12,)) + bytes(16)
    evil = npy(np.zeros(2)).replace(b"'descr': '<f8'", b"'descr': [(exit(),1)]")
    objects = npy(np.array([{}], dtype=object))
    cases = {
        "dtype": [("a.npy", objects)],
        "has 16 bytes": [("a.npy", long)],
        "damaged header": [("a.npy", evil)],
        "no array": [("a.txt", b"")],
        "no array ": [("a", npy(np.zeros(2)))],
        "has the dtype": [("a.npy", npy(np.zeros(2, "f4,i4")))],
        "has 15 bytes": [("a.npy", npy(np.zeros(2))[:-1])],
        "has 17 bytes": [("a.npy", npy(np.zeros(2)) + b"0")],
        "damaged header ": [("a.npy", b"")],
        "truth values": [("a.npy", npy(np.array([False, True])).replace(b"\0\1", b"\0\2"))],
        "more than 1048576 texts": [("a.npy", header("|S0", (10**7,)))],
        "more than 1048576 texts ": [("a.npy", header("|S1", (2**20 + 1,)) + bytes(2**20 + 1))],
    }
    for match, entries in cases.items():
        file.write_bytes(archive(entries))
        refused(file, match.strip())
    file.write_bytes(archive([("a.npy", header("<f4", (True,)) + bytes(4))]))
    assert read_weights(file)["a"].tolist() == [0]
    with pytest.warns(UserWarning, match="Duplicate"):
        file.write_bytes(archive([("a.npy", npy(np.zeros(2)))] * 2))
    refused(file, "two entries")
    file.write_bytes(archive([("a.npy", npy(np.zeros(10_000_000)))], zipfile.ZIP_DEFLATED))
    refused(file, "claim 80000128 bytes")


def test_safetensors_files_that_lie_are_refused(tmp_path):
    pytest.importorskip("safetensors", reason="the images extra is not installed")
    file = tmp_path / "weights"
    one = '"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
    good = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    many = json.dumps({f"n{number}": empty for number in range(10_000)})[1:-1]
    cases = [
        (safetensors_file({"a": good}, bytes(4)), "damaged"),
        (safetensors_file({"a": good}, bytes(12)), "damaged"),
        (safetensors_file({"a": good | {"shape": [2**62, 2**62]}}, bytes(8)), "damaged"),
        (safetensors_file({"a": good, "b": good}, bytes(8)), "damaged"),
        (safetensors_file({"a": good | {"dtype": "F7"}}, bytes(8)), "damaged"),
        (safetensors_file({"a": good | {"shape": [1] * 40 + [2]}}, bytes(8)), "41 dimensions"),
        (safetensors_file({"a": good | {"dtype": "BOOL", "shape": [8]}}, b"\2" * 8), "truth values"),
        (safetensors_file(b"{" + b"[" * 100_000), "damaged"),
        (safetensors_file(f"{{{one}, {one}}}".encode(), bytes(8)), "damaged|'a' is given twice"),
        (safetensors_file({"a": good}, bytes(8), length=2**60), "neither"),
        (safetensors_file({"a": empty | {"shape": [0, 2**62]}}), "'a' has the shape"),
        (safetensors_file({"a": empty | {"shape": [0, 2**64 - 1]}}), "'a' has the shape"),
        (safetensors_file(f"{{{many}, {one}, {one}}}".encode(), bytes(8)), "damaged|'a' is given twice"),
    ]
    for data, match in cases:
        file.write_bytes(data)
        refused(file, match)
    file.write_bytes(safetensors_file({"a": good}, bytes(8)))
    assert np.array_equal(read_weights(file)["a"], np.zeros(2))


def test_files_of_other_kinds_are_refused(tmp_path):
    file = tmp_path / "weights.pth"
    for data in [b"", b"x", b"\x80", b"PK", b"PK\x03\x04", b"\x89HDF\r\n", bytes(100), npy(np.zeros(3))]:
        file.write_bytes(data)
        refused(file)
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "absent")


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    os.symlink("pipe.pth", tmp_path / "link.pth")
    os.symlink("/dev/zero", tmp_path / "device.npz")
    (tmp_path / "folder.safetensors").mkdir()
    for name in os.listdir(tmp_path):
        refused(tmp_path / name, "not a (regular )?file")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_files_give_arrays_or_the_error(tmp_path, suffix):
    file = written(tmp_path, suffix, {"a": np.arange(6.0, dtype=np.float32), "b": np.ones((2, 2), bool)})
    data, chance = file.read_bytes(), random.Random(0)
    for _ in range(150):
        changed = bytearray(data)
        changed[chance.randrange(len(data))] = chance.randrange(256)
        file.write_bytes(changed)
        try:
            found = read_weights(file)
        except WeightsError:
            continue
        assert sum(array.nbytes for array in found.values()) <= len(data)
    for length in range(0, len(data), 7):
        file.write_bytes(data[:length])
        refused(file)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, suffix, monkeypatch):
    file = written(tmp_path, suffix, {"a": np.zeros(3)})

    def fail(*_):
        raise OSError("no space")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="no space"):
            write_weights(file, {"a": np.ones(3)})
    assert os.listdir(tmp_path) == [file.name]
    assert np.array_equal(read_weights(file)["a"], np.zeros(3))
    write_weights(file, {"a": np.ones(3)})
    assert np.array_equal(read_weights(file)["a"], np.ones(3))


def test_what_a_format_cannot_hold_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"no dtype bfloat16 \('a'\); .safetensors has"):
        write_weights(tmp_path / "x.npz", {"a": np.zeros(2, ml_dtypes.bfloat16)})
    with pytest.raises(WeightsError, match="no name"):
        write_weights(tmp_path / "x.npz", {"a\0": np.zeros(2)})
    with pytest.raises(WeightsError, match="no dtype complex128"):
        write_weights(tmp_path / "x.safetensors", {"a": np.zeros(2, "complex128")})
    with pytest.raises(WeightsError, match=r"suffix is '.pth', not one of .safetensors, .npz"):
        write_weights(tmp_path / "x.pth", {"a": np.zeros(2)})
    with pytest.raises(WeightsError, match=r"\.npz has no dtype object \('a'\)$"):
        write_weights(tmp_path / "x.npz", {"a": np.array([None])})
    for name, suffixes in {"\ud800": SUFFIXES, "__metadata__": [".safetensors"], "x" * 70_000: [".npz"]}.items():
        for suffix in suffixes:
            with pytest.raises(WeightsError, match=f"{suffix[1:]} has no name"):
                write_weights(tmp_path / f"x{suffix}", {name: np.zeros(2)})
    assert os.listdir(tmp_path) == []


def test_without_safetensors_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r'pip install "jaxseq\[images\]"'):
        write_weights(tmp_path / "x.safetensors", {"a": np.zeros(2)})
    (tmp_path / "y").write_bytes(safetensors_file({}))
    with pytest.raises(ImportError, match=r'pip install "jaxseq\[images\]"'):
        read_weights(tmp_path / "y")


def test_a_fingerprint_tells_names_dtypes_shapes_and_numbers_apart():
    base = {"a": np.arange(6, dtype=np.int32), "b": np.ones(2)}
    same = [base, dict(reversed(base.items())), base | {"a": base["a"].astype(">i4")}]
    assert len({weights_fingerprint(each) for each in same}) == 1
    different = [
        base,
        base | {"a": base["a"].reshape(2, 3)},
        base | {"a": base["a"].astype(np.uint32)},
        base | {"a": base["a"] + 1},
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"]},
        base | {"c": np.zeros(0)},
        {},
    ]
    assert len({weights_fingerprint(each) for each in different}) == len(different)
