#!/usr/bin/env python3
"""`guard --protect`: hooks, and the kernel's code and read-only data, held by one monitor; and `guard` and `protect` as two.

$LARARIUM_QEMU is the version of QEMU, $LARARIUM_BACKEND the kind of memory, $LARARIUM_LA57 on or off.
"""

import time

import harness
import test_guard
import test_protect

from lab.attack import Attacker

DENY = ("--hooks", "exec,open", "--deny", "exec path=/tmp/**")


class GuardAndProtect(harness.QuietGuestTest):
    OPTIONS = {**test_guard.GuardTest.OPTIONS, "modules": ["dummy"]}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.attacker = Attacker(cls.guest)
        cls.guest.check("cp /bin/busybox /tmp/true")

    def assert_denied(self):
        for cpu in range(self.guest.options.cpus):
            self.assertEqual(self.guest.run(f"taskset {1 << cpu:x} /tmp/true").code, 126)
        self.assertEqual(self.guest.run("/bin/busybox true").code, 0)

    def attack(self, monitor, technique, kind, fits, argument=""):
        known = len(monitor.records)
        self.attacker.on(technique, argument)
        record = monitor.wait_for(lambda r: r not in monitor.records[:known] and r["type"] == kind and fits(r), technique)
        self.attacker.off(technique)
        return record

    def test_one_monitor(self):
        with test_guard.guard(self.guest, self.cache.name, *DENY, "--protect", "revert") as monitor:
            started = monitor.wait_for(lambda r: r["type"] == "protection_started", "protection")
            self.assertGreater(started["fields"]["pages"], 1000)
            self.assert_denied()
            # What the kernel itself changes.
            self.guest.check("cd /sys/kernel/tracing; echo 'vfs_*' >set_ftrace_filter; echo function >current_tracer; ls / >/dev/null; "
                             "echo nop >current_tracer; echo >set_ftrace_filter; rmmod dummy; modprobe dummy")
            time.sleep(1.5)
            self.assertEqual([r["sentence"] for r in monitor.records if r["finding"]], [])
            # What it does not.
            for technique, memory in (("rodata_byte", "read-only data"), ("text_byte", "kernel text"), ("idt_entry", "IDT")):
                with self.subTest(technique):
                    record = self.attack(monitor, technique, "memory_written", lambda r: r["fields"]["memory"] == memory,  # noqa: B023
                                         "orphan" if technique == "idt_entry" else "")
                    self.assertEqual(record["fields"]["action"], "reverted")
                    self.assert_denied()
            for technique, what in (("gate_call", "the call of"), ("gate_board", "the hooks' configuration"),
                                    ("gate_table", "the hooks' page table")):
                with self.subTest(technique):
                    record = self.attack(monitor, technique, "gate_tampered", lambda r: what in r["sentence"])  # noqa: B023
                    self.assertTrue(record["fields"]["put_back"])
                    self.assert_denied()
            self.assertIsNone(monitor.process.poll())
        code, errors = monitor.end()
        self.assertEqual((code, errors), (20, ""))
        (ended,) = monitor.of("guard_ended")
        self.assertGreaterEqual(ended["fields"]["reverted_writes"], 3)
        self.assertEqual(self.guest.run("/tmp/true").code, 0)
        # Nothing is left of it, and it can be done again.
        with test_guard.guard(self.guest, self.cache.name, *DENY, "--protect", "report") as monitor:
            self.assertFalse(monitor.started()["fields"]["adopted"])
            self.assert_denied()
        self.assertEqual(monitor.end(), (0, ""))

    def test_killed(self):
        for _ in range(5):
            with test_guard.guard(self.guest, self.cache.name, *DENY, "--protect", "report") as monitor:
                self.assert_denied()
                monitor.process.kill()
            self.assertEqual(self.guest.run("/tmp/true").code, 0)
        with test_guard.guard(self.guest, self.cache.name, *DENY, "--protect", "report") as monitor:
            self.assertTrue(monitor.started()["fields"]["adopted"])
            self.assert_denied()
        self.assertEqual(monitor.end(), (0, ""))
        self.assertEqual(self.guest.run("/tmp/true").code, 0)

    def protect(self):
        monitor = test_protect.Monitor(self.guest, self.cache.name)
        self.addCleanup(lambda: monitor.process.poll() is None and monitor.end())
        monitor.wait_for(lambda r: r["type"] == "protection_started", "start")
        return monitor

    def test_two_monitors(self):
        """Each holds its own pages. For `protect` hooks that are there are what is to be there, and those that come are not."""
        with test_guard.guard(self.guest, self.cache.name, *DENY) as monitor:
            protect = self.protect()
            self.assert_denied()
            time.sleep(0.5)
            self.assertEqual([r["sentence"] for r in protect.findings() + monitor.of("gate_tampered")], [])
            self.assertEqual(protect.end(), 0)
            self.assert_denied()
        self.assertEqual(monitor.end(), (0, ""))
        protect = self.protect()
        with test_guard.guard(self.guest, self.cache.name, *DENY):
            protect.wait_for(lambda r: r["finding"] and r["fields"]["memory"] == "kernel text", "hooks that come")
            self.assert_denied()
        self.assertEqual(protect.end(), 20)

    def test_what_one_holds_another_cannot(self):
        with test_guard.guard(self.guest, self.cache.name, *DENY, "--protect", "report"):
            completed = harness.run_lararium("protect", self.guest.pid, "--for", "1s", cache=self.cache.name, check=False)
            self.assertIn("another userfaultfd holds the VM's memory", completed.stderr)
            self.assert_denied()


if __name__ == "__main__":
    harness.main()
