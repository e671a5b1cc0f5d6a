"""Hermetic, content-hashed build rules on SCons for served NeMo speech and language models."""

__version__ = "0.1.0"
