"""`prance list`."""

from __future__ import annotations

from dataclasses import dataclass

from ..report.tables import print_registered


@dataclass(frozen=True)
class List:
    """Show the registered environments, supernets, and agents.

    For example:

        prance list
    """

    def run(self) -> None:
        """Runs the command."""
        print_registered()
