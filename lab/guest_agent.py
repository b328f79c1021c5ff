"""QEMU's guest agent as Debian has it, for guests that have no package manager: the program and what it needs come on a
disk.

    with Guest(kernel, extra=guest_agent.options(socket, kernel)) as guest:
        guest_agent.start(guest)
"""

import os
import pathlib
import re
import subprocess
import tarfile
import tempfile

from . import apt, paths
from .errors import LabError, Skip
from .kernels import fetch

PACKAGE, PROGRAM = "qemu-guest-agent", "qemu-ga"
SUITE = "bookworm"
LIBRARIES = "lib/x86_64-linux-gnu"


def image() -> pathlib.Path:
    """An archive with the program, its libraries and their loader, from the cache if it is there."""
    path = paths.cache_dir() / "guest-agent.tar"
    with paths.locked("guest-agent"):
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                tree = pathlib.Path(folder, "tree")
                for package in apt.Root(SUITE).download_with_depends(PACKAGE, SUITE):
                    apt.extract(package, tree)
                fresh = pathlib.Path(folder, path.name)
                with tarfile.open(fresh, "w") as archive:
                    for name, file in _needed(tree).items():
                        archive.add(file.resolve(), name)
                fresh.write_bytes(fresh.read_bytes() + bytes(-fresh.stat().st_size % 512))
                os.replace(fresh, path)
    return path


def has_virtio_console(kernel) -> bool:
    """Whether the driver is part of the kernel: as a module it is not in the lab's guests."""
    return "virtio_console" in (fetch(kernel).modules / "modules.builtin").read_text()


def options(socket: pathlib.Path | str, kernel: str) -> tuple[str, ...]:
    """More of QEMU's command line: the disk, and the agent's port, whose end on the host is at SOCKET."""
    line = ("-drive", f"file={image()},format=raw,if=none,id=agent-disk,readonly=on",
            "-device", "virtio-blk-pci,drive=agent-disk",
            "-chardev", f"socket,id=agent,path={socket},server=on,wait=off")
    if has_virtio_console(kernel):
        return (*line, "-device", "virtio-serial-pci",
                "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0")
    return (*line, "-device", "isa-serial,chardev=agent")


def start(guest):
    """Runs the agent in the guest."""
    guest.check("tar xf /dev/vda -C /", timeout=120)
    kernel = guest.options.kernel
    method, port = ("virtio-serial", "/dev/vport*p1") if has_virtio_console(kernel) else ("isa-serial", "/dev/ttyS1")
    return guest.start(f"sh -c '{PROGRAM} -m {method} -p {port} -t /run & echo ready; wait'")


def _needed(tree: pathlib.Path) -> dict[str, pathlib.Path]:
    """The program and all that it is linked with, by their names in the guest."""
    libraries = {path.name: path for path in tree.rglob("*.so*") if "x86_64-linux-gnu" in path.parts}
    (program,) = tree.rglob(PROGRAM)
    found, waiting = {f"usr/sbin/{PROGRAM}": program}, [program]
    while waiting:
        shown = subprocess.run(["readelf", "-d", waiting.pop()], capture_output=True, text=True)
        if shown.returncode:
            raise Skip("readelf is needed to gather the guest agent's libraries")
        for name in re.findall(r"\(NEEDED\).*\[(.+)\]", shown.stdout):
            place = "lib64" if name.startswith("ld-linux") else LIBRARIES
            if f"{place}/{name}" not in found:
                if name not in libraries:
                    raise LabError(f"{name} is in none of the packages that {PACKAGE} needs")
                found[f"{place}/{name}"] = libraries[name]
                waiting.append(libraries[name].resolve())
    return found
