#!/usr/bin/env python3
"""No false alarm: a guest that nobody touched gives no finding, idle or busy with what lawful systems do.

Each state of the guest is looked at 50 times, or $LARARIUM_ROUNDS times; $LARARIUM_WHOLE=1 asks for 1,000. A check that cannot be made fails the
test too. $LARARIUM_LOADS is a regular expression of the states to try.
"""

import collections
import contextlib
import json
import os
import re
import shlex
import statistics
import unittest

import harness

ROUNDS = int(os.environ.get("LARARIUM_ROUNDS", "1000" if os.environ.get("LARARIUM_WHOLE") == "1" else "50"))
CHOSEN = re.compile(os.environ.get("LARARIUM_LOADS", ""))
TRACING = "/sys/kernel/tracing"


def forever(commands, before="true"):
    """A shell program that runs COMMANDS again and again."""
    return "sh -c " + shlex.quote(f"{before}; echo ready; while :; do {commands}; done >/dev/null 2>&1")


# What a busy machine does; the shell commands that end what a killed loop left behind.
LOADS = {
    "processes": ("workload storm", "true"),
    "programs": (forever("workload exec 100; ps; ls -l /proc/self/fd"), "true"),
    "modules": (forever("modprobe tun; modprobe overlay; modprobe dummy; rmmod tun; rmmod overlay; rmmod dummy"),
                "true"),
    "ftrace": (forever(f"cd {TRACING}; echo 'vfs_*' >set_ftrace_filter; echo function >current_tracer; usleep 100000; "
                       "echo function_graph >current_tracer; usleep 100000; echo nop >current_tracer; usleep 100000"),
               f"cd {TRACING}; echo nop >current_tracer; echo >set_ftrace_filter; echo >trace"),
    "kprobes": (forever(f"cd {TRACING}; echo 'p:lab/at_start do_sys_openat2' >kprobe_events; "
                        "echo 'r:lab/at_end vfs_read' >>kprobe_events; echo 1 >events/lab/enable; usleep 100000; "
                        "echo 0 >events/lab/enable; echo >kprobe_events; usleep 100000"),
                f"cd {TRACING}; echo 0 >events/lab/enable; echo >kprobe_events; echo >trace"),
    # Breakpoints that the kernel itself puts into the text of programs.
    "uprobes": (forever("echo 1 >events/lab/enable; usleep 100000; ls; ls; usleep 100000; echo 0 >events/lab/enable; "
                        "usleep 50000",
                        f"cd {TRACING}; for place in 0x20000 0x20800 0x31000 0x40ffc; do "
                        "echo p:lab/at_$place /bin/busybox:$place; done >uprobe_events"),
                f"cd {TRACING}; echo 0 >events/lab/enable; echo >uprobe_events; echo >trace"),
    "remapped_text": ("workload remap_text", "true"),
    "tracepoints": (forever(f"cd {TRACING}; echo 1 >events/sched/enable; usleep 100000; echo 0 >events/sched/enable; "
                            "usleep 100000"),
                    f"cd {TRACING}; echo 0 >events/sched/enable; echo >trace"),
    # As a user who may ping by a datagram socket: a raw socket would be worth a finding.
    "network": (forever("workload connect 200; su -s /bin/sh lab -c 'ping -q -A -c 200 127.0.0.1'",
                        "echo 0 9999 >/proc/sys/net/ipv4/ping_group_range; grep -qs ^lab: /etc/passwd || "
                        "echo lab:x:1000:1000::/:/bin/sh >>/etc/passwd"), "true"),
    "memory": (forever("dd if=/dev/zero of=/dev/shm/fill bs=1M count=450; rm /dev/shm/fill; "
                       "dd if=/bin/busybox of=/dev/null",
                       "mount -o remount,size=100% /dev/shm; mkswap /dev/vda; swapon /dev/vda"),
               "swapoff /dev/vda; rm -f /dev/shm/fill"),
    "bpf": (forever("workload bpf & sleep 1; kill $!; wait; rm -f /sys/fs/bpf/lab_*"), "rm -f /sys/fs/bpf/lab_*"),
    "credentials": ("workload credentials storm", "rm -f /tmp/workload.setuid /dev/shm/workload.capable"),
    "containers": (forever("workload container & sleep 1; kill $!; wait"), "true"),
}
TRACERS = ("ftrace", "kprobes", "uprobes", "tracepoints", "bpf")


class Rounds(harness.GuestTest):
    OPTIONS = {"backend": "memfd", "memory": "512M", "disk": "256M"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.times = collections.defaultdict(list)
        cls.addClassCleanup(cls.print_times)

    @contextlib.contextmanager
    def busy(self, names):
        with contextlib.ExitStack() as jobs:
            for name in names:
                command, afterwards = LOADS[name]
                job = self.guest.start(command)
                jobs.callback(self.guest.run, afterwards)
                # The loop and what it started, which are one process group.
                jobs.callback(self.guest.run, f"kill -TERM -{job.pid}; usleep 200000; kill -KILL -{job.pid}")
            yield

    def look(self, rounds):
        strange = collections.Counter()
        example = {}
        for _ in range(rounds):
            completed = harness.run_lararium("check", self.guest.pid, "--reference", self.guest.kernel.image,
                                             "--reference", self.guest.kernel.modules, "--json",
                                             cache=self.cache.name, check=False)
            if not completed.stdout:
                self.fail(f"lararium check ended with {completed.returncode}: {completed.stderr}")
            document = json.loads(completed.stdout)
            for check in document["checks"]:
                self.times[check["check"]].append(check["milliseconds"])
                if check["error"]:
                    strange[f"{check['check']} cannot be made: {check['error']}"] += 1
            for finding in document["items"]:
                kind = f"{finding['check']}: {finding['sentence']}"
                strange[kind] += 1
                example[kind] = finding
        for kind, count in strange.most_common(20):
            print(f"  {count} of {rounds}: {kind}")
            if kind in example:
                print(f"    {json.dumps(example[kind])}")
        self.assertFalse(strange, f"{len(strange)} kinds of false alarms in {rounds} rounds")

    @classmethod
    def print_times(cls):
        for check, times in sorted(cls.times.items()):
            print(f"{check:20} {len(times)} looks, median {statistics.median(times):.1f} ms, most {max(times):.1f} ms")


class Clean(Rounds):
    def test_a_idle(self):
        self.look(ROUNDS)


    def test_z_every_module(self):
        # Loaded one by one, as some are for hardware that is not there.
        self.guest.check("for file in $(find /lib/modules -name '*.ko'); do modprobe $(basename $file .ko); done; true",
                         timeout=180)
        self.look(max(ROUNDS // 10, 2))
        seen = json.loads(harness.run_lararium("check", self.guest.pid, "--only", "kernel_text", "--reference",
                                               self.guest.kernel.modules, "--json", cache=self.cache.name).stdout)
        unseen = [what for what in seen["checks"][0]["unseen"] if not re.match(r"\d+ addresses in modules", what)]
        self.assertEqual(unseen, [], "modules were not compared")


class CleanTraced(Rounds):
    # In one thread of QEMU's: in several, TCG loses a guest in which tracers rewrite the kernel's code all day (ADR 5).
    OPTIONS = {**Rounds.OPTIONS, "tcg_threads": "single"}

    def test_all_at_once(self):
        # The function tracer, kprobes and tracepoints together would slow an emulated guest to a crawl.
        with self.busy(name for name in LOADS if name not in ("ftrace", "tracepoints")):
            self.look(ROUNDS)


def add(name, tests):
    def test(self):
        with self.busy([name]):
            self.look(ROUNDS)
        self.look(max(ROUNDS // 10, 2))  # and what it leaves behind
    setattr(tests, f"test_{name}", test)


for each in LOADS:
    add(each, CleanTraced if each in TRACERS else Clean)
for each in [(tests, name) for tests in (Clean, CleanTraced) for name in unittest.TestLoader().getTestCaseNames(tests)]:
    if not CHOSEN.search(each[1]):
        delattr(*each)

if __name__ == "__main__":
    harness.main()
