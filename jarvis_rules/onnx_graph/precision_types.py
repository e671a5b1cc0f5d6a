"""The types of all values of a graph, and what a node's operator allows them to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from jarvis_rules.errors import IntegrityError, JarvisError
from jarvis_rules.onnx_graph.model_file import ModelFile, read_array
from jarvis_rules.onnx_graph.wire import TENSOR_TYPES, StoredConstant

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto
    from onnx.defs import OpSchema

FLOAT = TENSOR_TYPES["float32"]
# Operands from which shapes are inferred are smaller.
_MAX_OPERAND = 1 << 16


class Types:
    """Element types (numbers of TensorProto.DataType) and ranks of all values.

    Raises IntegrityError `precision.graph` where they cannot be inferred or nodes are not in
    topological order, JarvisError `precision.operator` for operators that the standard does not
    have and for those with graphs inside.
    """

    def __init__(self, model: ModelFile) -> None:
        graph = model.frame.graph
        self.opset = _opset(model.frame)
        self.constants: Mapping[str, StoredConstant] = model.constants
        self._elements: dict[str, int] = {}
        self._ranks: dict[str, int] = {}
        for node in graph.node:
            self.schema(node)
        inferred = _infer(model)
        for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
            kind = value.type.tensor_type
            if kind.elem_type:
                self._elements[value.name] = kind.elem_type
            if kind.HasField("shape"):
                self._ranks[value.name] = len(kind.shape.dim)
        for name, constant in model.constants.items():
            self._elements[name] = TENSOR_TYPES[constant.dtype]
            self._ranks[name] = len(constant.shape)
        known = {value.name for value in graph.input} | model.constants.keys()
        for node in graph.node:
            for name in filter(None, node.input):
                if name not in known:
                    raise _broken(f"{label(node)} reads `{name}`, which nothing before it gives")
            for name in filter(None, node.output):
                if name in known:
                    raise _broken(f"{label(node)} gives `{name}`, which is there already")
                if name not in self._elements:
                    raise _broken(f"the type of `{name}` from {label(node)} cannot be inferred")
                known.add(name)

    def element(self, name: str) -> int:
        """Return the element type of a value; 0 for an operand left out."""
        return self._elements[name] if name else 0

    def is_float(self, name: str) -> bool:
        """Return whether a value is float32."""
        return self.element(name) == FLOAT

    def rank(self, name: str) -> int | None:
        """Return how many axes a value has, where that is known."""
        return self._ranks.get(name)

    def is_constant(self, name: str) -> bool:
        """Return whether a value is an initialiser."""
        return name in self.constants

    def floats(self, node: NodeProto) -> list[str]:
        """Return the float32 values that a node reads and no initialiser gives."""
        return [name for name in node.input if self.is_float(name) and name not in self.constants]

    def schema(self, node: NodeProto) -> OpSchema:
        """Return what the standard says of the operator."""
        from onnx import defs

        if any(a.HasField("g") or a.graphs for a in node.attribute):
            raise _unsupported(node, "has a graph inside")
        try:
            if node.domain not in ("", "ai.onnx"):
                raise defs.SchemaError("another domain")
            return defs.get_schema(node.op_type, self.opset, "")
        except defs.SchemaError:
            what = f"is no operator of ONNX opset {self.opset}"
            raise _unsupported(node, what) from None

    def half_inputs(self, node: NodeProto, half: str) -> list[bool] | None:
        """Return which inputs of `node` become `half` with it, or None where it has no such form.

        `half` is a type of `TENSOR_TYPES`. An operand that the standard has in float32 only stays.
        """
        schema, kind = self.schema(node), f"tensor({half})"
        places: list[bool] = []
        for i, name in enumerate(node.input):
            types = schema.inputs[min(i, len(schema.inputs) - 1)].types
            if self.is_float(name) and kind not in types and types != {"tensor(float)"}:
                return None
            places.append(self.is_float(name) and kind in types)
        for i, name in enumerate(node.output):
            types = schema.outputs[min(i, len(schema.outputs) - 1)].types
            if self.is_float(name) and kind not in types:
                return None
        return places


def label(node: NodeProto) -> str:
    """Return how a message names a node."""
    name = node.name or next(iter(node.output), "")
    return f"the node `{name}` ({node.op_type})"


def _opset(frame: ModelProto) -> int:
    found = [o.version for o in frame.opset_import if o.domain in ("", "ai.onnx")]
    if len(found) != 1 or frame.functions:
        raise _broken("expected one opset of the standard domain, and no functions")
    return int(found[0])


def _infer(model: ModelFile) -> ModelProto:
    """Return the model with the types of all values; large constants are inputs of it."""
    from onnx import ModelProto, checker, helper, numpy_helper, shape_inference

    copy = ModelProto()
    copy.CopyFrom(model.frame)
    given = {value.name for value in copy.graph.input}
    for name, constant in model.constants.items():
        if name in given:
            continue
        if constant.nbytes <= _MAX_OPERAND and constant.dtype != "bfloat16":
            copy.graph.initializer.append(numpy_helper.from_array(read_array(constant), name))
        else:
            kind = TENSOR_TYPES[constant.dtype]
            copy.graph.input.append(helper.make_tensor_value_info(name, kind, constant.shape))
    try:
        return shape_inference.infer_shapes(copy, check_type=True, strict_mode=True)
    except (shape_inference.InferenceError, checker.ValidationError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise _broken(f"its types contradict each other: {reason}") from error


def _broken(message: str) -> IntegrityError:
    return IntegrityError(
        message, slug="precision.graph", hint="the file is damaged; export the model again"
    )


def _unsupported(node: NodeProto, what: str) -> JarvisError:
    return JarvisError(
        f"{label(node)} {what}: its precision cannot be changed",
        slug="precision.operator",
        hint="build the engine in fp32",
    )
