#!/usr/bin/env python3
"""What cannot be done: one clear sentence, the exit code of docs/exit_codes.md, and what can still be done is done."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

import harness
from guest_memory import GuestKernel, GuestMemory

USAGE, NOT_FOUND, AMBIGUOUS, PERMISSION, GONE, UNKNOWN_OS, NO_TYPES, FAULT = 2, 3, 4, 5, 6, 8, 9, 11
VIEWS = ("info", "ps", "files", "modules", "sockets", "mounts", "interfaces", "dmesg", "bpf", "symbols")
NAMES = {1: "io", 2: "usage", 3: "not_found", 4: "ambiguous", 5: "permission_denied", 6: "gone", 7: "unsupported",
         8: "unknown_os", 9: "no_types", 10: "corrupt", 11: "memory_fault"}


class Errors(unittest.TestCase):
    cache = None

    def assert_fails(self, code, *arguments, says=None):
        """The command fails with the code, says one sentence, and the same with --json as a document."""
        done = harness.run_lararium(*arguments, check=False, cache=self.cache)
        self.assertEqual(done.returncode, code, f"{arguments}: {done.stderr}")
        lines = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
        self.assertEqual(len(lines), 1, f"{arguments}: not one sentence: {done.stderr}")
        self.assertTrue(lines[0].startswith("lararium: "), lines[0])
        if says:
            self.assertRegex(lines[0], says)
        done = harness.run_lararium(*arguments, "--json", check=False, cache=self.cache)
        self.assertEqual(done.returncode, code, f"{arguments} --json: {done.stderr}")
        error = json.loads(done.stdout)["error"]
        self.assertEqual((error["exit_code"], error["code"]), (code, NAMES[code]))
        return lines[0]


class WithoutGuest(Errors):
    def test_no_such_vm(self):
        for name in ("no-such-vm", "4194304", "/nonexistent/dump", "./nothing", "12345678-0000-0000-0000-000000000000"):
            with self.subTest(name=name):
                self.assert_fails(NOT_FOUND, "ps", name)

    def test_a_process_that_is_no_vm(self):
        self.assert_fails(NOT_FOUND, "ps", os.getpid(), says=str(os.getpid()))
        self.assert_fails(NOT_FOUND, "ps", 1)

    def test_usage(self):
        for words in (("pss",), ("ps", "--no-such-option"), ("maps",), ("maps", "vm", "not-a-number"),
                      ("hexdump", "vm", "0x1000", "much"), ("read", "vm"), ("top", "--interval", "x"),
                      ("ps", "a", "b", "c"), ("dump", "vm", "file", "--format", "floppy"), ("procmem", "vm", "1")):
            with self.subTest(words=words):
                self.assert_fails(USAGE, *words)

    def test_files_that_are_no_dumps(self):
        with tempfile.TemporaryDirectory() as folder:
            for name, content in (("empty", b""), ("random", os.urandom(1 << 20)), ("text", b"hello\n" * 1000)):
                path = pathlib.Path(folder, name)
                path.write_bytes(content)
                with self.subTest(name=name):
                    done = harness.run_lararium("ps", path, "--json", check=False)
                    self.assertIn(done.returncode, (7, 8, 10), done.stderr)
                    self.assertEqual(json.loads(done.stdout)["error"]["exit_code"], done.returncode)
            self.assert_fails(NOT_FOUND, "ps", folder)

    def test_profile_that_is_none(self):
        with tempfile.TemporaryDirectory() as folder, harness.bare_qemu() as vm:
            path = pathlib.Path(folder, "isf.json")
            path.write_text('{"metadata": {}, "symbols": 7}')
            done = harness.run_lararium("ps", vm.pid, "--profile", path, check=False)
            self.assertIn(done.returncode, (7, 10), done.stderr)
            self.assert_fails(NOT_FOUND, "ps", vm.pid, "--profile", pathlib.Path(folder, "missing"))


class Firmware(Errors):
    """A VM that has not booted."""

    def test_without_an_operating_system(self):
        with harness.bare_qemu("-name", "firmware") as vm, tempfile.TemporaryDirectory() as folder:
            time.sleep(1)
            for view in VIEWS:
                with self.subTest(view=view):
                    self.assert_fails(UNKNOWN_OS, view, vm.pid)
            self.assert_fails(UNKNOWN_OS, "maps", vm.pid, 1)
            self.assert_fails(UNKNOWN_OS, "profile", vm.pid)

            rows = json.loads(harness.run_lararium("vms", "--json").stdout)["items"]
            row = next(row for row in rows if row["pid"] == vm.pid)
            self.assertEqual((row["name"], row["state"], row["guest"]), ("firmware", "running", None))
            self.assertTrue(row["guest_error"])
            # The reset vector at the end of the firmware's first MiB holds a far jump.
            done = harness.run_lararium("hexdump", vm.pid, "phys:0xf0000", "16", "--json", check=False)
            self.assertIn(done.returncode, (0, FAULT), done.stderr)
            done = subprocess.run([harness.BINARY, "read", str(vm.pid), "phys:0x0", "4096"], capture_output=True)
            self.assertEqual((done.returncode, len(done.stdout)), (0, 4096), done.stderr)
            self.assert_fails(FAULT, "hexdump", vm.pid, "phys:0x100000000000", 16)
            path = pathlib.Path(folder, "dump")
            harness.run_lararium("dump", vm.pid, path)
            self.assert_fails(UNKNOWN_OS, "ps", path)
            low = subprocess.run([harness.BINARY, "read", path, "phys:0x400", "256"], capture_output=True)
            self.assertEqual(low.returncode, 0, low.stderr)
            top = harness.run_lararium("top", vm.pid, "--once", "--json", "--interval", "0.1", check=False)
            self.assertIn(top.returncode, (0, UNKNOWN_OS), top.stderr)

    def test_a_vm_that_ends(self):
        with harness.bare_qemu() as vm:
            top = subprocess.Popen([harness.BINARY, "top", str(vm.pid), "--once", "--interval", "5"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            time.sleep(2)
            vm.kill()
            vm.wait()
            _, errors = top.communicate(timeout=30)
            self.assertIn(top.returncode, (GONE, UNKNOWN_OS), errors)
            self.assert_fails(NOT_FOUND, "ps", vm.pid)

    @unittest.skipUnless(os.geteuid() == 0 and shutil.which("setpriv"), "needs root and setpriv")
    def test_no_permission(self):
        with harness.bare_qemu() as vm, tempfile.TemporaryDirectory() as folder:
            program = pathlib.Path(folder, "lararium")
            shutil.copy(harness.BINARY, program)
            pathlib.Path(folder).chmod(0o755)
            program.chmod(0o755)
            nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", program]
            done = subprocess.run([*nobody, "ps", str(vm.pid), "--json"], capture_output=True, text=True)
            self.assertEqual(done.returncode, PERMISSION, done.stderr)
            self.assertEqual(json.loads(done.stdout)["error"]["code"], "permission_denied")
            self.assertRegex(done.stderr, "root|user")
            done = subprocess.run([*nobody, "vms", "--json"], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
            row = next(row for row in json.loads(done.stdout)["items"] if row["pid"] == vm.pid)
            self.assertFalse(row["readable"])
            self.assertTrue(row["problems"])


class Booted(harness.GuestTest, Errors):
    OPTIONS = {"backend": "memfd", "memory": "512M"}

    def command(self, *words):
        return [str(harness.BINARY), *map(str, words)]

    def environment(self):
        return {**os.environ, "LARARIUM_CACHE": self.cache.name}

    def assert_fails(self, code, *arguments, **options):
        cache, self.cache = self.cache, self.cache.name
        try:
            return super().assert_fails(code, *arguments, **options)
        finally:
            self.cache = cache

    def test_what_is_not_in_the_guest(self):
        pid = self.guest.pid
        for command in ("maps", "env"):
            self.assert_fails(NOT_FOUND, command, pid, 4000000)
        self.assert_fails(NOT_FOUND, "files", pid, 4000000)
        self.assert_fails(NOT_FOUND, "ps", pid, "--pid", 4000000)
        self.assert_fails(NOT_FOUND, "hexdump", pid, "no_such_symbol")
        self.assert_fails(FAULT, "hexdump", pid, "0x10", 16)
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/file"
            self.assert_fails(NOT_FOUND, "recover", pid, "/no/such/file", "-o", path)
            self.assertFalse(os.path.exists(path), "a file that is not found leaves none behind")
            self.assert_fails(NOT_FOUND, "procmem", pid, 4000000, "-o", path)
            self.assertFalse(os.path.exists(path))

    def test_closed_output(self):
        for command in ("ps", "symbols"):
            process = subprocess.Popen(self.command(command, self.guest.pid), stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, env=self.environment())
            if command == "symbols":
                process.stdout.read(10)
            process.stdout.close()
            errors = process.stderr.read()
            process.stderr.close()
            process.wait(60)
            self.assertIn(process.returncode, (141, 0) if command == "ps" else (141,), errors)
            self.assertEqual(errors, b"")

    def test_full_disk(self):
        with open("/dev/full", "wb") as full:
            for words in (("ps",), ("ps", "--json"), ("symbols",)):
                done = subprocess.run(self.command(words[0], self.guest.pid, *words[1:]), stdout=full,
                                      stderr=subprocess.PIPE, text=True, env=self.environment())
                self.assertEqual(done.returncode, 1, done.stderr)
                self.assertRegex(done.stderr, "(?i)no space")
        done = harness.run_lararium("recover", self.guest.pid, "/init", "-o", "/dev/full", cache=self.cache.name,
                                    check=False)
        self.assertIn(done.returncode, (1, NOT_FOUND), done.stderr)
        if shutil.which("mount") and os.geteuid() == 0:
            with tempfile.TemporaryDirectory() as folder:
                if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", folder]).returncode:
                    self.skipTest("cannot mount a small file system")
                try:
                    self.assert_fails(1, "dump", self.guest.pid, f"{folder}/dump", says="(?i)no space")
                    self.assertEqual(os.listdir(folder), [], "half a dump is left")
                finally:
                    subprocess.run(["umount", folder], check=True)

    def test_signal_ends_a_paused_dump(self):
        with tempfile.TemporaryDirectory() as folder:
            process = subprocess.Popen(self.command("dump", self.guest.pid, f"{folder}/dump", "--pause"),
                                       stderr=subprocess.DEVNULL, env=self.environment())
            time.sleep(0.15)
            process.send_signal(signal.SIGINT)
            process.wait(60)
            self.assertIn(process.returncode, (-signal.SIGINT, 0))
            if process.returncode:
                self.assertEqual(os.listdir(folder), [], "half a dump is left")
            self.assertEqual(self.guest.qmp("query-status")["status"], "running")

    def test_existing_file_is_kept(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "dump")
            path.write_text("mine")
            done = harness.run_lararium("dump", self.guest.pid, path, cache=self.cache.name, check=False)
            self.assertNotEqual(done.returncode, 0)
            self.assertEqual(path.read_text(), "mine")

    def test_without_type_information(self):
        """The ISF that was exported before serves a kernel whose BTF is gone; that of another kernel is refused."""
        with tempfile.TemporaryDirectory() as folder:
            own, foreign = f"{folder}/own.json", f"{folder}/foreign.json"
            self.lararium("profile", "--isf", own)
            self.guest.qmp("stop")
            memory = GuestMemory(self.guest, 512 << 20)
            try:
                expected = self.items("ps")
                kernel = GuestKernel(memory, lambda command, *words: self.lararium(command, *words))
                isf = json.loads(pathlib.Path(own).read_text())
                isf["symbols"]["linux_banner"]["address"] += 0x1000
                pathlib.Path(foreign).write_text(json.dumps(isf))
                self.assert_fails(NOT_FOUND, "ps", self.guest.pid, "--profile", foreign, says="another kernel")
                begin, end = kernel.symbol("__start_BTF"), kernel.symbol("__stop_BTF")
                memory.write(begin, bytes(end - begin))
                self.assert_fails(NO_TYPES, "ps", self.guest.pid, "--no-cache", says="--profile")
                done = harness.run_lararium("ps", self.guest.pid, "--profile", own, "--no-cache", "--json")
                self.assertEqual(json.loads(done.stdout)["items"], expected)
                done = harness.run_lararium("symbols", self.guest.pid, "init_task", "--no-cache", check=False)
                self.assertIn(done.returncode, (0, NO_TYPES), done.stderr)
            finally:
                memory.undo()
                memory.close()
                self.guest.qmp("cont")


if __name__ == "__main__":
    harness.main()
