"""Executes notebooks and keeps their outputs: `python -m tests.notebooks [NAME ...]`.

Run it after a change to a notebook, or when a test says that outputs are out of date. Then look at
what changed, and commit it.
"""

import argparse
import sys

from tests.notebooks.executing import NAMES, complaints, execute, read, write


def main():
    """Refreshes the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m tests.notebooks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    names = parser.parse_args().names or NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"there is no notebook {min(unknown)!r}; there are {', '.join(NAMES)}.")
    for name in names:
        print(f"{name} ...", flush=True)
        notebook = execute(read(name))
        if found := complaints(notebook):
            sys.exit("\n".join([f"{name} is as it was. These outputs must not be kept:", *found]))
        write(name, notebook)


if __name__ == "__main__":
    main()
