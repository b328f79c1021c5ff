#!/usr/bin/env python3
"""What kernel_text remembers of its first look: a changed byte that leads nowhere is found, and only while it is changed;
what the kernel itself changes in its code is not. Also hooks that are written from outside, so that no tool of the guest
has a part in them.
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


class FirstLook(harness.GuestTest):
    OPTIONS = {"backend": "memfd", "memory": "512M", "modules": ["dummy"]}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.attacker = Attacker(cls.guest)

    def setUp(self):
        super().setUp()
        self.program = subprocess.Popen([PROGRAM, str(self.guest.pid), "kernel_text"], text=True, stdin=subprocess.PIPE,
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


if __name__ == "__main__":
    harness.main()
