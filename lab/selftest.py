#!/usr/bin/env python3
"""Boots one guest and checks what every test relies on. Exits with 77 and a reason where it cannot run."""

import os
import pathlib
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from lab import initrd, kernels, qemu, state  # noqa: E402
from lab.errors import LabError, Skip  # noqa: E402
from lab.guest import Guest  # noqa: E402

KERNEL = os.environ.get("LARARIUM_LAB_KERNEL", "6.1-cloud")
SKIPPED = 77


class GuestTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.guest = Guest(KERNEL, backend="memfd")
        cls.addClassCleanup(cls.guest.stop)

    def test_runs_commands(self):
        self.assertEqual(self.guest.run("uname -r"), (0, f"{self.guest.kernel.release}\n"))
        self.assertEqual(self.guest.run("echo out; echo err >&2; exit 3"), (3, "out\nerr\n"))
        self.assertEqual(self.guest.run("printf 'no newline'").output, "no newline")

    def test_keeps_odd_commands_and_output(self):
        self.assertEqual(self.guest.run("echo \"a  b\" 'c\"d' '\u00e9'\necho $((1+1))").output, "a  b c\"d \u00e9\n2\n")
        self.assertEqual(self.guest.run_bytes(r"printf '\r\n\377\000\001\002\r'")[1], b"\r\n\xff\0\1\2\r")
        words = " ".join(str(number) for number in range(3000))
        self.assertEqual(self.guest.run(f"echo {words}").output, words + "\n")

    def test_takes_big_output(self):
        self.assertEqual(self.guest.run("seq 20000").output, "".join(f"{number}\n" for number in range(1, 20001)))

    def test_copies_files_both_ways(self):
        content = os.urandom(150_000)
        self.guest.put(content, "/tmp/file with space", mode=0o600)
        self.assertEqual(self.guest.get("/tmp/file with space"), content)
        self.guest.put(b"", "/tmp/empty")
        self.assertEqual(self.guest.get("/tmp/empty"), b"")
        with self.assertRaises(LabError):
            self.guest.get("/tmp/absent")

    def test_goes_on_after_a_command_that_does_not_end(self):
        with self.assertRaises(TimeoutError):
            self.guest.run("sleep 1000", timeout=2)
        self.assertEqual(self.guest.run("echo on").output, "on\n")

    def test_starts_programs(self):
        job = self.guest.start("workload tcp 4 8080")
        self.assertEqual(job.ready["pid"], str(job.pid))
        self.assertIn(":8080", self.guest.check("netstat -ltn"))
        job.stop()
        self.assertFalse(job.alive())
        with self.assertRaises(LabError):
            self.guest.start("workload nonsense")

    def test_monitor(self):
        self.guest.qmp("stop")
        self.assertEqual(self.guest.qmp("query-status")["status"], "paused")
        self.guest.qmp("cont")
        self.assertIn("running", self.guest.hmp("info status"))

    def test_another_process_can_use_it(self):
        self.guest.console.close()
        self.guest.console = None
        done = subprocess.run([ROOT / "lab" / "lab", "run", self.guest.name, "--", "echo seen; exit 4"],
                              capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout), (4, "seen\n"), done.stderr)


class EndTest(unittest.TestCase):
    def test_a_guest_dies_with_the_process_that_started_it(self):
        program = f"from lab.guest import Guest\ng = Guest({KERNEL!r}, wait=False)\nprint(g.folder, flush=True)\ninput()"
        with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True) as process:
            folder = pathlib.Path(process.stdout.readline().strip())
            known = state.load(folder)
            self.assertTrue(state.is_alive(known))
            process.kill()
        for _ in range(200):
            if not folder.exists():
                break
            subprocess.run(["sleep", "0.1"], check=True)
        self.assertFalse(state.is_alive(known))
        self.assertFalse(folder.exists())

    def test_what_is_wrong_is_said(self):
        with self.assertRaisesRegex(LabError, "no kernel is called nonsense"):
            Guest("nonsense")
        with self.assertRaisesRegex(LabError, "nonsense"):
            Guest(KERNEL, extra=["-nonsense"])


def main():
    try:
        initrd.build(kernels.fetch(KERNEL))
        qemu.find(qemu.Options().qemu)
    except Skip as error:
        print(f"skipped: {error}")
        sys.exit(SKIPPED)
    unittest.main()


if __name__ == "__main__":
    main()
