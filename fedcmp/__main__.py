"""``python -m fedcmp``: the command line where no script is on the path."""

from fedcmp.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
