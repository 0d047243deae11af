"""`python -m specdec_core` is the `specdec` command."""

from specdec_core.cli.main import main

if __name__ == "__main__":
    main()
