"""Where a service listens, and until when."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

PATIENCE = 30
"""Seconds that requests which have arrived get when the service ends."""


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address, which does not listen yet: who asks too early is refused instead of kept waiting.

    Raises:
        ValueError: If the address is taken, is not this machine's, or is none.
    """
    place = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((host, port))
    except (OSError, OverflowError) as e:
        place.close()
        raise ValueError(
            f"Cannot listen on port {port} of {host!r} ({e}); pass another --port (1 to 65535; 0 takes a free one), or "
            "another --host, such as 127.0.0.1 (this machine alone) or 0.0.0.0 (every network it is in)."
        ) from None
    return place


def serve(app: FastAPI, place: socket.socket) -> None:
    """Answers requests until Ctrl-C or SIGTERM, then what has arrived; says where it is found.

    Args:
        app: What answers.
        place: See `bound`; closed at the end.

    Raises:
        SystemExit: If it cannot begin.
    """
    import uvicorn
    from uvicorn.main import STARTUP_FAILURE

    host, port = place.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host

    class Server(uvicorn.Server):
        """Tells where it is as soon as it answers."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            """Begins to listen."""
            await super().startup(sockets)
            if self.started:
                print(f"Serving on http://{address}:{port}; Ctrl-C ends it.", flush=True)

    server = Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=PATIENCE))
    with suppress(KeyboardInterrupt):  # as it was meant to end, so with status 0
        server.run([place])
        if not server.started:  # its log says why
            sys.exit(STARTUP_FAILURE)
    print("Stopped.", flush=True)
