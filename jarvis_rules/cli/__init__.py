"""The command lines: `nemo2jarvis`, `jarvis-build`, `jarvis-deploy`, `jarvis-rules`."""
