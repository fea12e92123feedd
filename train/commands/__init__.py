"""The `prance` command: one file for each of its verbs."""
