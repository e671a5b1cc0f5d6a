"""The tool `jarvis` for SConstruct files of this checkout; elsewhere pass `jarvis_rules.tool`."""

from jarvis_rules.scons.tool import exists, generate

__all__ = ["exists", "generate"]
