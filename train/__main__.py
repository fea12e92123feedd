"""`python -m train` is `prance`."""

import signal
import sys


def run() -> None:
    """Entry point: Ctrl-C while this package is imported is as quiet as later."""
    try:
        from .commands.main import main
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    main()


if __name__ == "__main__":
    run()
