#!/usr/bin/env python3
"""Dumps of every format tell the same as the live, paused guest; and other tools open what Lararium writes.

LARARIUM_QEMU chooses QEMU's version. LARARIUM_PEERS names a root folder (a chroot) with drgn and crash, and
LARARIUM_PEERS_DEBUG in it or beside it the debug symbols of kernels, as lib/debug/lib/modules/RELEASE/vmlinux: without
them what those tools would say is skipped.
"""

import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import tempfile
import unittest

import harness
from guest_memory import GuestMemory
from lab.errors import LabError

MEMORY = 512 << 20
VIEWS = ("ps", "modules", "sockets")
VERSION = os.environ.get("LARARIUM_QEMU", "7.2")


class Dumps(harness.GuestTest):
    OPTIONS = {"backend": "memfd", "memory": f"{MEMORY >> 20}M", "qemu": VERSION, "vmcoreinfo": False}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.job = cls.guest.start("workload arguments")
        for command in ("tcp 4 80", "tcp 6 81", "udp 4 53", "unix", "threads 3 worker", "container", "fds"):
            cls.guest.start(f"workload {command}")
        cls.guest.qmp("stop")
        cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory(prefix="lararium-dumps-"))
                                  if hasattr(cls, "enterClassContext") else tempfile.mkdtemp(prefix="lararium-dumps-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, True)
        cls.live = {view: cls.view(view, cls.guest.pid) for view in VIEWS}
        cls.memory = GuestMemory(cls.guest, MEMORY)
        cls.addClassCleanup(cls.memory.close)

    @classmethod
    def view(cls, view, target, *options):
        done = harness.run_lararium(view, target, "--json", *options, cache=cls.cache.name)
        return json.loads(done.stdout)["items"]

    def assert_same_as_live(self, path, *options):
        for view in VIEWS:
            with self.subTest(dump=path.name, view=view):
                self.assertEqual(self.view(view, path, *options), self.live[view])
        document = json.loads(harness.run_lararium("ps", path, "--json", cache=self.cache.name).stdout)
        self.assertEqual(document["vm"]["kind"], "dump")
        self.assertIsNone(document["vm"]["pid"])

    def qemu_dump(self, name, **options):
        path = self.folder / name
        path.unlink(missing_ok=True)
        self.guest.qmp("dump-guest-memory", timeout=300, protocol=f"file:{path}", **options)
        return path

    def test_qemu_elf(self):
        path = self.qemu_dump("qemu.elf", paging=False)
        self.assert_same_as_live(path)
        path.unlink()

    def test_qemu_elf_with_paging(self):
        path = self.qemu_dump("qemu.paging", paging=True)
        self.assert_same_as_live(path)
        path.unlink()

    def test_qemu_kdump(self):
        offered = self.guest.qmp("query-dump-guest-memory-capability")["formats"]
        tried = 0
        for kind in offered:
            if not kind.startswith("kdump-"):
                continue
            try:
                path = self.qemu_dump(f"qemu.{kind}", paging=False, format=kind)
            except LabError as error:
                self.assertRegex(str(error), "(?i)vmcoreinfo|support|format", kind)
                print(f"{kind}: QEMU {VERSION} does not write it for this guest: {error}")
                continue
            tried += 1
            self.assert_same_as_live(path)
            path.unlink()
        self.assertGreater(tried, 0, offered)

    def test_raw_and_lime(self):
        # One RAM block below 2 GiB begins at 0; the first MiB has holes for the VGA memory, which both leave to zeros.
        raw = self.folder / "raw"
        with raw.open("wb") as file:
            file.truncate(MEMORY)
            for begin, end in self.memory.data_ranges():
                file.seek(begin)
                file.write(self.memory.read_physical(begin, end - begin))
        self.assert_same_as_live(raw)
        lime = self.folder / "lime"
        with lime.open("wb") as file:
            for begin, end in ((0, 0xa0000), (0x100000, MEMORY)):
                # "EMiL", version, first and last address, reserved (LiME's README)
                file.write(struct.pack("<IIQQQ", 0x4c694d45, 1, begin, end - 1, 0))
                file.write(self.memory.read_physical(begin, end - begin))
        raw.unlink()
        self.assert_same_as_live(lime)
        lime.unlink()

    def test_own_dump(self):
        path = self.folder / "own.elf"
        done = harness.run_lararium("dump", self.guest.pid, path, "--json", cache=self.cache.name)
        item = json.loads(done.stdout)["item"]
        self.assertGreaterEqual(item["memory_bytes"], MEMORY - (1 << 20))  # the first MiB has holes
        self.assertLess(path.stat().st_blocks * 512, MEMORY)  # zeros are holes
        self.assert_same_as_live(path)
        again = self.folder / "again.elf"
        harness.run_lararium("dump", path, again, cache=self.cache.name)
        self.assert_same_as_live(again)
        again.unlink()
        self.assert_same_as_live(path, "--no-cache")
        self.gdb_opens(path)
        self.peers_open(path)

    def test_own_dump_of_a_running_guest(self):
        path = self.folder / "paused.elf"
        self.guest.qmp("cont")
        try:
            harness.run_lararium("dump", self.guest.pid, path, "--pause", cache=self.cache.name)
            self.assertEqual(self.guest.qmp("query-status")["status"], "running")
            harness.run_lararium("dump", self.guest.pid, path, "--force", cache=self.cache.name)
        finally:
            self.guest.qmp("stop")
            type(self).live = {view: self.view(view, self.guest.pid) for view in VIEWS}
        seen = {item["pid"] for item in self.view("ps", path)}
        self.assertLess(len(seen ^ {item["pid"] for item in self.live["ps"]}), 6)
        path.unlink()

    def test_damaged_dumps(self):
        whole = self.folder / "whole.elf"
        harness.run_lararium("dump", self.guest.pid, whole, cache=self.cache.name)
        size = whole.stat().st_size
        for length in (size - 4096, size // 2, 1 << 20, 4096, 100, 64, 16, 1):
            path = self.folder / f"cut.{length}"
            with whole.open("rb") as source, path.open("wb") as target:
                target.write(source.read(min(length, 64 << 20)))
                target.truncate(length)
            with self.subTest(length=length):
                done = harness.run_lararium("ps", path, "--json", check=False, cache=self.cache.name)
                self.assertIn(done.returncode, (0, 7, 8, 9, 10, 11), done.stderr)
                document = json.loads(done.stdout)
                if done.returncode:
                    self.assertTrue(document["error"]["message"])
                    self.assertEqual(len([line for line in done.stderr.splitlines() if line.startswith("lararium:")]), 1)
            path.unlink()
        noise = bytearray(whole.open("rb").read(1 << 20))
        for at in range(0, len(noise), 4099):
            noise[at] ^= 0xff
        path = self.folder / "noise"
        path.write_bytes(noise)
        done = harness.run_lararium("ps", path, "--json", check=False, cache=self.cache.name)
        self.assertIn(done.returncode, (7, 8, 9, 10, 11), done.stderr)
        whole.unlink()

    @unittest.skipUnless(shutil.which("gdb"), "there is no gdb")
    def gdb_opens(self, path):
        symbol = json.loads(harness.run_lararium("symbols", path, "linux_banner", "--json", cache=self.cache.name).stdout)
        address = symbol["items"][0]["address"]
        done = subprocess.run(["gdb", "-batch", "-nx", "-core", path, "-ex", f"x/s {address}", "-ex", "info registers cr3",
                               "-ex", "info threads"], capture_output=True, text=True, errors="replace", timeout=120)
        self.assertIn("Linux version", done.stdout, done.stderr)
        self.assertGreaterEqual(done.stdout.count("Thread") + done.stdout.count("LWP"), 1, done.stdout)

    @unittest.skipUnless(shutil.which("gdb"), "there is no gdb")
    def test_gdb_opens_a_process(self):
        path = self.folder / "process.core"
        harness.run_lararium("procmem", self.guest.pid, self.job.pid, "-o", path, cache=self.cache.name)
        executable = self.folder / "workload"
        self.guest.qmp("cont")
        try:
            executable.write_bytes(self.guest.get(f"/proc/{self.job.pid}/exe"))
            stack = next(line for line in self.guest.check(f"cat /proc/{self.job.pid}/maps").splitlines()
                         if "[stack]" in line)
        finally:
            self.guest.qmp("stop")
            type(self).live = {view: self.view(view, self.guest.pid) for view in VIEWS}
        top = int(stack.split()[0].split("-")[1], 16)
        done = subprocess.run(["gdb", "-batch", "-nx", "-ex", "set pagination off", str(executable), str(path),
                               "-ex", "info registers rip rsp", "-ex", "x/i $pc", "-ex", f"x/s {top - 8 - len('/bin/workload')}",
                               "-ex", "info proc mappings", "-ex", "info auxv"], capture_output=True, text=True, errors="replace",
                              timeout=120)
        self.assertIn("Core was generated by", done.stdout, done.stderr)
        self.assertIn("workload", done.stdout)
        self.assertRegex(done.stdout, r"rsp\s+0x7f")
        self.assertRegex(done.stdout, r"=> 0x[0-9a-f]+.*:")
        self.assertIn("AT_ENTRY", done.stdout)
        self.assertNotIn("Cannot access memory", done.stdout.split("x/s")[0])

    def peers_open(self, path):
        peers = os.environ.get("LARARIUM_PEERS")
        if not peers:
            print("drgn and crash: skipped, LARARIUM_PEERS is not set")
            return
        peers = pathlib.Path(peers)
        debug = pathlib.Path(os.environ.get("LARARIUM_PEERS_DEBUG", peers / "usr/lib/debug"))
        release = self.guest.kernel.release
        vmlinux = next(debug.glob(f"**/{release}/**/vmlinux"), None) or next(debug.glob(f"**/vmlinux-{release}"), None)
        if vmlinux is None:
            print(f"drgn and crash: skipped, no debug symbols of {release} in {debug}")
            return
        inside = peers / "tmp" / f"lararium-{os.getpid()}"
        inside.mkdir(parents=True)
        try:
            for source, name in ((path, "dump"), (vmlinux, "vmlinux")):
                try:
                    os.link(source, inside / name)
                except OSError:
                    shutil.copy(source, inside / name)
            where = f"/tmp/{inside.name}"
            expected = {item["pid"]: item["comm"] for item in self.live["ps"]}
            if (peers / "usr/bin/drgn").exists():
                script = ("from drgn.helpers.linux import for_each_task\n"
                          "for t in for_each_task(prog):\n"
                          "    if t.pid == t.tgid: print(t.pid.value_(), t.comm.string_().decode(errors='replace'))\n")
                (inside / "list.py").write_text(script)
                done = subprocess.run(["chroot", peers, "drgn", "-q", "-c", f"{where}/dump", "-s", f"{where}/vmlinux",
                                       f"{where}/list.py"], capture_output=True, text=True, timeout=300)
                seen = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
                self.assertEqual(set(map(int, seen)) - {0}, set(expected), done.stderr[-1000:])
                print(f"drgn lists the same {len(expected)} processes")
            if (peers / "usr/bin/crash").exists():
                done = subprocess.run(["chroot", peers, "crash", "-s", f"{where}/vmlinux", f"{where}/dump"],
                                      input="ps -k\nps -u\nsys\nquit\n", capture_output=True, text=True, timeout=300)
                seen = set(map(int, re.findall(r"^[> ]\s+(\d+)\s+\d+\s+\d+\s+[0-9a-f]{16}", done.stdout, re.M)))
                threads = {item["pid"] for item in self.view("ps", path, "--threads")}
                self.assertEqual(seen - {0}, threads, done.stderr[-1000:] + done.stdout[-1000:])
                print(f"crash lists the same {len(threads)} threads")
        finally:
            shutil.rmtree(inside)


class WithVmcoreinfo(Dumps):
    """The guest handed its VMCOREINFO to QEMU, which puts it into the dump."""

    OPTIONS = {**Dumps.OPTIONS, "vmcoreinfo": True}

    def test_raw_and_lime(self):
        self.skipTest("they do not hold it")

    test_own_dump = test_own_dump_of_a_running_guest = test_damaged_dumps = test_gdb_opens_a_process = test_raw_and_lime


if __name__ == "__main__":
    harness.main()
