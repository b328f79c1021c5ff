"""Borrows huge pages from the host for one guest, and gives them back."""

import fcntl
import os
import pathlib
import subprocess

from .errors import Skip

COUNT = pathlib.Path("/proc/sys/vm/nr_hugepages")


def page_size() -> int:
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Hugepagesize:"):
            return int(line.split()[1]) << 10
    raise Skip("this kernel has no huge pages")


def borrow(folder: pathlib.Path, length: int) -> int:
    """Reserves pages for LENGTH bytes, mounts a hugetlbfs in FOLDER; the number of pages that were added."""
    added = -(-length // page_size())
    if os.geteuid() != 0:
        raise Skip("reserving huge pages needs root")
    before = _change(added)
    if int(COUNT.read_text()) < before + added:
        _change(-(int(COUNT.read_text()) - before))
        raise Skip(f"the host cannot reserve {added} huge pages; its memory is used up or fragmented")
    target = folder / "hugepages"
    target.mkdir()
    done = subprocess.run(["mount", "-t", "hugetlbfs", "-o", "mode=0777", "hugetlbfs", target], capture_output=True,
                          text=True)
    if done.returncode:
        _change(-added)
        raise Skip(f"cannot mount a hugetlbfs: {done.stderr.strip()}")
    return added


def release(folder: pathlib.Path, added: int):
    """Undoes borrow(); harmless where it is undone already."""
    target = folder / "hugepages"
    if target.is_mount():
        # Others look into every hugetlbfs (libvirtd does); they shall not keep this one.
        if subprocess.run(["umount", target], capture_output=True).returncode:
            subprocess.run(["umount", "--lazy", target], capture_output=True)
        if not target.is_mount():
            target.rmdir()
            _change(-added)


def _change(difference: int) -> int:
    """Changes the number of reserved pages by DIFFERENCE, and returns what it was."""
    with open(COUNT, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # several guests may do this at once
        before = int(file.read())
        file.seek(0)
        file.write(f"{max(before + difference, 0)}\n")
    return before
