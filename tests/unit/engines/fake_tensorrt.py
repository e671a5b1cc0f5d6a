"""Stands in for `tensorrt`: its classes have what `tensorrt_api.json` lists, and nothing else.

That file is read off the published bindings (`make_tensorrt_api.py`). A name, a property, an
argument or a type of argument that they lack raises here what pybind11 raises there. The few
functions that a build calls do as little as a build needs; the "plan" is a record of what it was
asked for. `FAKE_TENSORRT_API` chooses the version, `FAKE_TENSORRT` how the build goes wrong.
"""

# ruff: noqa: ARG002, F821, N802  (names of the bindings, which are made from the file)

from __future__ import annotations

import enum
import json
import os
import signal
from pathlib import Path

API = json.loads(Path(__file__).with_name("tensorrt_api.json").read_text(encoding="utf-8"))
_API = API[os.environ.get("FAKE_TENSORRT_API", "11.4")]
_MODE = os.environ.get("FAKE_TENSORRT", "")
_PYTHON_TYPES = {
    "bool": bool,
    "buffer": (bytes, bytearray, memoryview),
    "int": (int, enum.Enum),
    "str": str,
    "typing.SupportsInt": (int, enum.Enum),
    "typing_extensions.Buffer": (bytes, bytearray, memoryview),
    "Dims": (tuple, list),
}

__version__ = _API["version"]


class _Enum(enum.Enum):
    def __int__(self):
        return self.value


def _type_of(name):
    return _PYTHON_TYPES.get(name) or globals().get(name, object)


def _bind(owner, name, overloads, given, named):
    """Return the arguments by name; TypeError, as pybind11 raises it, where none takes them."""
    for parameters in overloads:
        names = [parameter for parameter, *_ in parameters[1:]]
        bound = dict(zip(names, given, strict=False))
        if len(given) > len(names) or bound.keys() & named.keys():
            continue
        bound |= named
        required = {parameter for parameter, _, optional in parameters[1:] if not optional}
        fits = all(
            isinstance(bound[parameter], _type_of(kind))
            for parameter, kind, _ in parameters[1:]
            if parameter in bound
        )
        if fits and required <= bound.keys() <= {*names}:
            return bound
    raise TypeError(f"{owner}.{name}(): incompatible function arguments: {given} {named}")


def _method(owner, name, overloads):
    def call(self, *given, **named):
        bound = _bind(owner, name, overloads, given, named)
        return getattr(_Behaviour, f"{owner}_{name.strip('_')}")(self, **bound)

    return call


def _property(owner, name, is_writable):
    def read(self):
        return getattr(_Behaviour, f"{owner}_{name}")(self)

    def write(self, value):
        vars(self)["_state"][name] = value

    return property(read, write if is_writable else None)


def _setattr(self, name, value):
    # A class of Python's that derives from one of the bindings has attributes of its own.
    if type(self).__module__ == __name__ and name != "_state":
        member = getattr(type(self), name, None)
        if not isinstance(member, property):
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
    object.__setattr__(self, name, value)


def _new(kind, **state):
    made = kind.__new__(kind)
    vars(made)["_state"] = state
    return made


class _Behaviour:
    """What the members do that a build uses: AttributeError for those that it was not to use."""

    def ILogger_init(self):
        vars(self)["_state"] = {}

    def IProgressMonitor_init(self):
        vars(self)["_state"] = {}

    def Builder_init(self, logger):
        if _MODE == "no-driver":
            logger.log(ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        self._state = {"logger": logger}

    def Builder_create_network(self, flags=0):
        known = sum(1 << int(flag) for flag in NetworkDefinitionCreationFlag)
        assert flags & ~known == 0
        return _new(INetworkDefinition, flags=flags, inputs=[], outputs=[])

    def Builder_create_builder_config(self):
        return _new(IBuilderConfig, flags=[BuilderFlag.TF32], pools={}, profiles=[], cache=None)

    def Builder_create_optimization_profile(self):
        return _new(IOptimizationProfile, shapes={})

    def Builder_build_serialized_network(self, network, config):
        state, log = config._state, self._state["logger"].log
        monitor = state["progress_monitor"]
        assert isinstance(monitor, IProgressMonitor)
        monitor.phase_start("Building engine", None, 2)
        log(ILogger.Severity.WARNING, "a warning")
        if _MODE in {"SIGSEGV", "SIGKILL", "SIGABRT"}:
            signal.raise_signal(signal.Signals[_MODE])
        if _MODE == "exit":
            os._exit(3)
        if _MODE == "memory":
            raise MemoryError
        if _MODE == "out-of-memory":
            log(ILogger.Severity.ERROR, "Error Code 2: OutOfMemory (no memory. In x at /_src/y:1)")
            return None
        strict = BuilderFlag.ERROR_ON_TIMING_CACHE_MISS in state["flags"]
        if strict and state["cache"]._state["bytes"] == b"partial":
            log(ILogger.Severity.ERROR, "Error Code 2: Internal Error (Timing cache miss)")
            return None
        assert monitor.step_complete("Building engine", 0)
        monitor.phase_finish("Building engine")
        state["cache"]._state["bytes"] = state["cache"]._state["bytes"] or b"timings"
        plan = {
            "network": network._state["flags"],
            "flags": sorted(flag.name for flag in state["flags"]),
            "pools": state["pools"],
            "profiles": state["profiles"],
            "compatibility": state["hardware_compatibility_level"].name,
            "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        }
        return bytes.__new__(IHostMemory, json.dumps(plan).encode())

    def OnnxParser_init(self, network, logger):
        self._state = {"network": network, "errors": []}

    def OnnxParser_supports_operator(self, op_name):
        return op_name != "Unique"

    def OnnxParser_parse_from_file(self, model):
        import onnx

        if _MODE == "unparsed":
            self._state["errors"].append(_new(ParserError))
            return False
        graph = onnx.load(model).graph
        network = self._state["network"]._state
        given = [one for one in graph.input if one.name not in {w.name for w in graph.initializer}]
        network["inputs"], network["outputs"] = map(_tensors, (given, graph.output))
        return True

    def OnnxParser_num_errors(self):
        return len(self._state["errors"])

    def OnnxParser_get_error(self, index):
        return self._state["errors"][index]

    def ParserError_desc(self):
        return 'creator && "Plugin not found"'

    def ParserError_node_name(self):
        return "project"

    def ParserError_node_operator(self):
        return "MatMul"

    def INetworkDefinition_num_inputs(self):
        return len(self._state["inputs"])

    def INetworkDefinition_num_outputs(self):
        return len(self._state["outputs"])

    def INetworkDefinition_get_input(self, index):
        return self._state["inputs"][index]

    def INetworkDefinition_get_output(self, index):
        return self._state["outputs"][index]

    def ITensor_name(self):
        return self._state["name"]

    def ITensor_dtype(self):
        return self._state["dtype"]

    def ITensor_shape(self):
        return self._state["shape"]

    def IOptimizationProfile_set_shape(self, input, min, opt, max):
        self._state["shapes"][input] = [min, opt, max]

    def IBuilderConfig_add_optimization_profile(self, profile):
        if _MODE == "bad-profile":
            return -1
        self._state["profiles"].append(profile._state["shapes"])
        return len(self._state["profiles"]) - 1

    def IBuilderConfig_set_flag(self, flag):
        self._state["flags"].append(flag)

    def IBuilderConfig_clear_flag(self, flag):
        self._state["flags"].remove(flag)

    def IBuilderConfig_set_memory_pool_limit(self, pool, pool_size):
        self._state["pools"][pool.name] = pool_size

    def IBuilderConfig_create_timing_cache(self, serialized_timing_cache):
        return _new(ITimingCache, bytes=bytes(serialized_timing_cache))

    def IBuilderConfig_set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        self._state["cache"] = cache
        return cache._state["bytes"] != b"foreign"

    def IBuilderConfig_get_timing_cache(self):
        return self._state["cache"]

    def ITimingCache_serialize(self):
        return bytes.__new__(IHostMemory, self._state["bytes"])


def _tensors(values):
    names = {1: "FLOAT", 10: "HALF", 7: "INT64", 6: "INT32", 9: "BOOL"}
    return [
        _new(
            ITensor,
            name=value.name,
            dtype=DataType[names[value.type.tensor_type.elem_type]],
            shape=tuple(
                size.dim_value if size.HasField("dim_value") else -1
                for size in value.type.tensor_type.shape.dim
            ),
        )
        for value in values
    ]


def _make_class(name, described):
    members = {"__setattr__": _setattr, "__module__": __name__}
    for method, overloads in described["methods"].items():
        members[method] = _method(name, method, overloads)
    for attribute, is_writable in described["properties"].items():
        members[attribute] = _property(name, attribute, is_writable)
    # What the buffer protocol is to pybind11; it stands in no docstring.
    return type(name, (bytes,) if name == "IHostMemory" else (), members)


def _make_enum(name, members):
    return _Enum(name.rpartition(".")[2], members, module=__name__)


globals().update({name: _make_class(name, each) for name, each in _API["classes"].items()})
for _name, _members in _API["enums"].items():
    _owner, _, _last = _name.rpartition(".")
    if _owner:
        setattr(globals()[_owner], _last, _make_enum(_name, _members))
    else:
        globals()[_last] = _make_enum(_name, _members)
