#!/usr/bin/env python3
"""`guard` and `protect` in storms: of processes, of hooked calls, and of writes to protected pages. The guest goes on, the
monitor's memory does not grow, also when nobody reads its records, and what is shed is counted.

$LARARIUM_SECONDS is how long each storm lasts.
"""

import json
import os
import re
import subprocess
import time

import harness
import test_guard
import test_protect

from lab.attack import Attacker

SECONDS = float(os.environ.get("LARARIUM_SECONDS", "8"))
GROWTH_KIB = 8 << 10  # what a process may grow by once it is under way: what the allocator keeps
OUTBOX = 4096         # records that wait for a reader
LONGEST_ANSWER = 20   # of the guest's shell on a busy test machine


def memory_kib(process):
    """What the process has for itself. (VmData counts the stack of a thread that comes and goes, 8 MiB.)"""
    with open(f"/proc/{process.pid}/status", encoding="utf-8") as file:
        return int(re.search(r"^RssAnon:\s+(\d+)", file.read(), re.M)[1])


class Storms(harness.QuietGuestTest):
    OPTIONS = {"backend": "memfd", "modules": ["dummy"]}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.attacker = Attacker(cls.guest)
        cls.guest.check("cp /bin/busybox /tmp/true")

    def storm(self, command):
        job = self.guest.start(f"sh -c 'echo ready; while :; do {command}; done'")
        self.addCleanup(job.stop, "KILL")
        return job

    def watch(self, process):
        """Lets the storm rage: the guest answers, and the process does not grow."""
        time.sleep(SECONDS / 4)
        begin, slowest = memory_kib(process), 0.0
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            asked = time.monotonic()
            self.assertEqual(self.guest.run("echo alive", timeout=60).output.strip(), "alive")
            slowest = max(slowest, time.monotonic() - asked)
            self.assertIsNone(process.poll())
            time.sleep(0.2)
        grown = memory_kib(process) - begin
        print(f"{self.id().split('.')[-1]}: from {begin} KiB by {grown} KiB; slowest answer {slowest:.2f} s")
        self.assertLess(grown, GROWTH_KIB)
        self.assertLess(slowest, LONGEST_ANSWER)

    # --- Hooks

    def check_events(self, commands, *arguments):
        with test_guard.guard(self.guest, self.cache.name, *arguments, "--deny", "exec path=/tmp/**") as monitor:
            jobs = [self.storm(command) for command in commands]
            self.watch(monitor.process)
            self.assertEqual(self.guest.run("/tmp/true").code, 126)
            for job in jobs:
                job.stop("KILL")
        self.assertEqual(monitor.end()[0], 0)
        (ended,) = monitor.of("guard_ended")
        told = [r for r in monitor.records if "verdict" in r["fields"]]
        self.assertGreater(len(told), 20 * SECONDS)
        self.assertEqual(len(told) + ended["fields"]["records_left_out"], ended["fields"]["events"])
        self.assertEqual(self.guest.run("/tmp/true").code, 0)

    def test_fork_storm(self):
        self.check_events(["workload storm 1000", "workload storm 1000", "workload exec 100"])

    def test_hook_storm(self):
        self.check_events(["read x </proc/self/stat"] * 3, "--hooks", "open,exec,fork,exit")

    def test_hook_storm_with_breakpoints(self):
        self.check_events(["read x </proc/self/stat"] * 2, "--hooks", "open,exec", "--mode", "breakpoint")

    def test_nobody_reads_the_records(self):
        """Standard output is a pipe that is full: the guest does not wait for it, and nothing piles up."""
        process = subprocess.Popen([harness.BINARY, "guard", str(self.guest.pid), "--json", "--deny", "exec path=/tmp/**"],
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                   env={**os.environ, "LARARIUM_CACHE": self.cache.name})
        try:
            self.assertIn("guard_started", process.stdout.readline())
            # First the pipe fills, then what waits for it.
            self.guest.check("i=0; while [ $i -lt %d ]; do read x </proc/self/stat; i=$((i+1)); done" % (2 * OUTBOX), 300)
            self.assertTrue(self.is_full(process))
            job = self.storm("read x </proc/self/stat; (:)")
            self.watch(process)
            self.assertEqual(self.guest.run("/tmp/true").code, 126)
            job.stop("KILL")
            process.terminate()
            records = [json.loads(line) for line in process.stdout]
            self.assertEqual(process.wait(60), 0)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        fields = records[-1]["fields"]
        told = sum("verdict" in record["fields"] for record in records)
        self.assertGreater(fields["records_left_out"], 0)
        self.assertEqual(told + fields["records_left_out"], fields["events"])

    @staticmethod
    def is_full(process):
        """Whether its main thread waits in a write."""
        with open(f"/proc/{process.pid}/wchan", encoding="utf-8") as file:
            return "pipe" in file.read()

    # --- Writes to what is protected

    def test_storm_on_the_hooks_pages(self):
        with test_guard.guard(self.guest, self.cache.name, "--hooks", "exec", "--deny", "exec path=/tmp/**") as monitor:
            self.attacker.on("gate_storm")
            self.watch(monitor.process)
            self.attacker.off("gate_storm")
            time.sleep(1)
            for cpu in range(self.guest.options.cpus):
                self.assertEqual(self.guest.run(f"taskset {1 << cpu:x} /tmp/true").code, 126)
        monitor.end()
        (ended,) = monitor.of("guard_ended")
        told = len(monitor.of("gate_tampered"))
        print(f"{told} told, {ended['fields']}")
        self.assertGreater(ended["fields"]["tampered"], 10)
        self.assertGreaterEqual(told + ended["fields"]["records_left_out"],
                                ended["fields"]["tampered"] + ended["fields"]["forged"])
        self.assertEqual(self.guest.run("/tmp/true").code, 0)

    def check_protect(self, *arguments):
        monitor = test_protect.Monitor(self.guest, self.cache.name, *arguments)
        try:
            monitor.wait_for(lambda record: record["type"] == "protection_started", "start")
            self.attacker.on("rodata_storm")
            self.watch(monitor.process)
        finally:
            self.attacker.off("rodata_storm")
            time.sleep(2)  # what is told and put back waits for the CPUs' registers
            code = monitor.end()
        self.assertEqual(code, 20)
        ended = monitor.records[-1][1]
        print(f"{len(monitor.findings())} told, {ended['fields']}")
        self.assertGreater(len(monitor.findings()), 5)
        self.assertTrue(self.guest.check("cat /proc/version").startswith("Linux version"))

    def test_storm_on_protected_memory(self):
        self.check_protect()

    def test_storm_on_protected_memory_that_is_put_back(self):
        self.check_protect("--on-write", "revert")


if __name__ == "__main__":
    harness.main()
