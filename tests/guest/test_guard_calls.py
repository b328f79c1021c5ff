#!/usr/bin/env python3
"""`guard`: each hook meets its call with the right arguments, each call that can be denied fails for its caller with the error
that was asked for, and nothing else does; with hooks in the guest and with breakpoints.

$LARARIUM_QEMU is the version of QEMU, $LARARIUM_BACKEND the kind of memory, $LARARIUM_LA57 on or off, $LARARIUM_CPUS how many.
"""

import os
import pathlib
import re

import harness
import test_guard

from lab import initrd

PROGRAM = "/bin/hooked_calls"
# What is called, what it comes to, and the record that tells of it: hook and fields. `child` is what the program says.
# Behind it the rule that forbids just that, or None.
CALLS = (
    ("fork", "ok", "fork", {"child_pid": "child", "child_tgid": "child", "thread": False}, None),
    ("exit:9", "ok", "exit", {"exit_status": 9, "signal": 0, "last_thread": True}, None),
    ("exec:/tmp/calls/true", "ok", "exec", {"path": "/tmp/calls/true", "filename": "/tmp/calls/true", "argc": 3,
                                            "argv": "/tmp/calls/true first second word"}, "path=/tmp/calls/true"),
    ("open:/tmp/calls/secret", "ok", "open", {"path": "/tmp/calls/secret", "write": False}, "path=/tmp/calls/secret write=no"),
    ("open_to_write:/tmp/calls/fresh", "ok", "open", {"path": "/tmp/calls/fresh", "write": True}, "path=/tmp/calls/fresh write=yes"),
    ("unlink:/tmp/calls/file", "ok", "unlink", {"path": "/tmp/calls/file", "directory": False}, "path=/tmp/calls/file"),
    ("rmdir:/tmp/calls/folder", "ok", "unlink", {"path": "/tmp/calls/folder", "directory": True}, "directory=yes"),
    ("rename:/tmp/calls/old", "ok", "rename", {"path": "/tmp/calls/old", "new_path": "/tmp/calls/old.new"}, "new_path=**/old.new"),
    ("mount:/tmp/calls/mnt", "ok", "mount", {"path": "/tmp/calls/mnt", "source": "some-name", "filesystem": "tmpfs", "flags": 2},
     "filesystem=tmpfs source=some-name"),
    ("move_mount:/tmp/calls/moved", "ok", "mount", {"path": "/tmp/calls/moved.to", "source": "/tmp/calls/moved.from"},
     "path=/tmp/calls/moved.to"),
    ("module:MODULE", "ok", "module", {"path": "MODULE", "from_memory": False}, "path=**/dummy.ko"),
    ("module_from_memory:MODULE", "ok", "module", {"path": "", "from_memory": True}, "from_memory=yes"),
    ("kexec:/tmp/calls/kernel", "ENOEXEC", "kexec", {"path": "/tmp/calls/kernel", "from_memory": False}, "from_memory=no"),
    ("kexec_from_memory", "ok", "kexec", {"path": "", "from_memory": True}, "from_memory=yes"),
    ("connect:4444", "ECONNREFUSED", "connect", {"family": "inet", "address": "127.0.0.1", "port": 4444, "protocol": "tcp"},
     "port=4444 family=inet"),
    ("connect:6/4444", "ECONNREFUSED", "connect", {"family": "inet6", "address": "::1", "port": 4444, "protocol": "tcp"},
     "address=::1"),
    ("connect:/tmp/calls/socket", "ENOENT", "connect", {"family": "unix", "address": "/tmp/calls/socket", "port": 0},
     "family=unix"),
    ("connect_udp:4447", "ok", "connect", {"family": "inet", "port": 4447, "protocol": "udp"}, "protocol=udp"),
    ("bind:5001", "ok", "bind", {"family": "inet", "address": "127.0.0.1", "port": 5001, "protocol": "tcp"}, "port=5001"),
    ("listen:5002", "ok", "listen", {"family": "inet", "port": 5002, "protocol": "tcp", "backlog": 17}, "port=5002"),
    ("accept:5003", "EAGAIN", "accept", {"family": "inet", "port": 5003, "protocol": "tcp"}, "port=5003"),
    ("setuid:1000", "ok", "credentials", {"old_uid": 0, "new_uid": 1000, "old_euid": 0, "new_euid": 1000}, "new_euid=1000"),
    ("setgid:1000", "ok", "credentials", {"old_egid": 0, "new_egid": 1000, "new_euid": 0}, "new_egid=1000"),
    ("capset:0x400", "ok", "credentials", {"new_capabilities": 0x400, "new_euid": 0}, "new_capabilities=0x400"),
    ("ptrace", "ok", "ptrace", {"target_pid": "child", "target_comm": "hooked_calls", "traceme": False},
     "target_comm=hooked_calls traceme=no"),
    ("write_memory", "ok", "ptrace", {"target_pid": "child", "target_comm": "hooked_calls", "traceme": False}, None),  # as above
    ("traceme", "ok", "ptrace", {"target_comm": "hooked_calls", "traceme": True}, "traceme=yes"),
    ("bpf:lab_denied", "ok", "bpf", {"program_type": "socket_filter", "program_name": "lab_denied", "instructions": 2},
     "program_name=lab_denied"),
    ("io_uring", "ok", "io_uring", {}, ""),
)
DENIED_BY_OTHERS = ("write_memory",)
# Like those that are denied, and not them.
OTHERS = {"exec:/tmp/calls/other": "ok", "open:/tmp/calls/kernel": "ok", "open_to_write:/tmp/calls/kernel": "ok",
          "unlink:/tmp/calls/other_file": "ok", "rename:/tmp/calls/other_old": "ok", "connect:4445": "ECONNREFUSED",
          "bind:5011": "ok", "listen:5012": "ok", "accept:5013": "EAGAIN", "setuid:1001": "ok", "setgid:1001": "ok",
          "capset:0x200": "ok", "bpf:lab_allowed": "ok", "bpf_map:lab": "ok", "fork": "ok"}


class Calls(harness.QuietGuestTest):
    OPTIONS = {**test_guard.GuardTest.OPTIONS, "cpus": int(os.environ.get("LARARIUM_CPUS", "2"))}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        program = initrd.compile_program(pathlib.Path(__file__).with_name("hooked_calls.c"))
        cls.guest.put(program.read_bytes(), PROGRAM, mode=0o755)
        cls.module = cls.guest.check("find /lib/modules -name dummy.ko").strip()
        cls.calls = [tuple(part.replace("MODULE", cls.module) if isinstance(part, str) else part for part in call)
                     for call in CALLS]

    def prepare(self):
        self.guest.check(
            "cd /; for m in moved.from moved.to mnt; do umount /tmp/calls/$m; done 2>/dev/null; rmmod dummy 2>/dev/null; "
            "rm -rf /tmp/calls; mkdir -p /tmp/calls/folder /tmp/calls/mnt /tmp/calls/moved.from /tmp/calls/moved.to; cd /tmp/calls; "
            "cp /bin/busybox true; printf '#!/bin/busybox true\\n' >other; chmod +x other; "
            "for f in secret file other_file old other_old kernel; do echo content >$f; done; mount -t tmpfs from moved.from")

    def call(self, words):
        """Results and children by what was called."""
        # The same module is loaded twice.
        split = [number + 1 for number, word in enumerate(words) if word.startswith("module:")]
        parts = [words[a:b] for a, b in zip([0, *split], [*split, len(words)])]
        output = self.guest.check("; rmmod dummy 2>/dev/null; ".join(f"{PROGRAM} {' '.join(part)}" for part in parts) +
                                  "; rmmod dummy 2>/dev/null; true", 300)
        found = {word: (result, re.search(r"child=(\d+)", rest)) for word, result, rest in
                 re.findall(r"^(\S+) (\S+) (.*)$", output, re.M)}
        self.assertEqual(set(found), set(words), output)
        return {word: result for word, (result, _) in found.items()}, {word: child and int(child[1]) for word, (_, child) in found.items()}

    def assert_told(self, monitor, call, child, verdict):
        word, _, hook, fields, _ = call
        wanted = {name: child if value == "child" else self.module if value == "MODULE" else value for name, value in fields.items()}

        def fits(record):
            return (record["type"] == hook and record["actor"] and record["actor"]["comm"] in ("hooked_calls", "true") and
                    record["fields"]["verdict"] == verdict and
                    all(record["fields"][name] == value for name, value in wanted.items()))
        record = monitor.wait_for(fits, f"{hook} of {word} with {wanted}")
        self.assertIn("init (1)", record["fields"]["parents"])
        self.assertLess(record["fields"]["cpu"], self.OPTIONS["cpus"])

    def check_arguments(self, *mode):
        self.prepare()
        words = [call[0] for call in self.calls]
        with test_guard.guard(self.guest, self.cache.name, *mode) as monitor:
            results, children = self.call(words)
            self.assertEqual(results, {call[0]: call[1] for call in self.calls})
            for call in self.calls:
                self.assert_told(monitor, call, children[call[0]], "allowed")
            hooks = {call[2] for call in self.calls}
            self.assertEqual(len(hooks), 17)
            notices = [record["sentence"] for record in monitor.of("guard_notice") + monitor.of("gate_tampered")]
            self.assertEqual(notices, [])
        self.assertEqual(monitor.end(), (0, ""))

    def check_denials(self, error, *mode):
        self.prepare()
        rules = [f"{call[2]} {call[4]}".strip() for call in self.calls if call[4] is not None]
        hooks = ",".join(sorted({call[2] for call in self.calls}))
        denied = [call for call in self.calls if call[4] is not None or call[0] in DENIED_BY_OTHERS]
        words = [call[0] for call in denied] + list(OTHERS)
        # process_vm_writev(2) itself makes EPERM of EACCES.
        expected = {call[0]: "EPERM" if call[0] == "write_memory" else error for call in denied}
        with test_guard.guard(self.guest, self.cache.name, *mode, "--hooks", hooks, "--error", error,
                              *(word for rule in rules for word in ("--deny", rule))) as monitor:
            results, children = self.call(words)
            self.assertEqual(results, {**expected, **OTHERS})
            for call in denied:
                if call[2] != "mount" or call[0] != "move_mount":
                    self.assert_told(monitor, call, children[call[0]], "denied")
        self.assertEqual(monitor.end(), (0, ""))
        # It was denied, not done. And now nobody denies.
        self.guest.check("cd /tmp/calls; [ -e file ] && [ -d folder ] && [ -e old ] && [ ! -e /sys/module/dummy ]")
        self.prepare()
        self.assertEqual(self.call([call[0] for call in denied])[0], {call[0]: call[1] for call in denied})

    def check_exceptions(self, *mode):
        self.prepare()
        with test_guard.guard(self.guest, self.cache.name, *mode, "--hooks", "exec,open,connect,bpf",
                              "--deny", "exec path=/tmp/**", "--allow", "exec path=/tmp/calls/other",
                              "--deny", "open path=/tmp/calls/** uid=0 write=no", "--allow", "open path=/tmp/calls/kernel,/tmp/calls/other",
                              "--deny", "connect port=4000-4999", "--allow", "connect port=4445",
                              "--deny", "bpf", "--allow", "bpf program_name=lab_a*") as monitor:
            results, _ = self.call(["exec:/tmp/calls/true", "exec:/tmp/calls/other", "open:/tmp/calls/secret",
                                    "open:/tmp/calls/kernel", "connect:4444", "connect:4445", "connect:5555", "bpf:lab_denied",
                                    "bpf:lab_allowed"])
            self.assertEqual(results, {
                "exec:/tmp/calls/true": "EPERM", "exec:/tmp/calls/other": "ok", "open:/tmp/calls/secret": "EPERM",
                "open:/tmp/calls/kernel": "ok", "connect:4444": "EPERM", "connect:4445": "ECONNREFUSED",
                "connect:5555": "ECONNREFUSED", "bpf:lab_denied": "EPERM", "bpf:lab_allowed": "ok"})
            record = monitor.wait_for(lambda r: r["type"] == "connect" and r["fields"]["port"] == 4445, "connection")
            self.assertEqual(record["fields"]["decided_by"], 'the rule "connect port=4445"')
        self.assertEqual(monitor.end(), (0, ""))

    def test_each_hook_has_the_arguments(self):
        self.check_arguments()

    def test_each_hook_has_the_arguments_with_breakpoints(self):
        self.check_arguments("--mode", "breakpoint")

    def test_what_is_denied_fails_and_nothing_else(self):
        self.check_denials("EPERM")

    def test_what_is_denied_fails_with_the_error_that_was_asked_for(self):
        self.check_denials("EACCES")

    def test_what_is_denied_fails_with_breakpoints(self):
        self.check_denials("EACCES", "--mode", "breakpoint")

    def test_exceptions(self):
        self.check_exceptions()

    def test_exceptions_with_breakpoints(self):
        self.check_exceptions("--mode", "breakpoint")


if __name__ == "__main__":
    harness.main()
