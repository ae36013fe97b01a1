"""A reader of pickles that executes nothing: an interpreter of the opcodes in which torch writes tensors.

A pickle is a program for a stack machine. This machine makes numbers, strings, tuples, lists, dicts and the records of
``tensor_records``. It imports nothing, calls no object and sets no attribute: a global is a name, compared with a
literal list. Opcodes and names that are not listed are refused.

Every opcode takes time and memory proportional to the bytes it reads or to the values it takes from the stack, and the
values copied by calls are counted, so that a pickle of n bytes costs O(n).
"""

import struct
from collections.abc import Callable
from typing import Any

from jaxseq.weights.errors import WeightsError, shown
from jaxseq.weights.tensor_records import STORAGES, Global, Storage, Tensor, view_of

FUNCTIONS = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
}


class PickleReader:
    """Reads the pickle that begins at ``position`` of ``data``.

    Afterwards ``position`` is behind it and ``storages`` holds the storages it names, by key.

    Raises:
        WeightsError: an opcode or a global that is not allowed, or a pickle that is damaged.
    """

    def __init__(self, data: bytes, position: int = 0):
        self.data = data
        self.position = position
        self.storages: dict[str, Storage] = {}
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._copied = 0

    def read(self) -> Any:
        """The value of the pickle."""
        while True:
            code = self._take(1)[0]
            if code == STOP:
                return self._pop()
            if code not in OPCODES:
                raise WeightsError(f"opcode 0x{code:02x} at byte {self.position - 1} of the pickle is not allowed")
            OPCODES[code](self)

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise WeightsError("the pickle is truncated")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + 1000)
        if end < 0:
            raise WeightsError("the pickle is truncated inside a name")
        line = self._take(end + 1 - self.position)[:-1]
        return _text(line)

    def _pop(self) -> Any:
        if not self._stack:
            raise WeightsError("the pickle takes a value from an empty stack")
        return self._stack.pop()

    def _top(self, kind: type) -> Any:
        value = self._stack[-1] if self._stack else None
        if type(value) is not kind:
            raise WeightsError(f"the pickle has {type(value).__name__} where {kind.__name__} belongs")
        return value

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _above_mark(self) -> list[Any]:
        if not self._marks:
            raise WeightsError("the pickle has no mark where one belongs")
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _protocol(self) -> None:
        protocol = self._take(1)[0]
        if not 2 <= protocol <= 5:
            raise WeightsError(f"pickle protocol {protocol} is not read, 2 to 5 are")

    def _tuple(self, count: int) -> None:
        self._push(tuple([self._pop() for _ in range(count)][::-1]))

    def _put(self, index: int) -> None:
        if not self._stack:
            raise WeightsError("the pickle stores a value from an empty stack")
        self._memo[index] = self._stack[-1]

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise WeightsError(f"the pickle refers to a value {index} that it does not hold")
        self._push(self._memo[index])

    def _append(self, items: list[Any]) -> None:
        self._top(list).extend(items)

    def _set_items(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise WeightsError("the pickle has a key without a value")
        _insert(self._top(dict), zip(items[::2], items[1::2], strict=True))

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        _insert(self._top(dict), [(key, value)])

    def _append_one(self) -> None:
        value = self._pop()
        self._append([value])

    def _global(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full not in FUNCTIONS and not (module == "torch" and name in STORAGES):
            raise WeightsError(
                f"the pickle asks for {shown(full)}: only tensors, numbers, texts, lists and dicts are read, "
                "and nothing is executed (a state dict saved alone can be read)"
            )
        self._push(Global(full))

    def _text_global(self) -> None:
        module = self._line()
        self._global(module, self._line())

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise WeightsError("the pickle asks for a global whose name is no text")
        self._global(module, name)

    def _persistent(self) -> None:
        match self._pop():
            case ("storage", Global(name), str(key), str(), int(size), *view) if view in ([], [None]):
                dtype = STORAGES.get(name.removeprefix("torch."))
            case _:
                raise WeightsError("the pickle refers to something that is no whole storage of numbers")
        if dtype is None or type(size) is not int or not 0 <= size < 1 << 48:
            raise WeightsError(f"storage {shown(key)} is {shown(name)} of {shown(size)} numbers")
        storage = Storage(key, dtype, size)
        if self.storages.setdefault(key, storage) != storage:
            raise WeightsError(f"storage {shown(key)} has two dtypes or sizes")
        self._push(storage)

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if type(function) is not Global or type(arguments) is not tuple:
            raise WeightsError("the pickle calls something that is not the name of a function")
        match function.name, arguments:
            case "collections.OrderedDict", ():
                self._push({})
            case "collections.OrderedDict", (list(pairs),):
                self._push(self._ordered(pairs))
            case "torch._utils._rebuild_tensor", (storage, offset, shape, strides):
                self._push(view_of(storage, offset, shape, strides))
            case "torch._utils._rebuild_tensor_v2", (storage, offset, shape, strides, _, dict(), *view) if not any(
                view
            ):
                self._push(view_of(storage, offset, shape, strides))
            case "torch._utils._rebuild_parameter", (Tensor() as tensor, _, dict()):
                self._push(tensor)
            case _:
                raise WeightsError(f"the pickle calls {function.name} with arguments that it does not take")

    def _ordered(self, pairs: list[Any]) -> dict[Any, Any]:
        self._copied += len(pairs)
        if self._copied > len(self.data) or any(type(pair) not in (list, tuple) or len(pair) != 2 for pair in pairs):
            raise WeightsError("the pickle makes an OrderedDict of something that is no list of pairs")
        made: dict[Any, Any] = {}
        _insert(made, pairs)
        return made

    def _build(self) -> None:
        """Attributes of an OrderedDict (torch's ``_metadata``, the versions of modules) are dropped."""
        state = self._pop()
        if type(self._stack[-1] if self._stack else None) is not dict or type(state) is not dict:
            raise WeightsError("the pickle sets attributes of something that is no OrderedDict")


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise WeightsError("the pickle holds a text that is not UTF-8") from None


def _insert(target: dict[Any, Any], items: Any) -> None:
    for key, value in items:
        if type(key) not in (str, int):
            raise WeightsError(f"the pickle has a dict with a key that is {type(key).__name__}, not text or integer")
        if key in target:
            raise WeightsError(f"the key {shown(key)} occurs twice")
        target[key] = value


STOP = ord(".")
OPCODES: dict[int, Callable[[PickleReader], Any]] = {
    0x80: PickleReader._protocol,
    0x95: lambda self: self._take(8),  # FRAME
    ord("("): PickleReader._mark,
    ord("N"): lambda self: self._push(None),
    0x88: lambda self: self._push(True),
    0x89: lambda self: self._push(False),
    ord("J"): lambda self: self._push(self._number("<i")),
    ord("K"): lambda self: self._push(self._number("<B")),
    ord("M"): lambda self: self._push(self._number("<H")),
    0x8A: lambda self: self._push(int.from_bytes(self._take(self._number("<B")), "little", signed=True)),
    ord("G"): lambda self: self._push(self._number(">d")),
    ord("X"): lambda self: self._push(_text(self._take(self._number("<I")))),
    0x8C: lambda self: self._push(_text(self._take(self._number("<B")))),
    0x8D: lambda self: self._push(_text(self._take(self._number("<Q")))),
    ord("U"): lambda self: self._push(_text(self._take(self._number("<B")))),
    ord("T"): lambda self: self._push(_text(self._take(self._number("<I")))),
    ord("B"): lambda self: self._push(self._take(self._number("<I"))),
    ord("C"): lambda self: self._push(self._take(self._number("<B"))),
    ord(")"): lambda self: self._push(()),
    ord("t"): lambda self: self._push(tuple(self._above_mark())),
    0x85: lambda self: self._tuple(1),
    0x86: lambda self: self._tuple(2),
    0x87: lambda self: self._tuple(3),
    ord("]"): lambda self: self._push([]),
    ord("a"): PickleReader._append_one,
    ord("e"): lambda self: self._append(self._above_mark()),
    ord("}"): lambda self: self._push({}),
    ord("s"): PickleReader._set_item,
    ord("u"): lambda self: self._set_items(self._above_mark()),
    ord("q"): lambda self: self._put(self._number("<B")),
    ord("r"): lambda self: self._put(self._number("<I")),
    0x94: lambda self: self._put(len(self._memo)),
    ord("h"): lambda self: self._get(self._number("<B")),
    ord("j"): lambda self: self._get(self._number("<I")),
    ord("c"): PickleReader._text_global,
    0x93: PickleReader._stack_global,
    ord("Q"): PickleReader._persistent,
    ord("R"): PickleReader._reduce,
    ord("b"): PickleReader._build,
}
"""The opcodes of pickle protocols 2 to 5 that are read (Python's ``pickletools`` documents them)."""
