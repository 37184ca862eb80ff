"""`python -m dualprop`: the command line, as `dualprop` runs it."""

from dualprop.cli import main

if __name__ == "__main__":
    main()
