#!/usr/bin/env python3
"""The registers by which a program gets into the kernel, which QEMU's monitors do not show: read in QEMU's own memory, they
are what the guest's kernel says that it wrote there, and change when it changes them.

$LARARIUM_QEMU is the version of QEMU.
"""

import json
import os
import pathlib
import re
import subprocess

import harness

from lab.attack import Attacker

PROGRAM = pathlib.Path(os.environ.get("LARARIUM_VCPU_REGISTERS", harness.BINARY.parent / "vcpu_registers"))
CPUS = 3


class Registers(harness.GuestTest):
    OPTIONS = {"backend": "memfd", "cpus": CPUS, "pti": False, "qemu": os.environ.get("LARARIUM_QEMU", "7.2")}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.attacker = Attacker(cls.guest)
        lines = cls.guest.check("grep -E ' (entry_SYSCALL|entry_SYSENTER|ignore_sysret)' /proc/kallsyms")
        cls.symbols = {name: int(address, 16) for address, name in re.findall(r"^(\w+) \w (\w+)$", lines, re.M)}

    def setUp(self):
        self.program = subprocess.Popen([PROGRAM, str(self.guest.pid)], text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)
        self.addCleanup(self.end)

    def end(self):
        self.program.stdin.close()
        self.assertEqual(self.program.wait(60), 0)
        self.program.stdout.close()

    def read(self):
        self.program.stdin.write("\n")
        self.program.stdin.flush()
        answer = json.loads(self.program.stdout.readline())
        self.assertEqual(answer["error"], "")
        self.assertEqual([vcpu["index"] for vcpu in answer["vcpus"]], list(range(CPUS)))
        self.milliseconds = answer["milliseconds"]
        return answer["vcpus"]

    def test_what_the_kernel_wrote(self):
        job = self.guest.start("workload storm")  # tasks of all kinds, in the kernel and outside
        self.addCleanup(self.guest.run, f"kill -KILL -{job.pid}")
        times = []
        for _ in range(100):
            for vcpu in self.read():
                self.assertEqual(vcpu["lstar"], self.symbols["entry_SYSCALL_64"])
                self.assertEqual(vcpu["cstar"], self.symbols["entry_SYSCALL_compat"])
                self.assertEqual(vcpu["sysenter_eip"], self.symbols["entry_SYSENTER_compat"])
                self.assertEqual(vcpu["star"], 0x0023001000000000)
                self.assertEqual(vcpu["fmask"] & 0x47700, 0x47700)
                self.assertEqual(vcpu["sysenter_cs"], 0x10)
            times.append(self.milliseconds)
        print(f"{times[0]:.1f} ms of processor time the first time, then {sorted(times)[50]:.2f} ms")

    def test_what_it_writes_anew(self):
        before = self.read()
        self.attacker.on("lstar", "module")
        try:
            for old, new in zip(before, self.read()):
                self.assertNotEqual(new["lstar"], old["lstar"])
                self.assertEqual({**new, "lstar": 0, "cr0": 0, "kernel_gs_base": 0},
                                 {**old, "lstar": 0, "cr0": 0, "kernel_gs_base": 0})
        finally:
            self.attacker.off("lstar")
        self.assertEqual([vcpu["lstar"] for vcpu in self.read()], [vcpu["lstar"] for vcpu in before])

    def test_a_cpu_that_was_off(self):
        self.guest.check("echo 0 >/sys/devices/system/cpu/cpu1/online")
        self.read()
        self.guest.check("echo 1 >/sys/devices/system/cpu/cpu1/online")
        self.assertEqual(len({vcpu["lstar"] for vcpu in self.read()}), 1)


if __name__ == "__main__":
    harness.main()
