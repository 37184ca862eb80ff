"""Nothing is run from the current folder: where this process imports from, without it.

A file json.py, torch.py or random.py of a stranger's folder is no library's module. Python puts
the current folder in front of the standard library for -m and -c, and for an empty part of
$PYTHONPATH. Nothing is imported here that could itself be such a file.
"""

import os
import sys


def import_paths() -> list[str]:
    """`sys.path` without relative parts, and without the current folder in front of the standard
    library.

    Behind it lie installed packages. They stay, for whoever stands in the folder of one.
    """
    library = os.path.dirname(os.__file__)
    installed = sys.path.index(library) if library in sys.path else len(sys.path)
    return [path for i, path in enumerate(sys.path) if os.path.isabs(path) and (i >= installed or not is_current_folder(path))]


def is_current_folder(path: str) -> bool:
    """Whether the path leads to the current folder, by whatever name."""
    try:
        return os.path.samefile(path, os.curdir)
    except OSError:
        return False
