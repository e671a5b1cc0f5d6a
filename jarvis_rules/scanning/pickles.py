"""Walks a pickle without running it: what it would import and call, with which arguments.

Values are symbols and constants: nothing is looked up, imported or built. Where a real unpickler
would stop with an error the walk ends too; what stands before has been run by then.
"""

from __future__ import annotations

import io
import pickletools
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from jarvis_rules.formats.tar import quoted
from jarvis_rules.formats.torch_legacy import LEGACY_MAGIC
from jarvis_rules.formats.torch_pickle import (
    KNOWN_CALLABLES,
    MAX_INTEGER_BITS,
    MAX_NAME_LENGTH,
    MAX_OPCODES,
    MAX_PICKLE_SIZE,
)
from jarvis_rules.scanning.report import Findings, inside

MAX_NESTING = 3  # pickles in the bytes of pickles
_MAX_TEXT = 400
_HEAD = 8  # items of a container that are kept to be shown

# Of torch's own list for `weights_only=True`, what stands in ordinary checkpoints.
_KNOWN_ELSEWHERE = re.compile(
    r"collections\.Counter|_codecs\.encode|builtins\.(bytearray|set|complex)"
    r"|torch\.(Size|device|dtype|Tensor|nn\.parameter\.Parameter|storage\.\w+Storage)"
    r"|torch\.(\w+Storage|[a-z]+\d+\w*|bool|half|float|double|int|long|short|strided|per_\w+)"
    r"|torch\._utils\._rebuild_(sparse|qtensor|meta)\w*"
    r"|torch\._tensor\._rebuild_from_type_v2|torch\.serialization\._get_layout"
)
# A pickle tells itself by its protocol, or by the import that it starts with.
_PICKLE = re.compile(rb"\x80[\2-\5]|[(\]})l]{0,8}[ci][A-Za-z_][\w.]{0,200}\r?\n[A-Za-z_]")


def may_be_pickle(head: bytes) -> bool:
    """Return whether bytes start as a pickle may; text can, too."""
    return bool(_PICKLE.match(head))


@dataclass(slots=True)
class _Name:
    """A function or class by name only."""

    text: str
    offset: int
    is_harmless: bool
    was_called: bool = False


@dataclass(frozen=True, slots=True)
class _Made:
    """What a call returned."""

    function: object
    arguments: object


@dataclass(frozen=True, slots=True)
class _Opaque:
    """A value of which only a description is kept."""

    text: str


@dataclass(slots=True)
class _Items:
    """A container, its first items and their count."""

    kind: str
    head: list[Any] = field(default_factory=list)
    count: int = 0

    def extend(self, items: Iterable[object], count: int) -> None:
        """Add items."""
        self.count += count
        if len(self.head) < _HEAD:
            self.head += list(items)[: _HEAD - len(self.head)]


class PickleWalker:
    """Walks the pickles of one place; the budget of steps is one for all of a file."""

    def __init__(self, findings: Findings, where: str, budget: Budget, nesting: int = 0) -> None:
        self.findings = findings
        self.where = where
        self.budget = budget
        self.nesting = nesting
        self.storages: set[str] = set()
        self.rebuilds: Counter[str] = Counter()
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.foreign: list[_Name] = []
        self.at = 0
        self.ended = False

    def walk(self, stream: io.BytesIO) -> tuple[bool, object]:
        """Walk the pickle at the stream's position; return whether it ended well, and its value."""
        self.stack, self.marks, self.memo, self.foreign = [], [], {}, []
        value, self.ended = None, False
        try:
            for opcode, argument, offset in pickletools.genops(stream):
                self.at = offset or 0
                if not self.budget.spend():
                    self.add("pickle.limit", f"takes more than {MAX_OPCODES} steps")
                    break
                if opcode.name == "STOP":
                    value, self.ended = self.pop(), True
                else:
                    self.step(opcode.name, argument)
        except (ValueError, TypeError, LookupError) as error:
            self.add("pickle.malformed", f"the pickle is malformed: {quoted(str(error))}")
        for name in self.foreign:
            if not name.was_called:
                self.named("pickle.import", name, "import")
        return self.ended, value

    def add(self, rule: str, message: str | Callable[[], str]) -> None:
        """Add a finding at the current opcode."""
        self.findings.add(rule, self.where, message, self.at)

    def named(self, rule: str, name: _Name, verb: str, arguments: object = None) -> None:
        """Add a finding on a name that is imported or called."""
        if _KNOWN_ELSEWHERE.fullmatch(name.text):
            rule = "pickle.known-elsewhere"
        shown = name if arguments is None else _Made(name, arguments)
        offset = name.offset if arguments is None else self.at
        self.findings.add(rule, self.where, partial(_would, verb, shown), offset)

    def step(self, name: str, argument: Any) -> None:
        """Follow one opcode."""
        if name in _CONSTANTS:
            self.push(argument)
        elif name in _MADE:
            self.stack.append(_MADE[name]())
        elif name in _STEPS:
            _STEPS[name](self, argument)
        else:
            raise ValueError(f"unknown opcode {name}")

    def push(self, value: Any) -> None:
        """Push a constant; bytes may be a pickle of their own."""
        if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
            value = _Opaque(f"<integer of {value.bit_length()} bits>")
        self.stack.append(value)
        if isinstance(value, str):
            head = value[:512].encode("latin-1", "replace")
        elif isinstance(value, bytes | bytearray):
            head = bytes(value[:512])
        else:
            return
        if may_be_pickle(head):
            text = value.encode("latin-1", "replace") if isinstance(value, str) else value
            self.nested(bytes(text))

    def nested(self, data: bytes) -> None:
        """Walk bytes that look like a pickle; they are one if they end well or call something."""
        if self.nesting == MAX_NESTING:
            return
        found = Findings()
        where = inside(self.where, f"byte {self.at}")
        inner = PickleWalker(found, where, self.budget, self.nesting + 1)
        ended, _ = inner.walk(io.BytesIO(data))
        if ended or found.counts["pickle.call"]:
            self.add("pickle.nested", f"{len(data)} bytes are a pickle themselves")
            for finding in found.listed:
                self.findings.add(finding.rule, where, finding.message, finding.offset)

    def pop(self) -> Any:
        """Pop one value, as Python's unpickler does not below a mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise IndexError("it pops from an empty stack")
        return self.stack.pop()

    def pop_many(self, count: int) -> list[Any]:
        """Pop values, the lowest first."""
        return [self.pop() for _ in range(count)][::-1]

    def pop_mark(self) -> list[Any]:
        """Pop all above the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def discard(self) -> None:
        """Pop one value, or the mark where it is on top."""
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def gather(self, kind: str, items: list[Any]) -> None:
        """Push a container."""
        self.stack.append(_Items(kind, items[:_HEAD], len(items)))

    def grow(self, items: list[Any]) -> None:
        """Add items to the container on top; other objects take them by a method of theirs."""
        target = self.stack[-1]
        if isinstance(target, _Items):
            target.extend(items, len(items))
        elif not isinstance(target, _Made):
            raise TypeError(f"it adds items to {_show(target)}")

    def put(self, index: int | None) -> None:
        """Memoise the top."""
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def symbol(self, module: object, name: object) -> None:
        """Push a function or class."""
        if isinstance(module, str) and isinstance(name, str):
            text = f"{module[:MAX_NAME_LENGTH]}.{name[:MAX_NAME_LENGTH]}"
            symbol = _Name(text, self.at, text in KNOWN_CALLABLES)
            if not symbol.is_harmless:
                self.foreign.append(symbol)
        elif isinstance(module, str | _Made | _Opaque) and isinstance(name, str | _Made | _Opaque):
            symbol = _Name(f"{_show(module)}.{_show(name)}", self.at, False, was_called=True)
            self.add("pickle.computed-name", f"loading it would import {quoted(symbol.text)}")
        else:
            raise TypeError(f"it imports {_show(module)}.{_show(name)}")
        self.stack.append(symbol)

    def extension(self, code: object) -> None:
        """Push what the extension registry has under a number."""
        self.add("pickle.extension", f"loading it would import extension {code} of `copyreg`")
        self.stack.append(_Name(f"copyreg.extension_{code}", self.at, False, was_called=True))

    def call(self, function: object, arguments: object) -> None:
        """Push what a call returns, and report the call unless it is harmless."""
        made = _Made(function, arguments)
        self.stack.append(made)
        if not isinstance(function, _Name):
            self.add("pickle.call", partial(_would, "call", made))
        elif function.is_harmless:
            self.rebuilds[function.text] += 1
        else:
            function.was_called = True
            self.named("pickle.call", function, "call", arguments)

    def call_with_keywords(self, function: object, arguments: object, keywords: object) -> None:
        """Push what a call with keywords returns."""
        given = arguments.head if isinstance(arguments, _Items) else [arguments]
        self.call(function, _Items("tuple", [*given, keywords], len(given) + 1))

    def call_object(self, parts: list[Any]) -> None:
        """Push what a call returns whose function lies with its arguments."""
        self.call(parts[0], _Items("tuple", parts[1 : _HEAD + 1], len(parts) - 1))

    def call_instance(self, names: str) -> None:
        """Push what a call returns whose function is part of the opcode."""
        arguments = self.pop_mark()
        module, _, name = names.partition(" ")
        self.symbol(module, name)
        self.call_object([self.stack.pop(), *arguments])

    def build(self) -> None:
        """Report what would get a state; containers have none that matters."""
        state, target = self.pop(), self.stack[-1]
        is_container = isinstance(target, _Items)
        if isinstance(target, _Made) and isinstance(target.function, _Name):
            is_container = target.function.is_harmless
        if not is_container:
            self.add("pickle.build", partial(_state_set, target, state))

    def persistent(self, identity: object) -> None:
        """Push a storage, or report another persistent id."""
        parts = identity.head if isinstance(identity, _Items) else []
        match parts:
            case ["storage", _Name(is_harmless=True), str(key), str(), int(), *_]:
                self.storages.add(key)
                self.stack.append(_Opaque(f"storage {key}"))
            case _:
                self.add("pickle.persistent-id", lambda: f"refers to {quoted(_show(identity))}")
                self.stack.append(_Opaque("persistent"))


@dataclass(slots=True)
class Budget:
    """The steps that are left for all pickles of a file."""

    left: int = MAX_OPCODES

    def spend(self) -> bool:
        """Take one step; return whether there was one left."""
        self.left -= 1
        return self.left >= 0


def walk_pickles(
    data: bytes | memoryview, where: str, findings: Findings, budget: Budget, most: int = 16
) -> tuple[int, PickleWalker]:
    """Walk pickles that follow one another; return where they end, and the walker.

    A second pickle is one of a legacy checkpoint, or something that hides from other scanners.
    """
    walker = PickleWalker(findings, where, budget)
    stream = io.BytesIO(data[:MAX_PICKLE_SIZE])
    end = 0
    index = 0
    while index < most:
        head = stream.read(512)
        stream.seek(end)
        if not head or (index and not may_be_pickle(head)):
            break
        ended, value = walker.walk(stream)
        if value == LEGACY_MAGIC:
            most = 5  # then come the bytes of the storages
        if not ended:
            if len(data) > MAX_PICKLE_SIZE:
                findings.add("pickle.limit", where, f"goes on beyond {MAX_PICKLE_SIZE} bytes")
            return len(data), walker
        end, index = stream.tell(), index + 1
    return end, walker


def note_rebuilds(walker: PickleWalker) -> None:
    """Add a note on the harmless calls, all in one."""
    if walker.rebuilds:
        calls = ", ".join(f"`{name}` ({n} times)" for name, n in sorted(walker.rebuilds.items()))
        walker.findings.add("pickle.rebuilds", walker.where, f"harmless rebuilds: {calls}")


class _Shown(reprlib.Repr):
    """A repr of bounded length and cost."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring = 4, 200

    def repr_bytes(self, value: bytes, _: int) -> str:
        return repr(value[:60])

    def repr_bytearray(self, value: bytearray, _: int) -> str:
        return repr(value[:60])

    def repr__Name(self, value: _Name, _: int) -> str:  # noqa: N802
        return value.text[:200]

    def repr__Opaque(self, value: _Opaque, _: int) -> str:  # noqa: N802
        return value.text

    def repr__Made(self, value: _Made, level: int) -> str:  # noqa: N802
        function = self.repr1(value.function, level - 1) if level > 0 else "…"
        arguments = self.repr1(value.arguments, level - 1) if level > 0 else "(…)"
        return f"{function}{arguments}"

    def repr__Items(self, value: _Items, level: int) -> str:  # noqa: N802
        brackets = {"list": "[]", "dict": "{}", "set": "{}"}.get(value.kind, "()")
        shown = [self.repr1(item, level - 1) for item in value.head] if level > 0 else ["…"]
        if value.kind == "dict":
            pairs = zip(shown[::2], shown[1::2], strict=False)
            shown = [f"{key}: {item}" for key, item in pairs]
        more = ["…"] if value.count > len(value.head) else []
        return brackets[0] + ", ".join([*shown, *more]) + brackets[1]


_show = _Shown().repr


def _would(verb: str, shown: object) -> str:
    return f"loading it would {verb} {quoted(_show(shown), _MAX_TEXT)}"


def _state_set(target: object, state: object) -> str:
    shown = quoted(f"{_show(target)} to {_show(state)}", _MAX_TEXT)
    return f"loading it would set the state of {shown}"


_CONSTANTS = {
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING"),
    *("SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_MADE: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "NEXT_BUFFER": lambda: _Opaque("buffer"),
    "EMPTY_TUPLE": lambda: _Items("tuple"),
    "EMPTY_LIST": lambda: _Items("list"),
    "EMPTY_DICT": lambda: _Items("dict"),
    "EMPTY_SET": lambda: _Items("set"),
}
_Step = Callable[[PickleWalker, Any], object]
_STEPS: dict[str, _Step] = {
    **dict.fromkeys(("PROTO", "FRAME", "READONLY_BUFFER"), lambda *_: None),
    "MARK": lambda w, _: w.marks.append(len(w.stack)),
    "POP": lambda w, _: w.discard(),
    "POP_MARK": lambda w, _: w.pop_mark(),
    "DUP": lambda w, _: w.stack.append(w.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), PickleWalker.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda w, i: w.stack.append(w.memo[i])),
    "TUPLE": lambda w, _: w.gather("tuple", w.pop_mark()),
    "TUPLE1": lambda w, _: w.gather("tuple", w.pop_many(1)),
    "TUPLE2": lambda w, _: w.gather("tuple", w.pop_many(2)),
    "TUPLE3": lambda w, _: w.gather("tuple", w.pop_many(3)),
    "LIST": lambda w, _: w.gather("list", w.pop_mark()),
    "DICT": lambda w, _: w.gather("dict", w.pop_mark()),
    "FROZENSET": lambda w, _: w.gather("set", w.pop_mark()),
    "APPEND": lambda w, _: w.grow(w.pop_many(1)),
    "SETITEM": lambda w, _: w.grow(w.pop_many(2)),
    **dict.fromkeys(("APPENDS", "SETITEMS", "ADDITEMS"), lambda w, _: w.grow(w.pop_mark())),
    "GLOBAL": lambda w, names: w.symbol(*names.partition(" ")[::2]),
    "STACK_GLOBAL": lambda w, _: w.symbol(*w.pop_many(2)),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), PickleWalker.extension),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda w, _: w.call(*w.pop_many(2))),
    "NEWOBJ_EX": lambda w, _: w.call_with_keywords(*w.pop_many(3)),
    "INST": PickleWalker.call_instance,
    "OBJ": lambda w, _: w.call_object(w.pop_mark()),
    "BUILD": lambda w, _: w.build(),
    "PERSID": lambda w, identity: w.persistent(identity),
    "BINPERSID": lambda w, _: w.persistent(w.pop()),
}
