"""Where downloads and running guests are kept."""

import contextlib
import fcntl
import os
import pathlib
import tempfile

LAB = pathlib.Path(__file__).resolve().parent
SOCKET_PATH_LIMIT = 107  # sizeof(sockaddr_un.sun_path) without the final NUL


def cache_dir() -> pathlib.Path:
    """Downloads and what is built from them; safe to delete, costs a download to fill again."""
    return _folder("LARARIUM_LAB_CACHE", LAB / "cache")


def run_dir() -> pathlib.Path:
    """One folder for each running guest."""
    return _folder("LARARIUM_LAB_RUN", LAB / "run")


def socket_dir(guest_dir: pathlib.Path) -> pathlib.Path:
    """The guest's own folder, or a new short one where its path is too long for a UNIX socket."""
    if len(str(guest_dir)) + len("/control.sock") <= SOCKET_PATH_LIMIT:
        return guest_dir
    parent = os.environ.get("XDG_RUNTIME_DIR", "/tmp")
    if not os.access(parent, os.W_OK) or len(parent) > 60:
        parent = "/tmp"
    return pathlib.Path(tempfile.mkdtemp(prefix="lab-", dir=parent))


@contextlib.contextmanager
def locked(name: str):
    """Holds the lock NAME of the cache, so that two tests do not fill the same part of it at once."""
    with open(cache_dir() / f".{name.replace('/', '-')}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _folder(variable: str, default: pathlib.Path) -> pathlib.Path:
    path = pathlib.Path(os.environ.get(variable) or default).absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path
