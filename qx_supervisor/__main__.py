"""`python -m qx_supervisor`."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="qx-supervisor")
