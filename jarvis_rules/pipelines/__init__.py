"""Pipelines: one file each, exposing `PIPELINE`."""
