"""A GPU to build for, or several that one engine serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CPU = "cpu"


@dataclass(frozen=True, slots=True)
class GpuTarget:
    """What to build for: `cpu`, a GPU, or several GPUs as one target (`a100+l4`).

    `compute_capabilities` are sorted by number, none for `cpu`; `memory_gib` is the smallest
    GPU's; `precisions` are those that all of them compute in.
    """

    name: str
    description: str
    compute_capabilities: tuple[str, ...] = ()
    memory_gib: int | None = None
    precisions: tuple[str, ...] = ("fp32",)
    platform: str = "x86_64"
    aliases: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return what manifests say of the target."""
        return {
            "name": self.name,
            "compute_capabilities": list(self.compute_capabilities),
            "memory_gib": self.memory_gib,
            "precisions": list(self.precisions),
            "platform": self.platform,
        }

    def architectures(self) -> str:
        """Return the compute capabilities as people write them: `sm_80`, `sm_80 and sm_89`."""
        names = [f"sm_{capability.replace('.', '')}" for capability in self.compute_capabilities]
        return " and ".join(names) or CPU

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> GpuTarget:
        """Return the target of which a manifest says this."""
        return cls(
            document["name"],
            "",
            tuple(document["compute_capabilities"]),
            document["memory_gib"],
            tuple(document["precisions"]),
            document["platform"],
        )
