"""Looking into checkpoints and archives that nobody trusts yet: all findings, nothing executed."""
