"""Faults at every file event of every long command: `python -m tools.faults`."""
