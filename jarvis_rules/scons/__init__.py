"""The SCons face: variables, builders, aliases and the decider. Glue only."""
