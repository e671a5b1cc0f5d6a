"""What a TensorRT compiler says, as one message: its interface itself only returns None."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from jarvis_rules.errors import JarvisError

REPORT = "the exporter made what this compiler cannot take: report the model's family"
ELSEWHERE = "ENGINE=onnxruntime may take it; report the model's family"

# `IBuilder::build…: Error Code 4: API Usage Error (TEXT In validate at /_src/…:12)`
_FRAMED = re.compile(r"Error Code \d+: [^(\n]*\((?P<text>.+?)\.? In \S+ at /", re.DOTALL)
_ASSERTION = re.compile(r"^(\[[\w.]+:\d+: \w+\] |Assertion failed: .*?: |Invalid Node - .*\n)")
# Follows many errors on a machine without a driver.
_NO_DRIVER = "cudaError 35"
_LIMIT = 3


def parser_error(compiler: str, errors: Iterable[Any]) -> JarvisError:
    """Return the error for what an `OnnxParser` refused: the first node, and why."""
    error = next(iter(errors), None)
    if error is None:
        return _refused(f"{compiler} cannot parse the graph, and does not say why")
    name, operator = error.node_name(), error.node_operator()
    node = f" at node `{name}` ({operator})" if operator else ""
    text = _core(error.desc())
    if text == "false":
        text = "the node is not supported"
    return _refused(f"{compiler} cannot parse the graph{node}: {text}")


def unknown_operators(compiler: str, operators: Iterable[str]) -> JarvisError:
    """Return the error for operators that the parser does not know."""
    return JarvisError(
        f"{compiler} knows no operator {', '.join(f'`{name}`' for name in sorted(operators))}",
        slug="engine.unsupported-operator",
        hint=ELSEWHERE,
    )


def builder_error(compiler: str, lines: Iterable[str], precision: str) -> JarvisError:
    """Return the error for a network that was not built, from the ERROR lines of its log."""
    raw = list(lines)
    texts = list(dict.fromkeys(map(_core, raw)))
    texts = [text for text in texts if _NO_DRIVER not in text] or texts
    said = "; ".join(texts[:_LIMIT]) or "it does not say why"
    if re.search(r"out ?of ?memory|bad_alloc", " ".join(raw), re.IGNORECASE):
        return JarvisError(
            f"there is not enough memory for {compiler}: {said}",
            slug="engine.memory",
            hint="run fewer at once (`scons -j1`), or on a machine with more",
        )
    if "GEMM is not supported" in said:
        return JarvisError(
            f"{compiler} cannot compile the graph in {precision}: {said}",
            slug="precision.unsupported",
            hint="PRECISION=fp16: this GPU computes matrix products in half precision only"
            if precision == "fp32"
            else ELSEWHERE,
        )
    if "timing cache" in said.lower():
        return JarvisError(
            f"{compiler} cannot build from the timing cache: {said}",
            slug="engine.timing-cache",
            hint="leave the timing cache out: a new one is written beside the engine",
        )
    return _refused(f"{compiler} cannot compile the graph: {said}")


def _core(text: str) -> str:
    """Return what a message says, without the places in the compiler's source."""
    found = _FRAMED.search(text)
    if found and _NO_DRIVER not in found["text"]:
        text = found["text"]
    return " ".join(_ASSERTION.sub("", text.strip()).split())


def _refused(message: str) -> JarvisError:
    return JarvisError(
        message,
        slug="engine.compiler-refused",
        hint=ELSEWHERE,
    )
