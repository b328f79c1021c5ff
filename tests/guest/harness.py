"""What every guest test shares: a booted guest, Lararium run against it from outside, and skipping with a reason.

A test program takes its kernel from $LARARIUM_KERNEL and Lararium's binary from $LARARIUM_BIN, and can be run by hand:

    LARARIUM_KERNEL=6.12-cloud tests/guest/test_process_views.py

Exit codes: 0 all passed, 1 something failed, 77 it cannot run on this machine (the reason is printed).
"""

import contextlib
import datetime
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lab import qemu  # noqa: E402
from lab.errors import Skip  # noqa: E402
from lab.guest import Guest  # noqa: E402

KERNEL = os.environ.get("LARARIUM_KERNEL", "6.1-cloud")
BINARY = pathlib.Path(os.environ.get("LARARIUM_BIN", ROOT / "build/bin/lararium"))
SKIPPED = 77


class LarariumError(AssertionError):
    """Lararium ended with an error. `code` is its exit code."""

    def __init__(self, arguments, completed):
        self.code, self.stderr = completed.returncode, completed.stderr
        super().__init__(f"lararium {shlex.join(map(str, arguments))} ended with {completed.returncode}: "
                         f"{completed.stderr[-2000:]}")


class QemuFailed(AssertionError):
    """QEMU did not start; its own words."""


def run_lararium(*arguments, timeout=60, cache=None, check=True):
    """Runs Lararium and gives the completed process, with text output."""
    environment = {**os.environ, "NO_COLOR": "1"}
    if cache:
        environment["LARARIUM_CACHE"] = str(cache)
    completed = subprocess.run([BINARY, *map(str, arguments)], capture_output=True, text=True, timeout=timeout,
                               errors="surrogateescape", env=environment, stdin=subprocess.DEVNULL)
    if check and completed.returncode:
        raise LarariumError(arguments, completed)
    return completed


@contextlib.contextmanager
def bare_qemu(*arguments, memory="64M", machine="q35", accel="tcg", version="7.2", monitor=True):
    """A VM that boots nothing: it stays in its firmware. Gives the process, with `qmp`, its monitor's path."""
    with tempfile.TemporaryDirectory(prefix="lararium-qemu-", ignore_cleanup_errors=True) as folder:
        found = qemu.find(version)
        firmware = [word for path in found.firmware for word in ("-L", path)]
        path = pathlib.Path(folder, "qmp.sock")
        line = [found.binary, *firmware, "-machine", machine, "-accel", accel, "-m", memory, "-display", "none", "-nic",
                "none", "-serial", "none", "-monitor", "none"]
        line += arguments
        if monitor:  # QEMU makes the sockets in this order: with the last, all are there
            line += ["-qmp", f"unix:{path},server=on,wait=off"]
        process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                   env={**os.environ, **found.environment})
        process.qmp = path if monitor else None
        try:
            deadline = time.monotonic() + 30
            while monitor and not path.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise QemuFailed(process.stderr.read() if process.poll() is not None else "it does not get ready")
                time.sleep(0.02)
            yield process
        finally:
            process.kill()
            process.wait()
            process.stderr.close()


def bytes_of(text):
    """The bytes of a guest's string: JSON shows a byte 0xNN that is not UTF-8 as U+10F7NN (docs/json.md)."""
    return b"".join(bytes([ord(c) & 0xff]) if 0x10f700 <= ord(c) <= 0x10f7ff else c.encode() for c in text)


def seconds_of(time_text):
    """Seconds since 1970 of a time as JSON shows it, "2026-01-02T03:04:05.678Z"."""
    return datetime.datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", time_text.replace("Z", "+00:00"))).timestamp()


def open_files(pid):
    """What a process has open, without sockets: those of QEMU's monitors come and go."""
    names = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            names.append(os.readlink(f"/proc/{pid}/fd/{number}"))
    return sorted(name for name in names if not name.startswith("socket:"))


class GuestTest(unittest.TestCase):
    """One guest for all tests of a class; OPTIONS are lab.qemu.Options fields."""

    OPTIONS: dict = {"backend": "memfd"}

    @classmethod
    def setUpClass(cls):
        cls.cache = tempfile.TemporaryDirectory(prefix="lararium-cache-")
        cls.addClassCleanup(cls.cache.cleanup)
        cls.guest = Guest(**{"kernel": KERNEL, **cls.OPTIONS})
        cls.addClassCleanup(cls.guest.stop)

    def lararium(self, command, *arguments, **options):
        """Text output of a command on the guest."""
        return run_lararium(command, self.guest.pid, *arguments, cache=self.cache.name, **options).stdout

    def json(self, command, *arguments, **options):
        """The document that a command prints with --json."""
        return json.loads(self.lararium(command, *arguments, "--json", **options))

    def items(self, command, *arguments, **options):
        return self.json(command, *arguments, **options)["items"]


class QuietGuestTest(GuestTest):
    """Each test leaves nothing in the guest's kernel log that tells of trouble."""

    def setUp(self):
        self.log_before = int(self.guest.check("dmesg | wc -l"))

    def tearDown(self):
        log = self.guest.check(f"dmesg | tail -n +{self.log_before + 1}")
        self.assertNotRegex(log, r"BUG|Oops|WARNING|stall|lockup|hung|general protection|unable to handle")


def main():
    """unittest.main() that ends with 77 where the machine cannot run guests."""
    if not BINARY.exists():
        print(f"cannot run: {BINARY} is not built")
        sys.exit(SKIPPED)
    program = unittest.main(module="__main__", exit=False, verbosity=2, testRunner=_runner())
    result = program.result
    if result.wasSuccessful() and result.cannot_run and result.testsRun == 0:
        print(f"cannot run: {result.cannot_run}")
        sys.exit(SKIPPED)
    sys.exit(0 if result.wasSuccessful() else 1)


class _Result(unittest.TextTestResult):
    """Takes the lab's Skip, raised while a guest is set up, for what it says."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.cannot_run = None

    def addError(self, test, error):
        if issubclass(error[0], Skip):
            self.cannot_run = str(error[1])
            self.addSkip(test, str(error[1]))
        else:
            super().addError(test, error)


def _runner():
    return unittest.TextTestRunner(stream=sys.stdout, resultclass=_Result, verbosity=2)
