"""`python -m train ...` is the `prance` command, for launchers of modules, such as `accelerate launch -m train`."""

from .commands.main import main

if __name__ == "__main__":
    main()
