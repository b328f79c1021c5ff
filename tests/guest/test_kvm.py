#!/usr/bin/env python3
"""What is done without knowing the operating system, on VMs under KVM, by both QEMUs and every way to memory.

The guest is kvm_guest.S: where KVM itself runs in a VM, Linux may not boot in it, and this does.
"""

import json
import os
import pathlib
import socket
import struct
import subprocess
import tempfile
import time
import unittest

import harness
from lab.errors import Skip

MARK, MARK_ABOVE_4G = 0x100000, 0x100200000
WORD, COUNTING = 0x0123456789abcdef, 0xfedcba9876543210  # rbx and r15, once it counts
CR3, COPIED_TO, COPIED = 0x10000, 0x8000, 0x200
UNKNOWN_OS = 8

# backend: the objects of QEMU's command line, and how Lararium says that it reads them.
BACKENDS = {
    "anonymous": ([], "process_vm_readv (private memory)"),
    "memfd": (["memory-backend-memfd,id=ram,share=on"], "mapped (memfd)"),
    "file": (["memory-backend-file,id=ram,share=on,mem-path={folder}"], "mapped (file)"),
}
VARIANTS = [("7.2", "q35", "256M"), ("7.2", "pc", "5G"), ("10.0", "q35", "5G"), ("10.0", "pc", "256M")]


class Events:
    """How often QEMU stopped and continued the VM since it was asked last: a client that stays, on a monitor of its own."""

    def __init__(self, path):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(path)
        self._lines = self._socket.makefile("rw")
        self._answer("qmp_capabilities")

    def close(self):
        self._lines.close()
        self._socket.close()

    def _answer(self, command):
        self._lines.write(json.dumps({"execute": command}) + "\n")
        self._lines.flush()
        events = []
        while True:
            message = json.loads(self._lines.readline())
            if "return" in message:
                return message["return"], events
            events.append(message.get("event"))

    def take(self):
        status, events = self._answer("query-status")
        return status["status"], events.count("STOP"), events.count("RESUME")


def build(folder, above_4g):
    """The guest's firmware."""
    source, image = pathlib.Path(__file__).with_name("kvm_guest.S"), pathlib.Path(folder, "guest.bin")
    subprocess.run(["gcc", "-c", "-o", f"{folder}/guest.o", source], check=True)
    subprocess.run(["ld", "-Ttext", hex(COPIED_TO), "--oformat", "binary", "-o", image, f"{folder}/guest.o"], check=True)
    content = bytearray(image.read_bytes())
    assert len(content) == 64 << 10
    content[COPIED - 1] = above_4g
    image.write_bytes(content)
    return image


def parse_core(path):
    """PT_LOAD segments as (physical, file offset, stored bytes), and the registers of the first vCPU."""
    with open(path, "rb") as file:
        header = file.read(64)
        place, = struct.unpack_from("<Q", header, 32)
        size, count = struct.unpack_from("<HH", header, 54)
        loads, registers = [], None
        for index in range(count):
            file.seek(place + index * size)
            kind, _, offset, _, physical, stored = struct.unpack("<IIQQQQ", file.read(40))
            if kind == 1:
                loads.append((physical, offset, stored))
            elif kind == 4 and registers is None:
                file.seek(offset)
                notes = file.read(stored)
                at = 0
                while at + 12 <= len(notes):
                    name_size, size_of_note, _ = struct.unpack_from("<III", notes, at)
                    name = notes[at + 12:at + 12 + name_size].rstrip(b"\0")
                    at += 12 + (name_size + 3 & ~3)
                    if name == b"QEMU" and registers is None:  # QEMUCPUState, QEMU's dump
                        names = "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags".split()
                        registers = dict(zip(names, struct.unpack_from("<18Q", notes, at + 8)))
                        registers.update(zip(("cr0", "cr1", "cr2", "cr3", "cr4"), struct.unpack_from("<5Q", notes, at + 392)))
                    at += size_of_note + 3 & ~3
        return loads, registers


class Kvm(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            raise Skip("/dev/kvm cannot be used")
        cls.folder = tempfile.TemporaryDirectory(prefix="lararium-kvm-")
        cls.addClassCleanup(cls.folder.cleanup)

    def start(self, version, machine, memory, backend, more=(), **options):
        arguments = [*more, "-name", "kvm", "-vga", "none", "-bios", build(self.folder.name, above_4g=memory == "5G")]
        for text in BACKENDS[backend][0]:
            arguments += ["-object", text.format(folder=self.folder.name) + f",size={memory}"]
            machine += ",memory-backend=ram"
        vm = harness.bare_qemu(*arguments, memory=memory, machine=machine, accel="kvm", version=version, **options)
        try:
            started = vm.__enter__()
        except harness.QemuFailed as error:
            if "kvm" in str(error).lower():
                raise Skip(f"KVM does not run a VM here: {error}") from error
            raise
        self.addCleanup(vm.__exit__, None, None, None)
        return started

    def read(self, vm, address, size, *options):
        data = json.loads(harness.run_lararium("read", vm.pid, f"phys:{address:#x}", size, "--json", *options).stdout)
        return bytes.fromhex(data["item"]["data_hex"])

    def words(self, vm, *options):
        return struct.unpack("<2Q", self.read(vm, MARK, 16, *options))

    def wait_until_it_counts(self, vm):
        deadline = time.monotonic() + 60
        while True:
            done = harness.run_lararium("read", vm.pid, f"phys:{MARK + 8:#x}", "8", check=False)
            if done.returncode == 0 and done.stdout.strip("\0"):
                return
            self.assertLess(time.monotonic(), deadline, f"the guest does not run: {done.stderr}")
            self.assertIsNone(vm.poll(), "QEMU ended")
            time.sleep(0.1)

    def assert_listed(self, vm, version, backend, memory):
        rows = json.loads(harness.run_lararium("vms", "--json").stdout)["items"]
        row = next(row for row in rows if row["pid"] == vm.pid)
        self.assertEqual((row["name"], row["accelerator"], row["vcpus"]), ("kvm", "kvm", 1))
        self.assertTrue(row["qemu_version"].startswith(version), row)
        self.assertEqual(row["ram_bytes"], (256 << 20) if memory == "256M" else (5 << 30))
        self.assertEqual(row["memory_access"], BACKENDS[backend][1])
        self.assertTrue(row["readable"])
        self.assertIsNone(row["guest"])
        self.assertIn("no operating system that Lararium knows", row["guest_error"])
        return row

    def assert_dumped(self, vm, events, memory, *options):
        path = pathlib.Path(self.folder.name, "core")
        events.take()
        document = json.loads(harness.run_lararium("dump", vm.pid, path, "--force", "--json", *options).stdout)
        paused = int("--pause" in options)
        self.assertEqual(document["item"]["paused"], bool(paused))
        self.assertEqual(events.take(), ("running", paused, paused))
        loads, registers = parse_core(path)
        with open(path, "rb") as core:
            def physical(address, size):
                for base, offset, stored in loads:
                    if base <= address and address + size <= base + stored:
                        core.seek(offset + address - base)
                        return core.read(size)
                raise AssertionError(f"{address:#x} is not in the dump")

            self.assertEqual(struct.unpack("<Q", physical(MARK, 8))[0], WORD)
            if memory == "5G":
                self.assertEqual(struct.unpack("<Q", physical(MARK_ABOVE_4G, 8))[0], WORD)
        self.assertEqual((registers["rbx"], registers["r15"], registers["cr3"]), (WORD, COUNTING, CR3))
        self.assertTrue(COPIED_TO <= registers["rip"] < COPIED_TO + COPIED, hex(registers["rip"]))
        self.assertEqual(registers["cr0"] >> 31 & registers["cr4"] >> 5 & 1, 1, "paging, and PAE")
        path.unlink()

    def assert_unknown(self, vm):
        for command in (["ps", vm.pid], ["info", vm.pid], ["sockets", vm.pid], ["check", vm.pid], ["symbols", vm.pid]):
            done = harness.run_lararium(*command, check=False)
            self.assertEqual(done.returncode, UNKNOWN_OS, f"{command}: {done.stderr}")
            sentences = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
            self.assertEqual(len(sentences), 1, done.stderr)
            self.assertRegex(sentences[0], "^lararium: kvm: no operating system that Lararium knows")
            document = json.loads(harness.run_lararium(*command, "--json", check=False).stdout)
            self.assertEqual((document["error"]["code"], document["error"]["exit_code"]), ("unknown_os", UNKNOWN_OS))

    def test_vms_under_kvm(self):
        for version, machine, memory in VARIANTS:
            for backend in BACKENDS:
                with self.subTest(qemu=version, machine=machine, memory=memory, backend=backend):
                    try:
                        self.try_vm(version, machine, memory, backend)
                    finally:
                        self.doCleanups()

    def test_without_a_monitor(self):
        for version, machine, memory in VARIANTS:
            for backend in BACKENDS:
                with self.subTest(qemu=version, machine=machine, memory=memory, backend=backend):
                    try:
                        vm = self.start(version, machine, memory, backend, monitor=False)
                        self.wait_until_it_counts(vm)
                        self.assertEqual(self.words(vm)[0], WORD)
                        if memory == "5G":
                            self.assertEqual(struct.unpack("<Q", self.read(vm, MARK_ABOVE_4G, 8))[0], WORD)
                        row = self.assert_listed(vm, version, backend, memory)
                        self.assertIn(row["state"], ("unknown", "running"))
                        self.assert_unknown(vm)
                        done = harness.run_lararium("read", vm.pid, "phys:0", "16", "--pause", "--json", check=False)
                        self.assertEqual(done.returncode, 7, done.stderr)
                    finally:
                        self.doCleanups()

    def try_vm(self, version, machine, memory, backend):
        control = f"{self.folder.name}/control.sock"
        vm = self.start(version, machine, memory, backend, more=["-qmp", f"unix:{control},server=on,wait=off"])
        events = Events(control)
        self.addCleanup(events.close)
        self.wait_until_it_counts(vm)
        self.assert_listed(vm, version, backend, memory)
        word, before = self.words(vm)
        self.assertEqual(word, WORD)
        self.assertGreater(self.words(vm)[1], before, "it runs on while it is read")
        shown = harness.run_lararium("hexdump", vm.pid, f"phys:{MARK:#x}", "16").stdout
        self.assertIn("ef cd ab 89 67 45 23 01", shown)
        if memory == "5G":
            self.assertEqual(struct.unpack("<Q", self.read(vm, MARK_ABOVE_4G, 8))[0], WORD)
        self.assert_dumped(vm, events, memory)
        self.assert_dumped(vm, events, memory, "--pause")
        self.assertGreater(self.words(vm)[1], before)
        self.assert_unknown(vm)
        self.assertIsNone(vm.poll())


if __name__ == "__main__":
    harness.main()
