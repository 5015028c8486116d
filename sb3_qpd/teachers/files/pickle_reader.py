"""
Reading a pickle as data: its opcodes are followed, and nothing that it asks for is imported, built or called.

A class or function that a pickle names becomes a :class:`GlobalName`. An object that it asks for becomes an
:class:`ObjectRecord` of the request. Numbers, strings and containers come out as they are. The caller decides which records
mean something; :func:`to_array` and its neighbours do so for those of numpy.

A subclass of ``pickle.Unpickler`` with a ``find_class`` of its own would not be enough:

- ``find_class`` only filters names. Every callable that it lets through is then called with arguments of the file's choice
  (opcodes REDUCE, NEWOBJ, OBJ, INST), and BUILD calls ``__setstate__`` or writes into ``__dict__``. Honest files need
  callables that are not harmless: ``numpy.ndarray`` and ``numpy.dtype`` allocate what the file asks for, and
  ``torch.storage`` loads pickles inside pickles.
- Stand-in classes for all of these names would avoid the calls, but the memory would still be the file's choice. The memo
  (BINGET) repeats an object for two bytes, so some hundred bytes describe more values than fit in memory, and hashing a deep
  tuple as a key of a dict takes for ever. Lengths in BINUNICODE8, BYTEARRAY8 and LONG4 allocate before they are checked.
- The machine itself can be led elsewhere: names that ``copyreg`` keeps as numbers (EXT1 to EXT4), persistent ids, and
  dotted names that lead from an allowed module to any other (``torch.nn.modules.module`` to ``torch.os.system``).
- The objects of gym and of old numpy cannot be built today at all: their modules are gone. As records they can be read.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Callable, Iterable
from itertools import chain, islice
from typing import Any, BinaryIO, NamedTuple

import numpy as np

MAX_OPCODES = 500_000  # a space or normalization file needs a few hundred
# a value counts as often as it is referred to
MAX_VALUES = 500_000
MAX_CONTENT = 2**27  # characters and bytes in all
MAX_ARRAY_SIZE = 2**20  # numbers in one array: more than any observation has
MAX_DEPTH = 100
MAX_KEY = 2**60  # multiples of 2^61 - 1 have one hash: a dict of them takes the square of their number


class UnsafePickle(ValueError):
    """A pickle names something outside the known classes, or asks for something that plain data never needs."""


class GlobalName(NamedTuple):
    """A class or function that a pickle names; it is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class ObjectRecord:
    """
    An object that a pickle asks for; it is never built.

    :param target: class or function that would have made the object
    :param args: arguments of that call
    """

    __slots__ = ("args", "items", "state", "target")

    def __init__(self, target: GlobalName, args: tuple) -> None:
        self.target, self.args = target, args
        self.state: Any = None
        self.items: list[Any] = []

    def attributes(self) -> dict[str, Any]:
        """The attributes that the object would have had."""
        if not isinstance(self.state, dict):
            raise UnsafePickle(f"Expected the attributes of a {self.target}, got {type(self.state).__name__}")
        return self.state


def read_pickle(
    data: bytes | BinaryIO, accept: Callable[[GlobalName], bool], persistent: Callable[[Any], Any] | None = None
) -> Any:
    """
    Follow a pickle without executing it.

    :param data: the pickle, of any protocol. An open file is read to the end of its next pickle
    :param accept: whether a name is let through; it stays a :class:`GlobalName` and is never imported
    :param persistent: gives the value for a persistent id, which refers to an object outside the pickle; ``None`` refuses
        persistent ids
    :return: plain values, :class:`GlobalName` and :class:`ObjectRecord`
    :raises UnsafePickle: a name is not let through, a limit is passed, or it is not a pickle
    """
    machine = _Machine(accept, persistent)
    try:
        for count, (opcode, arg, _) in enumerate(pickletools.genops(data)):
            if count >= MAX_OPCODES:
                raise UnsafePickle(f"A pickle of more than {MAX_OPCODES} opcodes: refused")
            machine.step(opcode.name, arg)
        result = machine.result()
    except UnsafePickle:
        raise
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise UnsafePickle(f"Not a readable pickle ({error})") from error
    check_extent(result)
    return result


def check_extent(value: Any) -> None:
    """
    Refuse values that are nested too deep, or that repeat a few references too often. To print, compare or copy them would
    never end.

    :param value: containers of plain values and :class:`ObjectRecord`
    """
    level, count, content = [value], 1, 0
    for _ in range(MAX_DEPTH):
        if not level:
            return
        content += sum(len(one) for one in level if isinstance(one, str | bytes | bytearray))
        level = list(islice(chain.from_iterable(map(_children, level)), MAX_VALUES))
        count += len(level)
        if count > MAX_VALUES:
            raise UnsafePickle(f"It holds more than {MAX_VALUES} values: refused")
        if content > MAX_CONTENT:
            raise UnsafePickle(f"Its values have more than {MAX_CONTENT} characters and bytes: refused")
    raise UnsafePickle(f"It is nested more than {MAX_DEPTH} levels deep: refused")


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, ObjectRecord):
        return (value.args, value.state, value.items)
    if isinstance(value, dict):
        return chain(value, value.values())
    return value if isinstance(value, list | tuple | set) and not isinstance(value, GlobalName) else ()


class _Machine:
    """The pickle machine's stack, marks and memo, with an ``op_`` method for each opcode that data needs."""

    def __init__(self, accept: Callable[[GlobalName], bool], persistent: Callable[[Any], Any] | None) -> None:
        self.accept, self.persistent = accept, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each open mark
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, arg: Any) -> None:
        if opcode in _LITERALS:
            self.stack.append(arg)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode]())
        elif opcode not in _IGNORED:
            handler = getattr(self, f"op_{opcode.lower()}", None)
            if handler is None:
                raise UnsafePickle(f"A pickle with the opcode {opcode}, which plain data never needs: refused")
            handler(arg)

    def result(self) -> Any:
        if len(self.stack) != 1 or self.below:
            raise UnsafePickle("Not a readable pickle (it does not end with one value)")
        return self.stack[0]

    def pop(self, kind: type | tuple[type, ...]) -> Any:
        value = self.stack.pop()
        return self.check(value, kind)

    def check(self, value: Any, kind: type | tuple[type, ...]) -> Any:
        if not isinstance(value, kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            expected = " or ".join(one.__name__ for one in kinds)
            raise UnsafePickle(f"A pickle uses a {type(value).__name__} where only a {expected} is let through: refused")
        return value

    def op_mark(self, arg: None) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def op_pop(self, arg: None) -> None:
        self.stack.pop()

    def op_pop_mark(self, arg: None) -> None:
        self.pop_mark()

    def op_memoize(self, arg: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def op_binput(self, arg: int) -> None:
        self.check_key(arg)
        self.memo[arg] = self.stack[-1]

    def op_binget(self, arg: int) -> None:
        self.stack.append(self.memo[arg])

    op_put = op_long_binput = op_binput
    op_get = op_long_binget = op_binget

    def op_tuple(self, arg: None) -> None:
        items = self.pop_mark()
        self.stack.append(tuple(items))

    def op_tuple1(self, arg: None) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def op_tuple2(self, arg: None) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def op_tuple3(self, arg: None) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def op_list(self, arg: None) -> None:
        items = self.pop_mark()
        self.stack.append(items)

    op_frozenset = op_list  # sets come out as lists, so that nothing is hashed

    def op_dict(self, arg: None) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self.set_items(items)

    def op_append(self, arg: None) -> None:
        self.extend([self.stack.pop()])

    def op_appends(self, arg: None) -> None:
        self.extend(self.pop_mark())

    op_additems = op_appends

    def op_setitem(self, arg: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def op_setitems(self, arg: None) -> None:
        self.set_items(self.pop_mark())

    def extend(self, items: list[Any]) -> None:
        target = self.check(self.stack[-1], (list, ObjectRecord))
        (target.items if isinstance(target, ObjectRecord) else target).extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.check(self.stack[-1], (dict, ObjectRecord))
        pairs = list(zip(items[::2], items[1::2], strict=True))
        for key, value in pairs:
            self.check_key(key)
            if isinstance(target, dict):
                target[key] = value
        if isinstance(target, ObjectRecord):
            target.items.extend(pairs)

    def check_key(self, key: Any) -> None:
        self.check(key, (str, int, float, bool))  # a nested tuple as a key could take for ever to hash
        if isinstance(key, int) and abs(key) >= MAX_KEY:
            raise UnsafePickle(f"A pickle uses a number beyond {MAX_KEY} as a key: refused")

    def op_global(self, arg: str) -> None:
        module, _, name = arg.partition(" ")
        self.name(module, name)

    def op_stack_global(self, arg: None) -> None:
        name, module = self.pop(str), self.pop(str)
        self.name(module, name)

    def name(self, module: str, name: str) -> None:
        found = GlobalName(module, name)
        if not self.accept(found):
            raise UnsafePickle(f"A pickle asks for {found}, which is outside the known classes: refused")
        self.stack.append(found)

    def op_reduce(self, arg: None) -> None:
        args, target = self.pop(tuple), self.pop(GlobalName)
        if args and target == GlobalName("collections", "OrderedDict"):
            raise UnsafePickle("An OrderedDict made of other values: refused")  # its keys would not be checked
        if target.name == "_reconstructor" and target.module in ("copy_reg", "copyreg"):
            target, args = self.plain_object(args), ()
        self.stack.append(ObjectRecord(target, args))

    op_newobj = op_reduce

    def plain_object(self, args: tuple) -> GlobalName:
        """The class of an object without arguments, as protocols 0 and 1 write it: class, ``object``, ``None``."""
        if len(args) != 3 or str(args[1]) not in ("__builtin__.object", "builtins.object") or args[2] is not None:
            raise UnsafePickle("An object that is made of another one: refused")
        return self.check(args[0], GlobalName)

    def op_binpersid(self, arg: None) -> None:
        if self.persistent is None:
            raise UnsafePickle("A pickle with the opcode BINPERSID, which plain data never needs: refused")
        self.stack.append(self.persistent(self.stack.pop()))

    def op_build(self, arg: None) -> None:
        state = self.stack.pop()
        self.check(self.stack[-1], ObjectRecord).state = state


_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE "
    "SHORT_BINUNICODE BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
}
_IGNORED = frozenset(("PROTO", "FRAME", "STOP"))


def to_bytes(value: Any) -> bytes:
    """
    Bytes, also in the form in which protocol 2 writes them.

    :param value: value from a pickle
    """
    if isinstance(value, ObjectRecord) and value.target == GlobalName("__builtin__", "bytes") and not value.args:
        return b""
    if isinstance(value, ObjectRecord) and value.target == GlobalName("_codecs", "encode") and value.args[1:] == ("latin1",):
        value = value.args[0].encode("latin1") if isinstance(value.args[0], str) else None
    if not isinstance(value, bytes | bytearray):
        raise UnsafePickle(f"Expected bytes, got {type(value).__name__}")
    return bytes(value)


def to_dtype(value: Any) -> np.dtype:
    """
    A numeric dtype: booleans, integers and floating point numbers, nothing else.

    :param value: value from a pickle: a class of numpy, or a request for a ``numpy.dtype``
    """
    if isinstance(value, GlobalName) and value.module == "numpy":
        code, order = value.name.rstrip("_"), ""
    elif isinstance(value, ObjectRecord) and value.target == GlobalName("numpy", "dtype") and value.args:
        code, order = value.args[0], value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else ""
    else:
        raise UnsafePickle(f"Expected a numpy dtype, got {type(value).__name__}")
    numeric = r"bool|u?int(8|16|32|64)|float(16|32|64)|b1|[iu][1248]|f[248]"
    if not isinstance(code, str) or not re.fullmatch(numeric, code) or order not in ("", "<", ">", "|", "="):
        got = repr(code[:40]) if isinstance(code, str) else f"a {type(code).__name__}"
        raise UnsafePickle(f"An array of dtype {got}: only numbers and booleans are let through, refused")
    return np.dtype(order.strip("|=") + code)


def to_array(value: Any) -> np.ndarray:
    """
    A numeric array, rebuilt from its raw bytes.

    :param value: value from a pickle: a request for an array or scalar (numpy 1 and 2), or a plain number
    :return: a new array, its size checked against its bytes
    """
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63):
        return np.asarray(value)
    target, args = _numpy_request(value)
    if target == "_reconstruct" and isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, dtype, fortran, raw = value.state
    elif target == "_frombuffer" and len(args) >= 4 and args[3] in ("C", "F"):
        raw, dtype, shape, fortran = *args[:3], args[3] == "F"
    elif target == "scalar" and len(args) == 2:
        shape, (dtype, raw), fortran = (), args, False
    else:
        raise UnsafePickle(f"Expected a numpy array, got a {value.target} of another form")
    return _from_bytes(to_bytes(raw), to_dtype(dtype), shape, bool(fortran))


def _numpy_request(value: Any) -> tuple[str, tuple]:
    if not isinstance(value, ObjectRecord) or not value.target.module.startswith("numpy"):
        raise UnsafePickle(f"Expected a numpy array, got {type(value).__name__}")
    return value.target.name, value.args


def _from_bytes(raw: bytes, dtype: np.dtype, shape: Any, fortran: bool) -> np.ndarray:
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(type(size) is int and 0 <= size < 2**31 for size in shape):
        raise UnsafePickle("An array whose shape is not a tuple of sizes: refused")
    if (size := math.prod(shape)) * dtype.itemsize != len(raw):
        raise UnsafePickle(f"An array of shape {shape} and dtype {dtype} in {len(raw)} bytes: refused")
    if size > MAX_ARRAY_SIZE:
        raise UnsafePickle(f"An array of {size} numbers, at most {MAX_ARRAY_SIZE} are read: refused")
    array = np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="))


def to_number(value: Any, kind: type[int] | type[float]) -> Any:
    """
    A finite Python number.

    :param value: value from a pickle: a plain number or a numpy scalar
    :param kind: type of the number
    """
    array = to_array(value)
    if array.shape != () or not np.isfinite(array):
        raise UnsafePickle("Expected one finite number")
    return kind(array)
