"""Hostile pickles in good zips: what they call, and what they claim of their tensors."""

from __future__ import annotations

import struct

from hostile.case import case
from hostile.forge import (
    ORDERED_DICT,
    SIX,
    checkpoint,
    legacy,
    number,
    numbers,
    state,
    storage,
    tensor,
    text,
)

_COMMAND = text("touch pwned")
_SYSTEM = b"cposix\nsystem\n"
_EVAL = b"cbuiltins\neval\n"
_CALL = _SYSTEM + _COMMAND + b"\x85R"
_CODE = text("__import__('os').system('touch pwned')")
_NESTED = b"\x80\2" + _CALL + b"."


def _in_bytes(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data


# What runs before the state dict is built: name, attack, slug of the reader, rules, opcodes.
_EXECUTED = [
    ("reduce", "`os.system` by REDUCE", "pickle.call", _CALL),
    ("inst", "`os.system` by INST", "pickle.call", b"(" + _COMMAND + b"iposix\nsystem\n"),
    ("obj", "`os.system` by OBJ", "pickle.call", b"(" + _SYSTEM + _COMMAND + b"o"),
    ("newobj", "`os.system` by NEWOBJ", "pickle.call", _SYSTEM + _COMMAND + b"\x85\x81"),
    ("newobj_ex", "`os.system` by NEWOBJ_EX", "pickle.call",
     _SYSTEM + _COMMAND + b"\x85}\x92"),
    ("stack_global", "names as strings on the stack", "pickle.call",
     text("posix") + text("system") + b"\x93" + _COMMAND + b"\x85R"),
    ("stack_global_memo", "names by way of the memo", "pickle.call",
     text("system") + b"q\1" + text("posix") + b"q\2" + b"00h\2h\1\x93" + _COMMAND + b"\x85R"),
    ("stack_global_computed", "names that are computed", "pickle.call pickle.computed-name",
     b"cbuiltins\nstr\n" + text("posix") + b"\x85R" + text("system") + b"\x93"
     + _COMMAND + b"\x85R"),
    ("eval", "`eval` of code", "pickle.call", _EVAL + _CODE + b"\x85R"),
    ("exec", "`exec` of code", "pickle.call", b"cbuiltins\nexec\n" + _CODE + b"\x85R"),
    ("eval_python2", "`eval` by its Python 2 module", "pickle.call",
     b"c__builtin__\neval\n" + _CODE + b"\x85R"),
    ("getattr", "`getattr(__import__('os'), 'system')`", "pickle.call",
     b"cbuiltins\ngetattr\n(" + b"cbuiltins\n__import__\n" + text("os") + b"\x85R"
     + text("system") + b"tR" + _COMMAND + b"\x85R"),
    ("map", "`list(map(os.system, …))`", "pickle.call pickle.import",
     b"cbuiltins\nlist\ncbuiltins\nmap\n(" + _SYSTEM + b"]" + _COMMAND + b"atR\x85R"),
    ("partial", "`functools.partial`", "pickle.call pickle.import",
     b"cfunctools\npartial\n(" + _SYSTEM + _COMMAND + b"tR)R"),
    ("attrgetter", "`operator.attrgetter` of a module", "pickle.call",
     b"coperator\nattrgetter\n" + text("system") + b"\x85R" + b"cimportlib\nimport_module\n"
     + text("os") + b"\x85R\x85R" + _COMMAND + b"\x85R"),
    ("subprocess", "`subprocess.Popen`", "pickle.call",
     b"csubprocess\nPopen\n(](" + text("touch") + text("pwned") + b"etR"),
    ("runpy", "`runpy.run_path`", "pickle.call", b"crunpy\nrun_path\n" + text("a.py") + b"\x85R"),
    ("ctypes", "loads a library", "pickle.call", b"cctypes\nCDLL\n" + text("./a.so") + b"\x85R"),
    ("pip", "installs a package", "pickle.call",
     b"cpip\nmain\n](" + text("install") + text("a") + b"e\x85R"),
    ("webbrowser", "opens an address", "pickle.call",
     b"cwebbrowser\nopen\n" + text("http://127.0.0.1/") + b"\x85R"),
    ("torch_hub", "`torch.hub.load`", "pickle.call",
     b"ctorch.hub\nload\n(" + text("a/b") + text("c") + b"tR"),
    ("torch_load", "a pickle in bytes, by torch's own loader", "pickle.call pickle.nested",
     b"ctorch.storage\n_load_from_bytes\n" + _in_bytes(_NESTED) + b"\x85R"),
    ("nested_twice", "a pickle in a pickle in a pickle", "pickle.call pickle.nested",
     b"cpickle\nloads\n" + _in_bytes(
         b"\x80\2cpickle\nloads\n" + _in_bytes(_NESTED) + b"\x85R.") + b"\x85R"),
    ("nested_text", "a pickle of protocol 0 in text", "pickle.call pickle.nested",
     b"c_pickle\nloads\nccodecs\nencode\n(" + text("cposix\nsystem\n(S'touch pwned'\ntR.")
     + text("latin1") + b"tR\x85R"),
    ("numpy_object", "an array of objects of numpy", "pickle.call pickle.import",
     b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + numbers(0) + text("b") + b"tR"),
    ("import_only", "a module that is imported and not called", "pickle.import",
     b"cthis\ns\n"),
    ("import_popped", "a name that is thrown away at once", "pickle.import", b"cantigravity\nx\n"),
    ("build", "the state of a function", "pickle.build pickle.import",
     _SYSTEM + b"}" + text("a") + number(1) + b"sb"),
    ("build_made", "the state of a made object", "pickle.call pickle.build",
     b"ccodeop\nCompile\n)R}" + text("flags") + number(1) + b"sb"),
    ("call_result", "calls what a call returned", "pickle.call",
     b"coperator\nmethodcaller\n" + text("upper") + b"\x85R" + text("a") + b"\x85R"),
    ("dotted_name", "a name that leads to a module of a module", "pickle.call",
     text("torch._utils") + text("_rebuild_tensor_v2.__globals__.clear") + b"\x93)R"),
    ("lookalike", "a name that looks like torch's", "pickle.call",
     b"ctorch.utils\n_rebuild_tensor_v2\n)R"),
    ("torch_jit", "`torch.jit.load`", "pickle.call",
     b"ctorch.jit\nload\n" + text("a.pt") + b"\x85R"),
    ("set_state", "`__setstate__` of a class of torch", "pickle.call pickle.build",
     b"ctorch.nn.modules.module\nModule\n)\x81}" + text("a") + number(1) + b"sb"),
]  # fmt: skip

_WEIGHT_LIES = [
    ("beyond", "a tensor that ends behind its storage", "tensor-bounds", "",
     tensor(size=(2, 4), stride=(4, 1))),
    ("stride", "a stride that leads behind the storage", "tensor-bounds", "",
     tensor(stride=(99, 1))),
    ("stride_huge", "a stride of 2^62", "tensor-bounds", "", tensor(stride=(1 << 62, 1))),
    ("stride_negative", "a negative stride", "tensor-bounds", "", tensor(stride=(-3, 1))),
    ("offset", "an offset behind the storage", "tensor-bounds", "", tensor(offset=1)),
    ("offset_negative", "a negative offset", "tensor-bounds", "", tensor(offset=-1)),
    ("offset_huge", "an offset of 2^100", "tensor-bounds", "", tensor(offset=1 << 100)),
    ("size_negative", "a negative size", "tensor-bounds", "", tensor(size=(-2, -3))),
    ("expanded", "a petabyte by a stride of 0", "tensor-bounds", "",
     tensor(size=(1 << 30, 1 << 20), stride=(0, 0))),
    ("dimensions", "400 dimensions", "tensor-bounds", "",
     tensor(size=(1,) * 400, stride=(1,) * 400)),
    ("ranks", "sizes and strides of two lengths", "tensor-bounds", "", tensor(stride=(1,))),
    ("storage_huge", "a storage of 2^47 values", "storage", "", tensor(storage(count=1 << 47))),
    ("storage_negative", "a storage of -6 values", "unsupported", "", tensor(storage(count=-6))),
    ("storage_path", "a storage that is another file", "storage", "zip.unused",
     tensor(storage("../../../etc/passwd"))),
    ("storage_kind", "a storage of a kind that is none", "unsupported",
     "zip.unused pickle.persistent-id pickle.import",
     tensor(storage(kind="posix\nsystem"))),
    ("not_a_tensor", "text for a tensor", "not-a-state-dict", "zip.unused", text("w")),
]  # fmt: skip


def _bomb(opcodes: bytes, count: int) -> bytes:
    return b"\x80\2" + opcodes * count + b"."


def _long(size: int) -> bytes:
    return b"\x8b" + struct.pack("<i", size) + b"\7" * size


def _laughs() -> bytes:
    """A tuple of 2^60 items that takes 180 opcodes."""
    doubled = b"q\1h\1\x86" * 60
    return state(text("x") + b")" + doubled)


def _legacy(keys: bytes = b"](" + text("0") + b"e.", data: bytes = SIX, count: int = 6) -> bytes:
    return legacy(state(), b"\x80\2" + keys, struct.pack("<q", count) + data)


_SHAPES = [
    ("opcode_bomb", "three million opcodes", "limit", "pickle.limit",
     lambda: checkpoint(_bomb(b"N0", 1_500_000))),
    ("mark_bomb", "300,000 marks", "pickle", "pickle.malformed",
     lambda: checkpoint(_bomb(b"(", 300_000))),
    ("names_of_names", "a name that is made of names, 100 times over", "pickle", "pickle.malformed",
     lambda: checkpoint(b"\x80\2" + b"N" * 101 + b"\x93" * 100 + b".")),
    ("names_of_symbols", "a name that doubles 60 times", "would-execute",
     "pickle.malformed pickle.import",
     lambda: checkpoint(b"\x80\2ca\nb\n" + b"q\0h\0\x93" * 60 + b".")),
    ("name_long", "a thousand names of 16 MiB", "pickle", "pickle.import zip.unused",
     lambda: checkpoint(b"\x80\2" + text("a" * (8 << 20)) + b"q\0h\0" + b"h\0h\0\x93" * 1000
                        + b".")),
    ("call_bomb", "200,000 calls with a tuple of 200,000 arguments", "limit", "",
     lambda: checkpoint(b"\x80\2ctorch._utils\n_rebuild_tensor_v2\nq\0("
                        + tensor()[len(b"ctorch._utils\n_rebuild_tensor_v2\n(") : -2]
                        + b"N" * 200_000 + b"tq\1" + b"h\0h\1R0" * 200_000 + b".")),
    ("laughs", "a tuple of 2^60 items", "not-a-state-dict", "", lambda: checkpoint(_laughs())),
    ("deep", "lists 100,000 deep", "not-a-state-dict", "zip.unused",
     lambda: checkpoint(b"\x80\2" + b"]" * 100_000 + b"a" * 99_999 + b".")),
    ("list_in_itself", "a list in itself", "not-a-state-dict", "zip.unused",
     lambda: checkpoint(b"\x80\2]q\0h\0a.")),
    ("integer_bomb", "an integer of eight million bits", "pickle", "",
     lambda: checkpoint(state(text("x") + _long(1 << 20)))),
    ("decimal_bomb", "an integer of a million digits", "pickle", "pickle.malformed",
     lambda: checkpoint(b"\x80\2I" + b"9" * 1_000_000 + b"\n.")),
    ("memo_huge", "a memo index of 200 bits", "pickle", "zip.unused",
     lambda: checkpoint(b"\x80\2Np" + b"%d" % (1 << 200) + b"\n.")),
    ("memo_missing", "a memo entry that is not there", "pickle", "pickle.malformed",
     lambda: checkpoint(b"\x80\2h\7.")),
    ("stack_empty", "pops more than there is", "pickle", "pickle.malformed",
     lambda: checkpoint(b"\x80\2N000.")),
    ("below_mark", "pops below a mark", "pickle", "pickle.malformed",
     lambda: checkpoint(b"\x80\2NN(\x86.")),
    ("unknown_opcode", "an opcode that nobody knows", "pickle", "pickle.malformed",
     lambda: checkpoint(b"\x80\2\xff.")),
    ("cut", "breaks off within a string, behind a call", "would-execute",
     "pickle.call pickle.malformed",
     lambda: checkpoint(b"\x80\2" + _CALL + b"X\xff\xff\0\0abc")),
    ("claims", "a string of 2^62 bytes", "pickle", "pickle.malformed",
     lambda: checkpoint(b"\x80\4\x8d" + struct.pack("<Q", 1 << 62) + b"a.")),
    ("second", "a second pickle behind the first runs a command", "pickle", "pickle.call",
     lambda: checkpoint(state() + _NESTED)),
    ("trailing", "bytes behind the pickle", "pickle", "pickle.trailing-data",
     lambda: checkpoint(state() + b"hidden")),
    ("key_tuple", "a tuple as a key, to make them collide", "pickle", "",
     lambda: checkpoint(state(numbers(1, 2) + tensor()))),
    ("key_integer", "an integer as a key", "not-a-state-dict", "",
     lambda: checkpoint(state(number(5) + tensor()))),
    ("list", "a list of tensors", "not-a-state-dict", "",
     lambda: checkpoint(b"\x80\2]" + tensor() + b"a.")),
    ("nothing", "an empty dict", "not-a-state-dict", "zip.unused", lambda: checkpoint(b"\x80\2}.")),
    ("extension", "the extension registry", "unsupported", "pickle.extension pickle.call",
     lambda: checkpoint(state(before=b"\x82\1)R0"))),
    ("persistent_text", "a persistent id that is text", "unsupported", "pickle.persistent-id",
     lambda: checkpoint(state(before=b"Pabc\n0"))),
    ("persistent_kind", "a persistent id of another kind", "unsupported",
     "pickle.persistent-id",
     lambda: checkpoint(state(before=b"(" + text("module") + text("a") + b"tQ0"))),
    ("buffer", "a buffer from outside of the pickle", "unsupported", "",
     lambda: checkpoint(state(before=b"\x97" + b"0"))),
    ("frozen", "a frozen set", "unsupported", "", lambda: checkpoint(state(before=b"(\x910"))),
    ("rebuild_short", "a rebuild with too few arguments", "would-execute", "",
     lambda: checkpoint(state(before=b"ctorch._utils\n_rebuild_tensor_v2\n)R0"))),
    ("rebuild_from_type", "a rebuild that calls what it is given", "would-execute",
     "pickle.import pickle.known-elsewhere",
     lambda: checkpoint(state(
         before=b"ctorch._tensor\n_rebuild_from_type_v2\n(" + _SYSTEM + _SYSTEM + _COMMAND
         + b"\x85NtR0"))),
    ("known_elsewhere", "`torch.Size`, which our readers do not know", "would-execute",
     "pickle.known-elsewhere",
     lambda: checkpoint(state(before=b"ctorch\nSize\n" + numbers(1) + b"\x85R0"))),
    ("ordered_dict_items", "items of an OrderedDict that are none", "pickle", "",
     lambda: checkpoint(state(before=ORDERED_DICT[:-2] + b"](" + number(1) + b"e\x85R0"))),
    ("protocol_0", "a bare pickle of protocol 0", "would-execute", "pickle.call",
     lambda: b"cposix\nsystem\n(S'touch pwned'\ntR."),
    ("protocol_0_inst", "a bare pickle of protocol 0 with INST", "would-execute", "pickle.call",
     lambda: b"(S'touch pwned'\niposix\nsystem\n."),
    ("protocol_5", "a bare pickle of protocol 5 with a frame", "would-execute",
     "pickle.call", lambda: b"\x80\5\x95" + struct.pack("<Q", 34) + b"\x8c\5posix\x8c\6system\x93"
     b"\x8c\x0btouch pwned\x85R."),
    ("legacy_second", "the fourth pickle of a legacy checkpoint runs a command",
     "would-execute", "pickle.call",
     lambda: legacy(state(before=_CALL + b"0"), b"\x80\2].", b"")),
    ("legacy_short", "a legacy storage that breaks off", "storage", "",
     lambda: _legacy(data=SIX[:8])),
    ("legacy_count", "a legacy storage of another count", "storage", "",
     lambda: _legacy(count=1 << 40)),
    ("legacy_twice", "a legacy storage that is listed twice", "storage", "",
     lambda: _legacy(keys=b"](" + text("0") * 2 + b"e.")),
    ("legacy_unknown", "a legacy storage that no tensor has", "storage", "",
     lambda: _legacy(keys=b"](" + text("1") + b"e.")),
    ("legacy_trailing", "bytes behind the legacy storages", "storage", "",
     lambda: _legacy(data=SIX + b"hidden")),
    ("legacy_protocol", "a legacy checkpoint of a protocol that is none", "unsupported", "",
     lambda: legacy(state(), b"", b"").replace(number(1001), number(1002))),
    ("nothing_at_all", "no bytes", "not-a-zip", "", lambda: b""),
]  # fmt: skip


def _executed(opcodes: bytes):
    return lambda: checkpoint(state(before=opcodes + b"0"))


def _weight(opcodes: bytes):
    return lambda: checkpoint(state(weight=opcodes))


CASES = [
    *(
        case(f"pickle_{name}.ckpt", attack, "checkpoint.would-execute", rules, _executed(opcodes))
        for name, attack, rules, opcodes in _EXECUTED
    ),
    *(
        case(f"tensor_{name}.ckpt", attack, f"checkpoint.{slug}", rules, _weight(opcodes))
        for name, attack, slug, rules, opcodes in _WEIGHT_LIES
    ),
    *(
        case(f"pickle_{name}.ckpt", attack, f"checkpoint.{slug}", rules, make)
        for name, attack, slug, rules, make in _SHAPES
    ),
]
