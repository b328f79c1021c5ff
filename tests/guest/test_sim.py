#!/usr/bin/env python3
"""`guard --mode sim`: the code in the guest tells what `--mode lares` tells, with no exit; it denies by itself what rules
forbid; what an intruder in the kernel does to it is seen; and whatever becomes of the monitor, the guest goes on.

$LARARIUM_SPACE=1 runs all of it with an address space of its own, $LARARIUM_RINGS=device with the rings in the memory of a
device. $LARARIUM_QEMU and $LARARIUM_BACKEND: see test_guard.py.
"""

import json
import os
import random
import re
import signal
import struct
import subprocess
import tempfile
import time
import unittest

import harness
import test_guard

from lab.attack import Attacker

SPACE = ["--address-space"] if os.environ.get("LARARIUM_SPACE") == "1" else []
DEVICE = os.environ.get("LARARIUM_RINGS") == "device"
RINGS = ["--ring-memory", "rings"] if DEVICE else []
RINGS_SIZE = 2 << 20
KILLS = int(os.environ.get("LARARIUM_KILLS", "20"))
# What the guest does, and a record that must come of it: type and fields.
ACTIONS = [
    ("/bin/busybox echo one two", "exec", {"path": "/bin/busybox", "argv": "/bin/busybox echo one two", "argc": 4}),
    ("echo 1 >/tmp/written", "open", {"path": "/tmp/written", "write": True}),
    ("mv /tmp/written /tmp/moved", "rename", {"path": "/tmp/written", "new_path": "/tmp/moved"}),
    ("rm /tmp/moved", "unlink", {"path": "/tmp/moved", "directory": False}),
    ("mkdir -p /tmp/tree/below; rmdir /tmp/tree/below", "unlink", {"path": "/tmp/tree/below", "directory": True}),
    ("mount -t tmpfs lost /tmp/tree; umount /tmp/tree", "mount",
     {"path": "/tmp/tree", "source": "lost", "filesystem": "tmpfs"}),
    ("nc -w 1 127.0.0.1 4321 </dev/null", "connect", {"address": "127.0.0.1", "port": 4321, "protocol": "tcp"}),
    ("(timeout 1 nc -l -p 8123 </dev/null)", "bind", {"port": 8123, "protocol": "tcp"}),
    ("(timeout 1 nc -l -p 8124 </dev/null)", "listen", {"port": 8124}),
    ("(timeout 1 nc -l -p 8125 </dev/null)", "accept", {"port": 8125}),
    ("modprobe dummy; rmmod dummy", "module", {"from_memory": False}),
    ("(exit 7)", "exit", {"exit_status": 7, "last_thread": True}),
]


class SimTest(test_guard.GuardTest):
    """The tests of the hooks and of their protection hold here as well."""

    OPTIONS = {**test_guard.GuardTest.OPTIONS, "extra": (
        "-object", f"memory-backend-memfd,id=rings,size={2 * RINGS_SIZE},share=on",
        "-device", "ivshmem-plain,memdev=rings") if DEVICE else ()}

    def guard(self, *arguments):
        return test_guard.guard(self.guest, self.cache.name, "--mode", "sim", *SPACE, *RINGS, *arguments)

    # Those of the base class that are about waiting for a verdict.
    test_killed_monitors_leave_a_guest_that_goes_on = None

    def test_an_execution_is_told_with_who_and_what(self):
        with self.guard("--hooks", "exec") as monitor:
            self.guest.check("/bin/busybox echo one two")
            record = monitor.wait_for(lambda r: r["type"] == "exec" and r["fields"]["argv"] == "/bin/busybox echo one two",
                                      "execution")
        self.assertEqual(record["actor"]["uid"], 0)
        self.assertGreater(record["actor"]["ppid"], 0)

    def test_it_tells_what_the_gate_tells(self):
        told = {}
        for mode in ("lares", "sim"):
            with test_guard.guard(self.guest, self.cache.name, "--mode", mode, *(SPACE + RINGS if mode == "sim" else [])) as monitor:
                for command, *_ in ACTIONS:
                    self.guest.run(command)
                last = ACTIONS[-1]
                monitor.wait_for(lambda r: r["type"] == "exit" and r["fields"]["exit_status"] == 7, last[0])
                time.sleep(0.3)
                told[mode] = list(monitor.records)
            monitor.end()
            told[mode + " end"] = monitor.of("guard_ended")[0]["fields"]
        for command, kind, fields in ACTIONS:
            for mode in ("lares", "sim"):
                with self.subTest(command, mode=mode):
                    self.assertTrue([r for r in told[mode] if r["type"] == kind and
                                     all(r["fields"].get(name) == value for name, value in fields.items())],
                                    [r["sentence"] for r in told[mode] if r["type"] == kind][-20:])
        # The same kinds of fields, whoever tells.
        for kind in {kind for _, kind, _ in ACTIONS}:
            with self.subTest(kind):
                names = [set(next(r for r in told[mode] if r["type"] == kind)["fields"]) - {
                    "wait_nanoseconds", "decided_by", "parents", "thread_id"} for mode in ("lares", "sim")]
                self.assertEqual(*names)
        end = told["sim end"]
        self.assertEqual(end["lost"], 0)
        self.assertLessEqual(end["events"] - end["seen"], 2)  # modules wait, as their hook shares a function with kexec's
        self.assertLessEqual(end["faults"], end["doorbells"] + 8)

    def test_rules_are_decided_in_the_guest(self):
        self.guest.check("cp /bin/busybox /tmp/true; chmod 755 /tmp/true")
        with self.guard("--hooks", "exec,connect,open", "--deny", "exec path=/tmp/**", "--deny", "connect port=4000-4444",
                        "--deny", "open path=/etc/shadow,/tmp/secret uid!=0", "--only", "open path=/tmp/**") as monitor:
            self.assertEqual(self.guest.run("/tmp/true").code, 126)
            self.assertEqual(self.guest.run("/bin/busybox true").code, 0)
            self.assertIn("not permitted", self.guest.run("nc -w 1 127.0.0.1 4444 </dev/null 2>&1").output)
            self.assertIn("refused", self.guest.run("nc -w 1 127.0.0.1 4445 </dev/null 2>&1").output)
            self.guest.check("echo x >/tmp/secret; cat /tmp/secret")
            monitor.wait_for(lambda r: r["type"] == "open" and r["fields"]["path"] == "/tmp/secret", "opening")
            denied = monitor.wait_for(lambda r: r["fields"].get("verdict") == "denied", "denial")
            self.assertIn("exec path=/tmp/**", denied["fields"]["decided_by"])
        monitor.end()
        self.assertEqual([r["fields"]["path"] for r in monitor.of("open") if not r["fields"]["path"].startswith("/tmp/")], [])
        end = monitor.of("guard_ended")[0]["fields"]
        self.assertEqual((end["denied"], end["events"] - end["seen"], end["faults"] - end["doorbells"]), (2, 0, 0))

    def test_what_a_rule_leaves_open_waits_for_the_monitor(self):
        self.guest.check("cp /bin/busybox /tmp/true; chmod 755 /tmp/true")
        with self.guard("--hooks", "exec,fork", "--deny", "exec argv=**forbidden**") as monitor:
            self.assertEqual(self.guest.run("/bin/busybox echo forbidden").code, 126)
            self.assertEqual(self.guest.run("/bin/busybox echo allowed").code, 0)
            record = monitor.wait_for(lambda r: r["fields"].get("verdict") == "denied", "denial")
            self.assertIn("wait_nanoseconds", record["fields"])

    def test_containers(self):
        def run_in(name):
            place = f"/sys/fs/cgroup/{name}"
            return self.guest.run(f"mkdir -p {place}; sh -c 'echo $$ >{place}/cgroup.procs; exec /bin/busybox true'").code
        first, second = "ab" * 32, "cd" * 32
        with self.guard("--hooks", "exec", "--deny", "exec container=abab*", "--deny", f"exec container={second} uid=0") as monitor:
            self.assertEqual(run_in("system.slice"), 0)
            self.assertEqual(run_in(f"system.slice/docker-{'ef' * 32}.scope"), 0)
            self.assertEqual(run_in(f"system.slice/docker-{first}.scope"), 126)
            self.assertEqual(run_in(f"kubepods/{second}"), 126)
            self.assertEqual(run_in(f"kubepods/{second}/init.scope"), 126)
            record = monitor.wait_for(lambda r: r["fields"].get("verdict") == "denied", "denial")
            self.assertEqual(record["actor"]["container_id"], first)
        with self.guard("--hooks", "exec", "--deny", "exec container=?*") as monitor:
            self.assertEqual(run_in("system.slice"), 0)
            self.assertEqual(run_in(f"kubepods/{second}"), 126)
        monitor.end()
        end = monitor.of("guard_ended")[0]["fields"]
        self.assertEqual((end["denied"], end["faults"] - end["doorbells"]), (1, 0))

    def test_descendants(self):
        shell = self.guest.start("workload sleep")
        with self.guard("--hooks", "open", "--only", f"open below={shell.pid}") as monitor:
            self.guest.check("cat /etc/passwd >/dev/null 2>&1; true")
            time.sleep(0.3)
            self.assertEqual(monitor.of("open"), [])
        shell.stop("KILL")

    def test_intruders_in_the_kernel_are_seen(self):
        attacker = Attacker(self.guest)
        self.addCleanup(attacker.stop)
        self.guest.check("cp /bin/busybox /tmp/true")
        self.guest.check("(while :; do cat /proc/uptime; done) >/dev/null 2>&1 & echo $! >/tmp/storm")
        try:
            for attack, what in (("sim_change", "ring of CPU"), ("sim_remove", "ring of CPU"), ("sim_forge", "ring of CPU"),
                                 ("sim_key", "ring of CPU"), ("sim_rule", "the rules in the guest")):
                with self.subTest(attack), self.guard("--deny", "exec path=/tmp/**") as monitor:
                    attacker.on(attack)
                    record = monitor.wait_for(lambda r: r["type"] == "gate_tampered" and what in r["sentence"], attack)  # noqa: B023
                    print(f"{attack}: {record['sentence']}")
                    attacker.off(attack)
                    # It goes on: records come, and rules hold.
                    self.assertEqual(self.guest.run("/tmp/true").code, 126)
                    time.sleep(0.5)
                    before = len(monitor.records)
                    found = len(monitor.of("gate_tampered"))
                    self.guest.check("/bin/busybox echo onwards")
                    monitor.wait_for(lambda r: r["type"] == "exec" and r["fields"]["argv"] == "/bin/busybox echo onwards",
                                     "record after it")
                    self.assertGreater(len(monitor.records), before)
                    self.assertEqual(len(monitor.of("gate_tampered")), found, "and no more is found")
        finally:
            self.guest.run("kill $(cat /tmp/storm)")

    def test_a_storm_is_told_of_whole(self):
        with self.guard("--hooks", "exec,fork,exit") as monitor:
            self.guest.check("i=0; while [ $i -lt 300 ]; do /bin/busybox true $i; i=$((i+1)); done", timeout=120)
            monitor.wait_for(lambda r: r["type"] == "exec" and r["fields"]["argv"] == "/bin/busybox true 299", "the last one")
        told = [r["fields"]["argv"] for r in monitor.of("exec") if r["fields"]["argv"].startswith("/bin/busybox true ")]
        self.assertEqual(told, [f"/bin/busybox true {i}" for i in range(300)])

    def test_where_its_data_is_mapped(self):
        """In every process' kernel half; with an address space of its own in none."""
        with self.guard("--hooks", "exec"):
            low = self._read("phys:0", 0xa0000)
            board = low.find(b"LRARAGAT")
            self.assertGreater(board, 0)
            data, root = struct.unpack_from("<QQ", low, board + 0x40)  # BOARD_SIM_DATA, BOARD_SIM_SPACE
            read = subprocess.run([harness.BINARY, "read", str(self.guest.pid), hex(data), "64"], capture_output=True,
                                  env={**os.environ, "LARARIUM_CACHE": self.cache.name}, check=False)
            self.assertEqual(bool(root), bool(SPACE))
            self.assertEqual(read.returncode == 0 and len(read.stdout) == 64, not SPACE, read.stderr)

    @unittest.skipUnless(DEVICE, "the rings lie in reserved memory")
    def test_rings_in_the_memory_of_a_device(self):
        """Larger ones than the guest has reserved memory for; and the device's memory is afterwards what it was."""
        (place,) = re.findall(r"^ *([0-9a-f]+)-[0-9a-f]+ : 0000:.*$", "\n".join(
            line for line in self.guest.check("cat /proc/iomem").splitlines() if self._size(line) == 2 * RINGS_SIZE), re.MULTILINE)
        rings = hex(int(place, 16))
        self.assertEqual(self._read(f"phys:{rings}", RINGS_SIZE).strip(b"\0"), b"")
        with self.guard("--hooks", "exec,open", "--ring", "1M"):
            self.guest.check("i=0; while [ $i -lt 50 ]; do /bin/busybox true $i; i=$((i+1)); done")
            content = self._read(f"phys:{rings}", RINGS_SIZE)
            self.assertIn(b"/bin/busybox", content)
        self.assertEqual(self._read(f"phys:{rings}", RINGS_SIZE).strip(b"\0"), b"")
        self.guest.check("true")

    @unittest.skipUnless(DEVICE, "the rings lie in reserved memory")
    def test_memory_that_is_no_ring_is_refused(self):
        for name, said in (("nothing", "the VM has no memory nothing"), ("ram0", "is the guest's RAM")):
            done = harness.run_lararium("guard", self.guest.pid, "--mode", "sim", "--ring-memory", name, "--for", "1s",
                                        cache=self.cache.name, check=False)
            self.assertIn(said, done.stderr)
            self.assertNotEqual(done.returncode, 0)

    @staticmethod
    def _size(line):
        """Of a line of /proc/iomem."""
        begin, end = line.split(" : ")[0].strip().split("-")
        return int(end, 16) - int(begin, 16) + 1

    def test_a_budget_is_kept(self):
        with self.guard("--hooks", "exec,open", "--budget", "guest=0.01%") as monitor:
            storm = self.guest.start("sh -c 'echo ready; while :; do for i in $(seq 300); do : </dev/null; done; usleep 100000; done'")
            for less in ("open is told of without its arguments", "open is told of no more"):
                monitor.wait_for(lambda r: r["type"] == "guard_notice" and less in r["sentence"], less)  # noqa: B023
            time.sleep(0.5)
            storm.stop()
        monitor.end()
        end = monitor.of("guard_ended")[0]["fields"]
        self.assertGreater(end["calls"], end["seen"], "some were left out")

    def test_a_watcher_misses_nothing(self):
        with tempfile.TemporaryFile("w+") as out:
            watcher = subprocess.Popen([harness.BINARY, "watch", str(self.guest.pid), "--events", "sim", "--json"],
                                       stdout=out, stdin=subprocess.DEVNULL,
                                       env={**os.environ, "LARARIUM_CACHE": self.cache.name})
            try:
                deadline = time.monotonic() + 30
                while "guard_started" not in (out.seek(0), out.read())[1]:
                    self.assertLess(time.monotonic(), deadline)
                    time.sleep(0.05)
                self.guest.check("i=0; while [ $i -lt 100 ]; do /bin/busybox true $i; i=$((i+1)); done", timeout=120)
                time.sleep(0.5)
            finally:
                watcher.terminate()
                watcher.wait(30)
            out.seek(0)
            records = [json.loads(line) for line in out]
        told = [r["fields"]["argv"] for r in records if r["type"] == "exec" and r["fields"]["argv"].startswith("/bin/busybox true ")]
        self.assertEqual(told, [f"/bin/busybox true {i}" for i in range(100)])

    def test_killed_monitors(self):
        self.guest.check("cp /bin/busybox /tmp/true; (while :; do /bin/busybox true; done) >/dev/null 2>&1 & echo $! >/tmp/storm")
        try:
            for _ in range(KILLS):
                monitor = test_guard.Monitor(self.guest, self.cache.name, "--mode", "sim", *SPACE, *RINGS, "--deny", "exec path=/tmp/**")
                time.sleep(random.uniform(0.0, 1.5))
                monitor.end(signal.SIGKILL)
                self.assertEqual(self.guest.run("echo alive", timeout=30).output.strip(), "alive")
            # Without a monitor nothing is denied for long.
            time.sleep(2.5)
            self.assertEqual(self.guest.run("/tmp/true").code, 0)
        finally:
            self.guest.run("kill $(cat /tmp/storm)")
        with self.guard("--hooks", "exec", "--deny", "exec path=/tmp/**"):
            self.assertEqual(self.guest.run("/tmp/true").code, 126)
        self.assertEqual(self.guest.run("/tmp/true").code, 0)


class TooLittleMemory(test_guard.GuardTest):
    """Linux before 5.13 sets no more than 64 KiB aside: there is room for hooks, but not for this."""

    def test_it_is_refused_and_nothing_is_changed(self):
        before = self._low_memory_and_text()
        monitor = test_guard.Monitor(self.guest, self.cache.name, "--mode", "sim", *SPACE)
        monitor.process.wait(60)
        code, errors = monitor.end()
        self.assertEqual(code, 7)
        self.assertIn("set aside", errors)
        self.assertEqual(self._low_memory_and_text(), before)


# Only this one's: the base class is test_guard's to run.
def load_tests(loader, _tests, _pattern):
    if harness.KERNEL.startswith("5.10"):
        return unittest.TestSuite([TooLittleMemory("test_it_is_refused_and_nothing_is_changed")])
    return unittest.TestSuite([loader.loadTestsFromTestCase(SimTest)])


if __name__ == "__main__":
    harness.main()
