"""A pickle interpreter for state dicts: no import, no call but those that make tensors."""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jarvis_rules.formats._checkpoint_reading import refused
from jarvis_rules.formats.tar import quoted
from jarvis_rules.formats.torch_pickle import (
    KNOWN_CALLABLES,
    MAX_INTEGER_BITS,
    MAX_NAME_LENGTH,
    MAX_OPCODES,
    ORDERED_DICT,
    PARAMETER,
    REBUILD,
    STORAGES,
    Storage,
    Symbol,
    Tensor,
    make_tensor,
    short,
)


class PickleMachine:
    """A pickle interpreter that builds plain containers and tensor records, and nothing else."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.foreign: Symbol | None = None
        self.budget = MAX_OPCODES

    def run(self, stream: io.BytesIO) -> object:
        """Run one pickle and return its value, leaving the stream behind it."""
        self.stack, self.marks, self.memo = [], [], {}
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                self.spend(1)
                if opcode.name != "STOP":
                    self.step(opcode.name, argument)
            value = self.pop()
            self.refuse_import()
        except (ValueError, TypeError, LookupError) as error:
            self.refuse_import()
            raise refused("pickle", f"the pickle is malformed: {error}") from None
        return value

    def refuse_import(self) -> None:
        """Refuse a function that was named and not called: its import runs code too."""
        if self.foreign:
            raise refused("would-execute", f"loading it would import {quoted(self.foreign.name)}")

    def spend(self, steps: int) -> None:
        self.budget -= steps
        if self.budget < 0:
            raise refused("limit", f"the pickle takes more than {MAX_OPCODES} steps")

    def step(self, name: str, argument: object) -> None:
        if name in _PUSHED:
            if isinstance(argument, int) and argument.bit_length() > MAX_INTEGER_BITS:
                raise ValueError(f"an integer has {argument.bit_length()} bits")
            self.stack.append(argument)
        elif name in _MADE:
            self.stack.append(_MADE[name]())
        elif name in _STEPS:
            _STEPS[name](self, argument)
        else:
            raise refused("unsupported", f"the pickle uses `{name}`, which no state dict needs")

    def pop(self, count: int = 1) -> Any:
        if len(self.stack) - count < (self.marks[-1] if self.marks else 0):
            raise IndexError("it pops from an empty stack")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items[0] if count == 1 else tuple(items)

    def pop_mark(self) -> tuple[Any, ...]:
        start = self.marks.pop()
        items = tuple(self.stack[start:])
        del self.stack[start:]
        return items

    def put(self, index: int | None) -> None:
        if index is not None and index.bit_length() > 32:
            raise ValueError("a memo index has more than 32 bits")
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def append(self, items: Iterable[object]) -> None:
        if not isinstance(target := self.stack[-1], list):
            raise TypeError(f"it appends to {short(target)}")
        target += items

    def store(self, items: Sequence[object]) -> None:
        if not isinstance(target := self.stack[-1], dict) or len(items) % 2:
            raise TypeError(f"it stores {len(items)} keys and values in {short(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Text hashes are salted; tuples and long integers can be made to collide.
            is_short = isinstance(key, int) and key.bit_length() < 64
            if not isinstance(key, str | bytes | None) and not is_short:
                raise TypeError(f"it uses {short(key)} as a key")
            target[key] = value

    def symbol(self, module: object, name: object) -> None:
        # Names that are made of names, or of long texts, would grow without bound.
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError(f"it imports {short(name)} from {short(module)}")
        if len(module) + len(name) > MAX_NAME_LENGTH:
            raise ValueError(f"it imports a name of {len(module) + len(name)} characters")
        symbol = Symbol(f"{module}.{name}")
        if symbol.name not in KNOWN_CALLABLES:
            self.foreign = self.foreign or symbol
        self.stack.append(symbol)

    def reduce(self, function: object, arguments: object, *keywords: object) -> None:
        if not isinstance(arguments, tuple):
            raise TypeError(f"it calls {short(function)} with {short(arguments)}")
        self.spend(len(arguments))  # one long tuple can be the arguments of many calls
        self.call(function, *arguments, *filter(None, keywords))

    def call(self, function: object, *arguments: object) -> None:
        if not isinstance(function, Symbol):
            raise TypeError(f"it calls {short(function)}")
        if function.name == ORDERED_DICT and len(arguments) < 2:
            self.ordered_dict(*arguments)
        elif function.name in PARAMETER and arguments and isinstance(arguments[0], Tensor):
            self.stack.append(arguments[0])
        elif function.name in REBUILD and len(arguments) >= 4:
            self.stack.append(make_tensor(*arguments[:4]))
        else:
            call = function.name + short(arguments).replace(",)", ")")
            raise refused("would-execute", f"loading it would call {quoted(call, 400)}")

    def ordered_dict(self, pairs: object = ()) -> None:
        if not isinstance(pairs, list | tuple):
            raise TypeError(f"it makes a dict of {short(pairs)}")
        self.spend(len(pairs))
        self.stack.append({})
        for pair in pairs:
            self.store(pair if isinstance(pair, list | tuple) else [pair])

    def build(self, _: object) -> None:
        _, target = self.pop(), self.stack[-1]
        # The state of an OrderedDict is only `_metadata`, the versions of torch's modules.
        if not isinstance(target, dict):
            raise refused("would-execute", f"loading it would set the state of {short(target)}")

    def persistent(self, _: object) -> None:
        match identity := self.pop():
            case ("storage", Symbol(kind), str(key), str(), int(count), *rest) if (
                kind in STORAGES and 0 <= count < 1 << 48 and rest in ([], [None])
            ):
                self.storages[key] = Storage(kind, key, count)
                self.stack.append(self.storages[key])
            case _:
                raise refused("unsupported", f"unknown kind of storage {short(identity)}")


_PUSHED = {
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_MADE: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_Step = Callable[[PickleMachine, Any], object]
_STEPS: dict[str, _Step] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda *_: None),
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": lambda m, _: m.pop(),
    "POP_MARK": lambda m, _: m.pop_mark(),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), PickleMachine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, i: m.stack.append(m.memo[i])),
    "TUPLE": lambda m, _: m.stack.append(m.pop_mark()),
    "TUPLE1": lambda m, _: m.stack.append((m.pop(),)),
    "TUPLE2": lambda m, _: m.stack.append(m.pop(2)),
    "TUPLE3": lambda m, _: m.stack.append(m.pop(3)),
    "APPEND": lambda m, _: m.append([m.pop()]),
    "APPENDS": lambda m, _: m.append(m.pop_mark()),
    "SETITEM": lambda m, _: m.store(m.pop(2)),
    "SETITEMS": lambda m, _: m.store(m.pop_mark()),
    "GLOBAL": lambda m, argument: m.symbol(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.symbol(*m.pop(2)),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda m, _: m.reduce(*m.pop(2))),
    "NEWOBJ_EX": lambda m, _: m.reduce(*m.pop(3)),
    "INST": lambda m, argument: m.call(Symbol(argument.replace(" ", ".", 1)), *m.pop_mark()),
    "OBJ": lambda m, _: m.call(*m.pop_mark()),
    "BUILD": PickleMachine.build,
    "BINPERSID": PickleMachine.persistent,
}
