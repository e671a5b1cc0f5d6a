"""Shape profiles: the sizes that a pipeline asks for, as ranges or as buckets of one size each.

A range serves every size in it with one piece of code. A bucket serves its own size, so a batch is
padded to the next one; engines of buckets come out the same byte for byte, those of ranges do not.
"""

from __future__ import annotations

from collections.abc import Iterable

from jarvis_rules.engines._tensorrt_graph_tensors import GraphTensor
from jarvis_rules.engines.engine import Profile
from jarvis_rules.errors import JarvisError, UsageError
from jarvis_rules.formats.engine_inputs import EngineInput, Extent

SHAPE_PROFILES = ("dynamic", "static")


def make_profiles(
    graph: Iterable[GraphTensor], inputs: Iterable[EngineInput], mode: str
) -> tuple[Profile, ...]:
    """Return the profiles of the inputs that have a size to choose.

    `dynamic`: one, of least, typical and most sizes. `static`: one at the typical sizes, one at
    the most. JarvisError where the sizes are not those of this graph.
    """
    if mode not in SHAPE_PROFILES:
        raise UsageError(
            f"`shape_profiles` is `{mode}`",
            slug="option.invalid",
            hint=f"one of: {', '.join(SHAPE_PROFILES)}",
        )
    tensors, sizes = {one.name: one for one in graph}, {one.name: one for one in inputs}
    if tensors.keys() != sizes.keys():
        raise _contradiction(
            f"sizes are given for the inputs {_listed(sizes)}, and the graph has {_listed(tensors)}"
        )
    symbols: dict[str, tuple[str, Extent]] = {}
    for name, tensor in tensors.items():
        _check_input(tensor, sizes[name], symbols)
    dynamic = {name: sizes[name].dims for name, tensor in tensors.items() if tensor.is_dynamic}
    if not dynamic:
        return ()
    if mode == "dynamic":
        return (_profile(dynamic, "least", "typical", "most"),)
    buckets = (_profile(dynamic, *[at] * 3) for at in ("typical", "most"))
    # One where every input has one size only.
    return tuple({str(bucket): bucket for bucket in buckets}.values())


def _profile(dims: dict[str, tuple[Extent, ...]], *at: str) -> Profile:
    return {
        name: {
            bound: tuple(getattr(extent, size) for extent in extents)
            for bound, size in zip(("min", "opt", "max"), at, strict=True)
        }
        for name, extents in dims.items()
    }


def _check_input(
    tensor: GraphTensor, size: EngineInput, symbols: dict[str, tuple[str, Extent]]
) -> None:
    """Check the sizes of one input; `symbols` is what the ones before it gave each symbol."""
    if tensor.dtype != size.dtype or len(tensor.dims) != len(size.dims):
        raise _contradiction(
            f"the input `{tensor.name}` is given as {size.dtype} of {len(size.dims)} dimensions, "
            f"and the graph has {tensor.dtype} of {len(tensor.dims)}"
        )
    for axis, (dim, extent) in enumerate(zip(tensor.dims, size.dims, strict=True)):
        where = f"dimension {axis} of the input `{tensor.name}`"
        bounds = (extent.least, extent.typical, extent.most)
        if not 1 <= extent.least <= extent.typical <= extent.most:
            raise _contradiction(
                f"{where} takes least, typical and most sizes of {bounds}, which are not in order"
            )
        if isinstance(dim, int) and {*bounds} != {dim}:
            raise _contradiction(f"{where} is given as {bounds}, and the graph has {dim}")
        if isinstance(dim, str):
            other, known = symbols.setdefault(dim, (tensor.name, extent))
            if known != extent:
                raise _contradiction(
                    f"{where} is `{dim}` and is given as {bounds}, and that of `{other}` as "
                    f"{(known.least, known.typical, known.most)}"
                )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "none"


def _contradiction(message: str) -> JarvisError:
    return JarvisError(message, slug="engine.inputs", hint="build the `.jmir` again")
