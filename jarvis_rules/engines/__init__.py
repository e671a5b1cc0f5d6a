"""Engine toolchains: one file each, exposing `ENGINE`."""
