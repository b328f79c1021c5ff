"""Ends a guest when the process that started it is gone, however it went.

The starter holds the other end of this program's standard input, and the kernel closes it with the process. QEMU's own
parent-death signal is not enough: the kernel drops it when QEMU changes its user, and it cleans nothing up.
"""

import os
import pathlib
import subprocess
import sys

if __name__ == "__main__":
    sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from lab import state  # noqa: E402


def start(folder: pathlib.Path) -> subprocess.Popen:
    """Watches this process on behalf of the guest in FOLDER."""
    return subprocess.Popen([sys.executable, __file__, folder], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                            start_new_session=True)


def main():
    folder = pathlib.Path(sys.argv[1])
    while os.read(0, 1):
        pass
    state.clean_up(folder)


if __name__ == "__main__":
    main()
