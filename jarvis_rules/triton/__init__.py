"""Triton: model configuration, ensembles, repository lint, server and client."""
