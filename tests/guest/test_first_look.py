#!/usr/bin/env python3
"""What checks remember of their first look. kernel_text: a changed byte that leads nowhere is found, and only while it is
changed; what the kernel itself changes in its code is not. Also hooks that are written from outside, so that no tool of
the guest has a part in them. defences: settings that are weaker than they were, and records that the log lost.
"""

import json
import os
import pathlib
import struct
import subprocess

import harness
from guest_memory import GuestKernel, GuestMemory

from lab.attack import Attacker

MEMORY = 512 << 20
PROGRAM = pathlib.Path(os.environ.get("LARARIUM_LOOK_AGAIN", harness.BINARY.parent / "look_again"))
TRACING = "/sys/kernel/tracing"


class Remembering(harness.GuestTest):
    """CHECK, kept from look to look."""

    CHECK: str
    # Kernels that trace are lost by TCG in several threads, now and then.
    OPTIONS = {"backend": "memfd", "memory": "512M", "modules": ["dummy"], "tcg_threads": "single"}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.attacker = Attacker(cls.guest)

    def setUp(self):
        super().setUp()
        self.program = subprocess.Popen([PROGRAM, str(self.guest.pid), self.CHECK], text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)
        self.addCleanup(self.end)
        self.assertEqual(self.look(), [], "findings at the first look")

    def end(self):
        self.program.stdin.close()
        self.assertEqual(self.program.wait(60), 0)
        self.program.stdout.close()

    def look(self):
        self.program.stdin.write("\n")
        self.program.stdin.flush()
        answer = json.loads(self.program.stdout.readline())
        if os.environ.get("LARARIUM_TRACE"):
            print(answer)
        return [f"{finding['subject']}: {finding['sentence']}" for finding in answer["findings"]]

    def carry_out(self, technique, pattern):
        self.attacker.on(technique, "")
        try:
            self.assertRegex("\n".join(self.look()), pattern)
            self.assertRegex("\n".join(self.look()), pattern)
        finally:
            self.attacker.off(technique)
        self.assertEqual(self.look(), [], "findings after it was put back")


class KernelText(Remembering):
    CHECK = "kernel_text"

    def test_byte_of_the_kernel(self):
        self.carry_out("text_byte", "not what they were")

    def test_byte_of_read_only_data(self):
        self.carry_out("rodata_byte", "read-only data from")

    def test_byte_of_a_module(self):
        self.carry_out("module_text_byte", "dummy.*not what they were")

    def test_the_kernel_changes_its_own_code(self):
        # Some of these a kernel may refuse; what it does is what must be lawful.
        begin = (f"cd {TRACING}; echo function >current_tracer; echo 'p:a vfs_read' >kprobe_events; "
                 "echo 'p:b kernel_clone+11' >>kprobe_events; echo 'p:c vfs_write+20' >>kprobe_events; "
                 "echo 'r:d do_filp_open' >>kprobe_events; echo 1 >events/kprobes/enable; echo 1 >events/sched/enable; "
                 "echo 1 >events/syscalls/enable; echo 1 >/proc/sys/kernel/sched_schedstats; true")
        middle = f"cd {TRACING}; echo function_graph >current_tracer"
        end = (f"cd {TRACING}; echo nop >current_tracer; echo 0 >events/enable; echo >kprobe_events; echo >trace; "
               "echo 0 >/proc/sys/kernel/sched_schedstats; true")
        for step in (begin, middle, end):
            self.guest.run(step, 120)
            self.assertEqual(self.look(), [], step)

    def test_module_is_loaded_anew(self):
        for step in ("rmmod dummy", "modprobe dummy", "rmmod dummy; modprobe dummy"):
            self.guest.check(step)
            self.assertEqual(self.look(), [], step)

    def test_hooks_written_from_outside(self):
        memory = GuestMemory(self.guest, MEMORY)
        self.addCleanup(memory.close)
        kernel = GuestKernel(memory, lambda command, *arguments: harness.run_lararium(
            command, str(self.guest.pid), *arguments).stdout)
        function, direct = kernel.symbol("vfs_read"), kernel.direct(64 << 20)
        near = struct.pack("<i", 0x20000000)
        hooks = {
            "movabs rax; jmp rax": b"\x48\xb8" + struct.pack("<Q", direct) + b"\xff\xe0",
            "push; mov [rsp+4]; ret": b"\x68" + struct.pack("<I", direct & 0xffffffff) + b"\xc7\x44\x24\x04" +
                                      struct.pack("<I", direct >> 32) + b"\xc3",
            "jmp": b"\xe9" + near,
            "call": b"\xe8" + near,
            "int3": b"\xcc",
        }
        for name, code in hooks.items():
            with self.subTest(name):
                # vCPUs stand still: none of them shall run it.
                self.guest.qmp("stop")
                try:
                    place = function
                    if memory.read(place, 4) == b"\xf3\x0f\x1e\xfa" or memory.read(place, 1) == b"\x66":
                        place += 4  # endbr64, or the nop in its place
                    with memory.undone():
                        memory.write(place, code)
                        self.assertRegex("\n".join(self.look()), "vfs_read")
                        found = harness.run_lararium("check", str(self.guest.pid), "--only", "kernel_text", check=False)
                        self.assertIn("vfs_read", found.stdout)
                    self.assertEqual(self.look(), [])
                finally:
                    self.guest.qmp("cont")


class Defences(Remembering):
    CHECK = "defences"

    def findings(self):
        return "\n".join(self.look())

    def test_record_of_the_log(self):
        self.carry_out("log_record_changed", "kernel's log was changed")

    def test_record_that_leaves_the_log(self):
        self.carry_out("log_record_removed", "kernel's log was removed")

    def test_the_log_grows_and_is_read(self):
        self.guest.check("dmesg -c >/dev/null; for i in $(seq 2000); do echo line $i of the test >/dev/kmsg; done", 120)
        self.assertEqual(self.look(), [])
        self.guest.check("for i in $(seq 20); do echo line $i of the test >/dev/kmsg; done")
        self.assertEqual(self.look(), [])

    def test_what_the_kernel_never_lowers(self):
        self.attacker.on("modules_enabled", "lock")
        self.assertEqual(self.look(), [])
        self.attacker.off("modules_enabled")
        self.assertRegex(self.findings(), "modules_disabled went from 1 down to 0.*never")
        self.attacker.on("modules_enabled", "lock")
        self.assertEqual(self.look(), [])
        self.attacker.off("modules_enabled")

    def test_settings_of_an_administrator(self):
        for path, strong, technique in (("/proc/sys/kernel/kptr_restrict", 2, "kptr_restrict"),
                                        ("/proc/sys/kernel/dmesg_restrict", 1, None)):
            with self.subTest(path):
                before = self.guest.check(f"cat {path}").strip()
                self.addCleanup(self.guest.check, f"echo {before} >{path}")
                self.guest.check(f"echo {strong} >{path}")
                self.assertEqual(self.look(), [])
                if technique:
                    self.attacker.on(technique)
                else:
                    self.guest.check(f"echo 0 >{path}")
                self.assertRegex(self.findings(), f"{path.rsplit('/', 1)[1]} went from {strong} down to 0")
                if technique:
                    self.attacker.off(technique)
                else:
                    self.guest.check(f"echo {strong} >{path}")
                self.assertEqual(self.look(), [])


class Credentials(Remembering):
    CHECK = "credentials"

    def test_more_in_the_midst_of_a_program(self):
        job = self.guest.start("workload setuid 1000")
        self.addCleanup(job.stop)
        for technique, pattern in (("credentials_euid", "became user 0 from user 1000"),
                                   ("credentials_capabilities", "capabilities in the midst")):
            with self.subTest(technique):
                for _ in range(2):  # one look is not sure yet
                    self.assertEqual(self.look(), [])
                self.attacker.on(technique, str(job.pid))
                self.assertRegex("\n".join(self.look()), pattern)
                self.attacker.off(technique)
                self.assertEqual(self.look(), [])

    def test_lawful_changes(self):
        job = self.guest.start("workload credentials storm")
        self.addCleanup(self.guest.run, f"kill -KILL -{job.pid}")
        for _ in range(40):
            self.assertEqual(self.look(), [])


if __name__ == "__main__":
    harness.main()
