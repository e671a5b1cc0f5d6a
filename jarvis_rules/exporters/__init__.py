"""Model families: one file each, exposing `EXPORTER`."""
