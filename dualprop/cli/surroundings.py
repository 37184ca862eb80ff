"""What surrounds the command, descriptors and variables, and must not decide what it does.

Only the program itself settles them, and no caller of `main(arguments)` from Python.
"""

import os

from dualprop.cli.outlets import Outlet, open_outlets

# What a table or a help text can be laid out in.
LEAST_WIDTH, LARGEST_WIDTH = 20, 1000


def settle() -> Outlet:
    """Settle them, before any file is opened; standard output is returned."""
    outlet = open_outlets()
    for name in ("COLUMNS", "LINES"):
        if (value := os.environ.pop(name, "")).isdecimal() and len(value) <= len(str(LARGEST_WIDTH)):
            os.environ[name] = str(min(max(int(value), LEAST_WIDTH), LARGEST_WIDTH))
    # Pictures are drawn without a display, and matplotlib refuses a name that it does not know.
    os.environ.pop("MPLBACKEND", None)
    if os.path.lexists("matplotlibrc"):
        _import_matplotlib_elsewhere()
    return outlet


def _import_matplotlib_elsewhere() -> None:
    """matplotlib reads the current folder's matplotlibrc, which may have it start LaTeX."""
    here = os.open(os.curdir, os.O_RDONLY)
    try:
        os.chdir(os.sep)
        import matplotlib  # noqa: F401
    finally:
        os.fchdir(here)
        os.close(here)
