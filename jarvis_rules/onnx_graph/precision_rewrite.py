"""The nodes and constants of a graph in their new types, with casts where types meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jarvis_rules.onnx_graph.constants import ConstantStore
from jarvis_rules.onnx_graph.model_file import ModelFile
from jarvis_rules.onnx_graph.precision_linear import expand_linear
from jarvis_rules.onnx_graph.precision_plan import Plan
from jarvis_rules.onnx_graph.precision_rounding import RoundedConstant
from jarvis_rules.onnx_graph.precision_types import Types
from jarvis_rules.onnx_graph.wire import TENSOR_TYPES, StoredConstant

if TYPE_CHECKING:
    from onnx import NodeProto

_SUFFIXES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


class Rewriter:
    """Rewrites one model by a plan; a value exists in each type at most once.

    A value is called as before in the type that it is computed in, in the other it has the suffix
    `.fp16`, `.bf16` or `.fp32`; so have constants in 16 bits. A graph output stays float32: where
    it is computed in 16 bits, it is that form which has the suffix.
    """

    def __init__(self, model: ModelFile, types: Types, plan: Plan, half: str) -> None:
        graph = model.frame.graph
        self.casts = 0
        self.rounded: dict[str, RoundedConstant] = {}
        """By the name of the constant that was rounded, in the order of use."""
        self._model = model
        self._types = types
        self._plan = plan
        self._half = half
        self._outputs = {value.name for value in graph.output}
        self._taken = {name for node in graph.node for name in (node.name, *node.output)}
        self._taken |= {value.name for value in graph.input} | model.constants.keys()
        self._nodes: list[NodeProto] = []
        self._forms = {(value.name, "float32"): value.name for value in graph.input}
        # New constants stand behind the one that they are made of.
        self._made: dict[str, dict[str, StoredConstant]] = {}
        self._store = ConstantStore()

    def rewrite(self) -> ModelFile:
        """Return the new model."""
        from onnx import ModelProto

        for i, old in enumerate(self._model.frame.graph.node):
            places = self._plan.half.get(i, [])
            node = type(old)()
            node.CopyFrom(old)
            for j, name in enumerate(old.input):
                if self._types.is_float(name):
                    node.input[j] = self._read(name, j < len(places) and places[j])
            if i in self._plan.half:
                self._append_half(node)
                continue
            self._forms |= {(name, "float32"): name for name in old.output}
            if i in self._plan.convolved:
                self._append_convolution(old, node.input)
            else:
                self._nodes.append(node)
        frame = ModelProto()
        frame.CopyFrom(self._model.frame)
        del frame.graph.node[:]
        frame.graph.node.extend(self._nodes)
        for value in frame.graph.value_info:
            if self._forms.get((value.name, self._half)) == value.name:
                value.type.tensor_type.elem_type = TENSOR_TYPES[self._half]
        return ModelFile(frame, self._constants())

    def _read(self, name: str, is_half: bool) -> str:
        """Return what the value is called in the type that is wanted, which it gets if need be."""
        wanted = self._half if is_half else "float32"
        constant = self._model.constants.get(name)
        if (name, wanted) not in self._forms and constant is not None:
            if is_half:
                rounded = RoundedConstant(constant, self._half)
                self.rounded[name] = rounded
                self._forms[name, wanted] = self._add_constant(name, _SUFFIXES[wanted], rounded)
            else:
                self._forms[name, wanted] = name
        elif (name, wanted) not in self._forms:
            source = self._forms[name, "float32" if is_half else self._half]
            form = self._fresh(f"{name}.{_SUFFIXES[wanted]}")
            self._cast(source, form, form, wanted)
            self._forms[name, wanted] = form
        return self._forms[name, wanted]

    def _append_half(self, node: NodeProto) -> None:
        casts = []
        for j, name in enumerate(node.output):
            if not self._types.is_float(name):
                continue
            form = name
            if name in self._outputs:
                form = node.output[j] = self._fresh(f"{name}.{_SUFFIXES[self._half]}")
                self._forms[name, "float32"] = name
                casts.append((form, name, self._fresh(f"{name}.fp32")))
            self._forms[name, self._half] = form
            for attribute in node.attribute:
                if node.op_type == "Cast" and attribute.name == "to":
                    attribute.i = TENSOR_TYPES[self._half]
        self._nodes.append(node)
        for source, target, label in casts:
            self._cast(source, target, label, "float32")

    def _append_convolution(self, node: NodeProto, inputs: Sequence[str]) -> None:
        nodes, arrays = expand_linear(node, inputs, self._types, self._fresh)
        self._nodes += nodes
        weight = next(name for name in reversed(node.input[:2]) if self._types.is_constant(name))
        for name, array in arrays.items():
            self._made.setdefault(weight, {})[name] = self._store.add(array)[0]

    def _cast(self, source: str, target: str, label: str, dtype: str) -> None:
        from onnx import helper

        self.casts += 1
        to = TENSOR_TYPES[dtype]
        self._nodes.append(helper.make_node("Cast", [source], [target], name=label, to=to))

    def _add_constant(self, origin: str, suffix: str, constant: StoredConstant) -> str:
        name = self._fresh(f"{origin}.{suffix}")
        self._made.setdefault(origin, {})[name] = constant
        return name

    def _fresh(self, name: str) -> str:
        """Return `name`, or that with a number where it is taken, and take it."""
        found, number = name, 0
        while found in self._taken:
            number += 1
            found = f"{name}.{number}"
        self._taken.add(found)
        return found

    def _constants(self) -> dict[str, StoredConstant]:
        """Return the constants that are used, in the order of those that they are made of."""
        graph = self._model.frame.graph
        used = {name for node in self._nodes for name in node.input} | self._outputs
        used |= {value.name for value in graph.input}
        found: dict[str, StoredConstant] = {}
        for name, constant in self._model.constants.items():
            if name in used:
                found[name] = constant
            found.update(self._made.get(name, {}))
        return found
