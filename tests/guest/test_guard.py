#!/usr/bin/env python3
"""`guard`: hooks tell of what programs do as they do it, and deny what rules forbid; the guest's memory is afterwards what it
was, its log says nothing, and whatever becomes of the monitor, the guest goes on.

$LARARIUM_QEMU is the version of QEMU, $LARARIUM_BACKEND the kind of memory, $LARARIUM_LA57 on or off.
"""

import contextlib
import json
import os
import random
import shlex
import signal
import subprocess
import tempfile
import threading
import time

import harness

from lab.attack import Attacker

MODE = shlex.split(os.environ.get("LARARIUM_GUARD", ""))  # --mode and what belongs to it, for tests that name none
KILLS = int(os.environ.get("LARARIUM_KILLS", "20"))


class Monitor:
    """`lararium guard` on a guest; its records as they come."""

    def __init__(self, guest, cache, *arguments):
        self.records, self.errors = [], tempfile.TemporaryFile("w+")
        arguments = [*arguments, *([] if "--mode" in arguments else MODE)]
        self.process = subprocess.Popen(
            [harness.BINARY, "guard", str(guest.pid), "--json", *arguments], text=True, stdout=subprocess.PIPE,
            stderr=self.errors, stdin=subprocess.DEVNULL, env={**os.environ, "LARARIUM_CACHE": cache})
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.records.append(json.loads(line))

    def wait_for(self, condition, what, timeout=30):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for record in list(self.records):
                if condition(record):
                    return record
            if self.process.poll() is not None and not self.reader.is_alive():
                break
            time.sleep(0.01)
        self.errors.seek(0)
        raise AssertionError(f"no {what} in {[r['sentence'] for r in self.records][-20:]}; {self.errors.read()}")

    def started(self):
        return self.wait_for(lambda r: r["type"] == "guard_started", "start")

    def of(self, kind):
        return [record for record in list(self.records) if record["type"] == kind]

    def end(self, sort=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(sort)
        code = self.process.wait(60)
        self.reader.join(30)
        self.process.stdout.close()
        self.errors.seek(0)
        errors = self.errors.read()
        self.errors.close()
        return code, errors


@contextlib.contextmanager
def guard(guest, cache, *arguments):
    monitor = Monitor(guest, cache, *arguments)
    try:
        monitor.started()
        yield monitor
    finally:
        if monitor.process.poll() is None:
            monitor.process.terminate()
        monitor.process.wait(60)


class GuardTest(harness.QuietGuestTest):
    OPTIONS = {"backend": os.environ.get("LARARIUM_BACKEND", "memfd"), "qemu": os.environ.get("LARARIUM_QEMU", "7.2"),
               "sandbox": True, "la57": {"on": True, "off": False}.get(os.environ.get("LARARIUM_LA57", ""))}

    def guard(self, *arguments):
        return guard(self.guest, self.cache.name, *arguments)

    def test_every_hook_is_found(self):
        with self.guard() as monitor:
            record = monitor.started()
            self.assertGreater(record["fields"]["sites"], 20)
            self.guest.check("true")
        notices = [r["sentence"] for r in monitor.of("guard_notice")]
        self.assertEqual(notices, [])

    def test_an_execution_is_told_with_who_and_what(self):
        with self.guard("--hooks", "exec") as monitor:
            self.guest.check("/bin/busybox echo one two")
            record = monitor.wait_for(lambda r: r["type"] == "exec" and r["fields"]["argv"].startswith("/bin/busybox echo one two"), "execution")
        self.assertEqual(record["fields"]["path"], "/bin/busybox")
        self.assertEqual(record["fields"]["argv"], "/bin/busybox echo one two")
        self.assertEqual(record["fields"]["verdict"], "allowed")
        self.assertEqual(record["actor"]["uid"], 0)
        self.assertIn("init (1)", record["fields"]["parents"])
        self.assertIsNotNone(record["guest_time"])

    def test_a_denied_execution_fails_and_nothing_else(self):
        self.guest.check("cp /bin/busybox /tmp/true")
        with self.guard("--hooks", "exec", "--deny", "exec path=/tmp/**") as monitor:
            code, output = self.guest.run("/tmp/true")
            self.assertEqual(code, 126)
            self.assertIn("not permitted", output)
            self.assertEqual(self.guest.run("/bin/busybox true").code, 0)
            record = monitor.wait_for(lambda r: r["fields"].get("verdict") == "denied", "denial")
            self.assertEqual(record["fields"]["path"], "/tmp/true")
        self.assertEqual(self.guest.run("/tmp/true").code, 0)

    def test_an_opening_is_denied_with_the_error_that_was_asked_for(self):
        self.guest.check("echo secret >/tmp/secret")
        with self.guard("--hooks", "open", "--deny", "open path=/tmp/secret", "--error", "EACCES"):
            code, output = self.guest.run("cat /tmp/secret")
            self.assertNotEqual(code, 0)
            self.assertIn("ermission denied", output)
            self.assertEqual(self.guest.check("cat /proc/sys/kernel/ostype").strip(), "Linux")
        self.assertEqual(self.guest.check("cat /tmp/secret").strip(), "secret")

    def test_memory_is_what_it_was(self):
        before = self._low_memory_and_text()
        with self.guard() as monitor:
            self.guest.check("ls / >/dev/null")
        code, errors = monitor.end()
        self.assertEqual((code, errors), (0, ""))
        after = self._low_memory_and_text()
        self.assertEqual([i for i in range(len(before[0])) if before[0][i] != after[0][i]][:8], [])
        self.assertEqual(before[1], after[1])

    def _low_memory_and_text(self):
        """The first MiB of memory, and the kernel's text without what the kernel itself changes while it runs: all
        calls to the hooked functions stay in it."""
        low = self._read("phys:0", 0xa0000)
        names = [line.split() for line in self.guest.check("grep -wE '_stext|_etext' /proc/kallsyms").splitlines()]
        places = {name: int(address, 16) for address, _, name in names}
        text = self._read(hex(places["_stext"]), places["_etext"] - places["_stext"])
        # Distances of calls and jumps, as jump labels and tracers do not change them.
        calls = [text[i:i + 5] for i in range(0, len(text) - 5) if text[i] == 0xe8]
        return low, hash(tuple(calls))

    def _read(self, address, size):
        with tempfile.NamedTemporaryFile() as file:
            subprocess.run([harness.BINARY, "read", str(self.guest.pid), address, str(size)], check=True, stdout=file,
                           env={**os.environ, "LARARIUM_CACHE": self.cache.name})
            file.seek(0)
            return file.read()

    def test_attacks_on_the_hooks_are_seen_and_put_back(self):
        attacker = Attacker(self.guest)
        self.addCleanup(attacker.stop)
        self.guest.check("cp /bin/busybox /tmp/true")
        # (attack, what it is about, whether something is put back)
        for attack, what, put_back in (
                ("gate_call", "the call of", True), ("gate_code", "the trampoline", True),
                ("gate_board", "the hooks' configuration", True), ("gate_answer", "the monitor's answers", True),
                ("gate_table", "the hooks' page table", True), ("gate_slot", "that no hooked call made", False),
                ("gate_abandon", "which said that there is no monitor", True)):
            with self.subTest(attack), self.guard("--hooks", "exec", "--deny", "exec path=/tmp/**") as monitor:
                attacker.on(attack)
                record = monitor.wait_for(lambda r: r["type"] == "gate_tampered" and what in r["sentence"] and not (  # noqa: B023
                    put_back and r["fields"]["expected_bytes"] == r["fields"]["found_bytes"]), attack)  # noqa: B023
                if put_back:
                    self.assertTrue(record["fields"]["put_back"], record)
                    self.assertNotEqual(record["fields"]["expected_bytes"], record["fields"]["found_bytes"])
                print(f"{attack}: {record['sentence']}; after {record['fields'].get('after_microseconds')} us, in memory "
                      f"after {record['fields'].get('in_memory_after_microseconds', '(the same)')}")
                for cpu in range(2):
                    self.assertEqual(self.guest.run(f"taskset {1 << cpu:x} /tmp/true").code, 126)
                attacker.off(attack)
                self.assertEqual(monitor.process.poll(), None)
        with self.guard("--hooks", "kexec") as monitor:
            attacker.on("gate_entry")
            record = monitor.wait_for(lambda r: r["type"] == "gate_tampered", "gate_entry")
            self.assertIn("page table entry", record["sentence"])
            self.assertTrue(record["fields"]["put_back"])
            attacker.off("gate_entry")

    def test_killed_monitors_leave_a_guest_that_goes_on(self):
        self.guest.check("(while :; do /bin/busybox true; done) >/dev/null 2>&1 & echo $! >/tmp/storm")
        try:
            for _ in range(KILLS):
                monitor = Monitor(self.guest, self.cache.name, "--hooks", "exec,open,fork,exit")
                time.sleep(random.uniform(0.0, 1.5))
                monitor.process.kill()
                monitor.process.wait()
                monitor.reader.join(30)
                monitor.process.stdout.close()
                monitor.errors.close()
                begin = time.monotonic()
                self.assertEqual(self.guest.run("echo alive", timeout=30).output.strip(), "alive")
                self.assertLess(time.monotonic() - begin, 20)
        finally:
            self.guest.run("kill $(cat /tmp/storm)")
        # The next one takes out what was left, and its own.
        with self.guard("--hooks", "exec") as monitor:
            self.guest.check("/bin/busybox true")
            monitor.wait_for(lambda r: r["type"] == "exec", "execution")
        code, errors = monitor.end()
        self.assertEqual((code, errors), (0, ""))


if __name__ == "__main__":
    harness.main()
