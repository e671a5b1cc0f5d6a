"""A GPU to build for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CPU = "cpu"


@dataclass(frozen=True, slots=True)
class GpuTarget:
    """A GPU to build for; `cpu` has neither compute capability nor memory (GiB)."""

    name: str
    description: str
    compute_capability: str | None = None
    memory_gib: int | None = None
    aliases: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return what manifests say of the target."""
        return {
            "name": self.name,
            "compute_capability": self.compute_capability,
            "memory_gib": self.memory_gib,
        }

    def properties(self) -> dict[str, str]:
        """Return the platform properties of an action that builds for this target."""
        properties = {"GPU": self.name}
        if self.compute_capability is not None:
            properties["compute-capability"] = self.compute_capability
        return properties

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> GpuTarget:
        """Return the target of which a manifest says this."""
        return cls(document["name"], "", document["compute_capability"], document["memory_gib"])
