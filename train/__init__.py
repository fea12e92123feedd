"""Training, evaluation and the `prance` command."""
