"""Builds the initial RAM disk that a guest runs from: busybox, the workload program, the kernel's modules, and the
programs of attacks/user, which nobody runs but who simulates an attack: the console would take a while for them."""

import hashlib
import os
import pathlib
import stat
import struct
import subprocess
import tempfile
import time

from . import apt, paths
from .errors import LabError, Skip
from .kernels import Kernel

GUEST = paths.LAB / "guest"
ATTACK_PROGRAMS = ("attack_program", "bpf_program")
ATTACKS = "lib/attacks"  # where they lie in the guest
FOLDERS = ("bin", "sbin", "dev", "etc", "lib", "lib/modules", "proc", "sys", "tmp", "run", "root", "home", "var", "mnt",
           "var/log", "usr", "usr/bin", "usr/sbin")


def build(kernel: Kernel) -> pathlib.Path:
    """The initrd for KERNEL, from the cache if none of its parts changed."""
    busybox, workload = busybox_path(), workload_path()
    attacks = [compile_program(paths.LAB / "attacks" / "user" / f"{name}.c") for name in ATTACK_PROGRAMS]
    modules = sorted(path for path in kernel.modules.rglob("*") if path.is_file())
    scripts = sorted(path for path in (GUEST / "root").rglob("*") if path.is_file())
    parts = [pathlib.Path(__file__), busybox, workload, *attacks, kernel.folder / "kernel.json", *scripts]
    file = paths.cache_dir() / "initrd" / kernel.name / f"{_digest(parts)}.cpio"
    if file.exists():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    archive = Archive()
    for folder in FOLDERS:
        archive.folder(folder)
    archive.device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    archive.file("bin/workload", workload.read_bytes(), 0o755)
    for name, program in zip(ATTACK_PROGRAMS, attacks):
        archive.file(f"{ATTACKS}/{name}", program.read_bytes(), 0o755)
    for applet in _applets(busybox):
        if applet not in ("bin/busybox", "linuxrc"):
            archive.link(applet, "/bin/busybox")
    for path in scripts:
        executable = path.read_bytes().startswith(b"#!")
        archive.file(str(path.relative_to(GUEST / "root")), path.read_bytes(), 0o755 if executable else 0o644)
    for path in modules:
        archive.file(f"lib/modules/{kernel.release}/{path.relative_to(kernel.modules)}", path.read_bytes(), 0o644)
    for old in file.parent.glob("*.cpio"):
        if time.time() - old.stat().st_mtime > 86400:  # younger ones may be of another working copy
            old.unlink(missing_ok=True)
    write_atomically(file, archive.finish())
    return file


def busybox_path() -> pathlib.Path:
    """The machine's busybox if it is a static one, else the one of the package busybox-static, downloaded."""
    for path in map(pathlib.Path, ("/usr/bin/busybox", "/bin/busybox")):
        if path.is_file() and not _needs_loader(path.read_bytes()):
            return path
    path = paths.cache_dir() / "busybox"
    with paths.locked("busybox"):
        if not path.exists():
            (package,) = apt.Root("bookworm").download("busybox-static")
            with tempfile.TemporaryDirectory(dir=path.parent) as tree:
                apt.extract(package, pathlib.Path(tree))
                (found,) = [found for found in pathlib.Path(tree).rglob("busybox")
                            if found.is_file() and found.parent.name == "bin"]
                write_atomically(path, found.read_bytes(), 0o755)
            package.unlink()
    return path


def workload_path() -> pathlib.Path:
    """The workload program, compiled if its source changed."""
    return compile_program(GUEST / "workload.c")


def compile_program(source: pathlib.Path) -> pathlib.Path:
    """A static program for guests, from the cache if SOURCE did not change."""
    path = paths.cache_dir() / f"{source.stem}-{_digest([source])}"
    with paths.locked(source.stem):
        if not path.exists():
            fresh = path.with_name(f".{path.name}")
            try:
                done = subprocess.run(["gcc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Wno-format-truncation", "-static", "-pthread", "-s",
                                       "-o", fresh, source], capture_output=True, text=True)
            except FileNotFoundError:
                raise Skip("gcc is not installed") from None
            if done.returncode:
                raise LabError(f"cannot compile {source.name}:\n{done.stderr}")
            os.replace(fresh, path)
    return path


def write_atomically(path: pathlib.Path, content: bytes, mode: int = 0o644):
    """A reader sees the old file or the new one, never half of it."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as fresh:
        fresh.write(content)
    os.chmod(fresh.name, mode)
    os.replace(fresh.name, path)


class Archive:
    """A cpio archive in the kernel's format ("newc"), written here as device nodes then need no root."""

    def __init__(self):
        self.parts = []
        self.known = set()
        self.inode = 0

    def folder(self, name: str):
        if name and name not in self.known:
            self._add(name, stat.S_IFDIR | 0o755)

    def file(self, name: str, content: bytes, mode: int):
        self._add(name, stat.S_IFREG | mode, content)

    def link(self, name: str, target: str):
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name: str, major: int, minor: int):
        self._add(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def finish(self) -> bytes:
        self._add("TRAILER!!!", 0)
        return b"".join(self.parts)

    def _add(self, name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)):
        parent = os.path.dirname(name)
        if parent not in self.known:
            self.folder(parent)
        self.known.add(name)
        self.inode += 1
        fields = (self.inode, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        for part in (header, content):
            self.parts.append(part + bytes(-len(part) % 4))


def _applets(busybox: pathlib.Path) -> list[str]:
    return subprocess.run([busybox, "--list-full"], capture_output=True, text=True, check=True).stdout.split()


def _digest(files: list[pathlib.Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _needs_loader(content: bytes) -> bool:
    """Whether the ELF program in CONTENT names a dynamic loader."""
    if content[:5] != b"\x7fELF\x02":
        return True
    table, = struct.unpack_from("<Q", content, 32)
    size, count = struct.unpack_from("<HH", content, 54)
    return any(struct.unpack_from("<I", content, table + index * size)[0] == 3 for index in range(count))
