"""Rules: analysis only. Each declares one action; none opens a file of the user's."""
