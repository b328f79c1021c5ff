"""What tests on a guest without an operating system share: one guest for each way to run it, and the program that works on it
from outside."""

import contextlib
import json
import os
import re
import subprocess
import time
import unittest

import harness

from lab.bare_metal import BareMetal
from lab.errors import Skip

KILLS = int(os.environ.get("LARARIUM_KILLS", "10"))


def wait_until(condition, limit=30):
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit} s")
        time.sleep(0.0005)


class Monitor:
    """One of the programs that work on a guest, PROGRAM being bare_monitor or bare_hook."""

    def __init__(self, program, guest, *arguments, ready=True):
        self.program = program
        self.process = subprocess.Popen([harness.BINARY.parent / program, str(guest.pid), *map(str, arguments)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if ready and self.line() != "protected":
            raise AssertionError(f"{self.program}: {self.process.communicate()[1]}")

    def line(self):
        return self.process.stdout.readline().strip()

    def fault(self):
        """The next fault of one that was started with --ask."""
        return {name: int(value) for name, value in re.findall(r"(\w+)=(-?\d+)", self.line())}

    def go_on(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self):
        self.process.terminate()
        output, errors = self.process.communicate(timeout=30)
        if self.process.returncode:
            raise AssertionError(f"{self.program}: {errors}")
        return json.loads(output.splitlines()[-1])

    def kill(self):
        self.process.kill()
        self.process.communicate(timeout=30)


class BareGuestTest(unittest.TestCase):
    BACKENDS = ("memfd", "file:/dev/shm", "hugetlbfs", "anon")

    @staticmethod
    def name(guest):
        return f"{guest.options.accel} {guest.options.qemu} {guest.options.backend}"

    @contextlib.contextmanager
    def guest(self, accel, version, backend):
        """Two CPUs, QEMU without rights behind its seccomp filter."""
        with BareMetal(accel=accel, qemu=version, backend=backend, cpus=2, sandbox=True, run_as="nobody") as guest:
            yield guest
            self.assertTrue(guest.alive())
            guest.counts(0)  # it answers

    @classmethod
    def combinations(cls):
        """Of KVM or TCG, QEMU and memory: all, or each of them at least once."""
        if os.environ.get("LARARIUM_WHOLE"):
            return [(accel, version, backend) for accel in ("kvm", "tcg") for version in ("7.2", "10.0")
                    for backend in cls.BACKENDS]
        return [*(("kvm", "7.2", backend) for backend in cls.BACKENDS), ("kvm", "10.0", "memfd"),
                ("tcg", "7.2", "memfd"), ("tcg", "10.0", "anon")]

    def on_each(self, check):
        for combination in self.combinations():
            with self.subTest(" ".join(combination)):
                try:
                    with self.guest(*combination) as guest:
                        check(guest)
                except Skip as error:
                    print(f"not on {' '.join(combination)}: {error}")

    def assert_goes_on(self, guest, limit=0.1):
        """Within LIMIT seconds nobody waits in the host any more, and both CPUs' counts rise. That a thread of QEMU's could
        run and this machine has no processor for it does not count. The seconds until the counts rose."""
        seen, began = [guest.rounds(cpu) for cpu in (0, 1)], time.monotonic()
        while any(guest.rounds(cpu) == seen[cpu] for cpu in (0, 1)):
            took = time.monotonic() - began
            if took > limit:
                self.assertEqual(self.held(guest), [], "held by nobody")
            self.assertLess(took, 30, "the guest hangs")
            time.sleep(0.0005)
        return time.monotonic() - began

    @staticmethod
    def held(guest):
        """QEMU's threads that wait because of a write."""
        threads = []
        for thread in os.listdir(f"/proc/{guest.pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{guest.pid}/task/{thread}/wchan") as file:
                if "userfault" in file.read():
                    threads.append(thread)
        return threads
