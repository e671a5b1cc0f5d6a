"""The core types: digests, actions and their keys, toolchains. Standard library and xxhash only."""
