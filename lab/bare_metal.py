"""A guest without an operating system (bare_metal/): it boots in milliseconds, also under KVM where no kernel boots, and
does nothing but what it is told.

    with BareMetal(accel="kvm", backend="memfd", cpus=2) as guest:
        guest.start_job(1, "write")        # or call, gate, compute, registers; limit=, address=, pause=
        guest.rounds(1)                    # read from its memory: also while it waits in the host
        guest.stop_job(1)
        guest.counts(1)["rounds"]          # what its serial port says
        guest.read(bare_metal.CONTROL, 8)  # its RAM, from outside

What lies where is in bare_metal/layout.h, whose constants are those of this module without their BARE_.
"""

import functools
import hashlib
import os
import pathlib
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time

from . import paths, qemu
from .errors import LabError, Skip
from .guest import BOOT_TIMEOUT, Machine, next_number

SOURCES = paths.LAB / "bare_metal"
FLAGS = ["-m64", "-O2", "-ffreestanding", "-fno-pic", "-no-pie", "-mno-red-zone", "-mgeneral-regs-only",
         "-fno-stack-protector", "-fcf-protection=none", "-fno-asynchronous-unwind-tables", "-Wall", "-Wextra", "-Werror"]
JOBS = ("write", "call", "gate", "compute", "registers")

globals().update({name: int(value, 0) for name, value in re.findall(
    r"^#define BARE_(\w+) (0x[0-9a-f]+|\d+)", (SOURCES / "layout.h").read_text(), re.M)})
# struct bare_cpu and where struct bare_control begins to have one for each CPU
_CPU_FIELDS = ("job", "rounds", "limit", "address", "pause", "allowed", "denied", "unanswered", "rung", "began", "ended",
               "changed", "result")
_CPU_SIZE, _FIRST_CPU = 128, 128


class BareMetal(Machine):
    """The guest. It takes the options of qemu.Options that are not about Linux."""

    release = "bare metal"

    def __init__(self, *, name: str | None = None, for_test: bool = True, boot_timeout: float = BOOT_TIMEOUT, **options):
        options = {"cpu": "qemu64", "memory": "64M", "cpus": 1, **options}
        self.image = build()
        super().__init__(qemu.Options(kernel="bare-metal", **options),
                         name or f"lab-bare-metal-{os.getpid()}-{next_number()}",
                         for_test=for_test, boot_timeout=boot_timeout)

    def command(self, line: str, timeout: float = 30) -> dict[str, int]:
        """Sends a command (bare_metal/guest.c lists them) to the serial port; the numbers in the answer."""
        with self._lock:
            self.console.send(line)
            answer = self.console.receive(timeout)
        if not answer.startswith("ok"):
            raise LabError(f"the guest answers {line!r} with {answer!r}")
        return _fields(answer)

    def start_job(self, cpu: int, job: str, **options: int):
        """Gives a CPU something to do; `limit` rounds, `pause` ticks between them, or until stop_job()."""
        self.command(" ".join([f"start {cpu} {job}", *(f"{name}={value}" for name, value in options.items())]))

    def stop_job(self, cpu: int):
        self.command(f"stop {cpu}")

    def counts(self, cpu: int) -> dict[str, int]:
        """What the CPU did since it was given its last job, as it says itself."""
        return self.command(f"counts {cpu}")

    def state_of(self, cpu: int) -> dict[str, int]:
        """The same from its memory: struct bare_cpu."""
        content = self.read(CONTROL + _FIRST_CPU + cpu * _CPU_SIZE, 8 * len(_CPU_FIELDS))
        return dict(zip(_CPU_FIELDS, struct.unpack(f"<{len(_CPU_FIELDS)}Q", content)))

    def rounds(self, cpu: int) -> int:
        return self.word(CONTROL + _FIRST_CPU + cpu * _CPU_SIZE + 8 * _CPU_FIELDS.index("rounds"))

    def symbol(self, name: str) -> int:
        """The address of call_site, hooked_function and so on."""
        done = subprocess.run(["nm", self.image.with_suffix(".elf")], capture_output=True, text=True, check=True)
        match = re.search(rf"^([0-9a-f]+) \w {re.escape(name)}$", done.stdout, re.M)
        if not match:
            raise LabError(f"the bare-metal guest has no {name}")
        return int(match[1], 16)

    def read(self, address: int, length: int) -> bytes:
        """Its RAM at that (guest-physical) address, with nobody's help."""
        return os.pread(self._memory, length, self._host_address + address)

    def write(self, address: int, content: bytes):
        """Waits like everybody else where writes are held."""
        os.pwrite(self._memory, content, self._host_address + address)

    def word(self, address: int) -> int:
        return int.from_bytes(self.read(address, 8), "little")

    def stop(self):
        super().stop()
        if descriptor := self.__dict__.pop("_memory", None):
            os.close(descriptor)

    @functools.cached_property
    def _memory(self) -> int:
        return os.open(f"/proc/{self.pid}/mem", os.O_RDWR | os.O_CLOEXEC)

    @functools.cached_property
    def _host_address(self) -> int:
        answer = self.hmp(f"gpa2hva {CONTROL:#x}")
        match = re.search(r" is (0x[0-9a-f]+)", answer)
        if not match:
            raise LabError(f"QEMU does not say where its guest's memory lies: {answer}")
        return int(match[1], 16) - CONTROL

    def _command(self) -> list[str]:
        return qemu.command(self.options, self.qemu, self.name, self.sockets, self.folder, ["-bios", str(self.image)])

    def _open_console(self, path: pathlib.Path) -> "_Lines":
        return _Lines(path)

    def _wait_ready(self, timeout: float):
        found = self.command("hello", timeout)["cpus"]
        if found != min(self.options.cpus, MAX_CPUS):
            raise LabError(f"it has {found} CPUs")
        self._host_address  # asked for now: later somebody else may hold the monitor


class _Lines:
    """A serial port that speaks in lines."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self.received = b""

    def close(self):
        self.socket.close()

    def send(self, line: str):
        self.socket.sendall(line.encode() + b"\n")

    def receive(self, timeout: float) -> str:
        deadline = time.monotonic() + timeout
        while b"\n" not in self.received:
            left = deadline - time.monotonic()
            if left <= 0:
                raise LabError(f"the bare-metal guest does not answer (so far {self.received!r})")
            self.socket.settimeout(left)
            try:
                part = self.socket.recv(4096)
            except TimeoutError:
                continue
            except ConnectionResetError:
                part = b""
            if not part:
                raise LabError("the bare-metal guest ended")
            self.received += part
        line, _, self.received = self.received.partition(b"\n")
        return line.decode(errors="replace").strip()


def _fields(line: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", line)}


def build() -> pathlib.Path:
    """The guest's ROM, from the cache if its sources did not change; beside it an ELF file with its symbols."""
    digest = hashlib.sha256(repr(FLAGS).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    rom = paths.cache_dir() / f"bare-metal-{digest.hexdigest()[:16]}.rom"
    with paths.locked("bare-metal"):
        if not rom.exists():
            with tempfile.TemporaryDirectory(dir=paths.cache_dir()) as folder:
                fresh = pathlib.Path(folder)
                elf = fresh / "guest.elf"
                for source in ("boot.S", "guest.c"):
                    _tool("gcc", *FLAGS, "-c", SOURCES / source, "-o", fresh / f"{source}.o")
                _tool("ld", "-nostdlib", "-z", "max-page-size=4096", "--no-warn-rwx-segments", "-T", SOURCES / "guest.ld",
                      fresh / "boot.S.o", fresh / "guest.c.o", "-o", elf)
                _tool("objcopy", "-O", "binary", elf, fresh / "guest.rom")
                os.replace(elf, rom.with_suffix(".elf"))
                os.replace(fresh / "guest.rom", rom)
    return rom


def _tool(*command):
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    except FileNotFoundError:
        raise Skip(f"{command[0]} is not installed") from None
    if done.returncode:
        raise LabError(f"cannot build the bare-metal guest:\n{done.stderr}")


def main():
    """Starts one and hands its serial port to the terminal: python3 -m lab.bare_metal [name=value of an option ...]"""
    options = dict(word.split("=", 1) for word in sys.argv[1:])
    if "cpus" in options:
        options["cpus"] = int(options["cpus"])
    with BareMetal(**options) as guest:
        print(f"QEMU's process is {guest.pid}, {guest.options.cpus} CPUs, up after {guest.boot_seconds * 1e3:.0f} ms")
        for line in sys.stdin:
            guest.console.send(line.strip())
            print(guest.console.receive(30), flush=True)


if __name__ == "__main__":
    main()
