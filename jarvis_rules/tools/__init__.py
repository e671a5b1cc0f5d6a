"""One program per mnemonic: `python -m jarvis_rules.tools.<name> request.json`."""
