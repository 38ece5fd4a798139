"""Run the command line: ``python -m lcia``."""

from lcia.cli.main import main

if __name__ == "__main__":
    main()
