#!/usr/bin/env python3
"""`guard` beside what a guest does itself to the same functions: function tracers, kprobes and live patches go on working while
it is attached and afterwards; attached while they are active it works, or says why not.

$LARARIUM_QEMU is the version of QEMU, $LARARIUM_BACKEND the kind of memory, $LARARIUM_LA57 on or off.
"""

import contextlib
import functools
import pathlib
import re
import subprocess
import time

import harness
import test_guard

from lab import initrd, modules, paths

TRACING = "/sys/kernel/tracing"
FUNCTION = "security_bprm_check"
GUARD = ("--hooks", "exec,open,bind", "--deny", "exec path=/tmp/**", "--deny", "bind port=5001")
ROUNDS = 5


class Coexistence(harness.QuietGuestTest):
    OPTIONS = test_guard.GuardTest.OPTIONS

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.guest.check("cp /bin/busybox /tmp/true")
        program = initrd.compile_program(pathlib.Path(__file__).with_name("hooked_calls.c"))
        cls.guest.put(program.read_bytes(), "/bin/hooked_calls", mode=0o755)

    def setUp(self):
        super().setUp()
        self.addCleanup(self.guest.run, f"cd {TRACING}; echo 0 >events/kprobes/enable; echo >kprobe_events; echo nop >current_tracer; "
                                        "echo >set_ftrace_filter; echo >trace")

    @contextlib.contextmanager
    def guard(self, *mode):
        with test_guard.guard(self.guest, self.cache.name, *mode, *GUARD) as monitor:
            yield monitor
        self.assertEqual(monitor.end(), (0, ""))

    def execute(self):
        """Programs that nobody forbids, of each of which the function is called."""
        self.guest.check("for i in $(seq %d); do /bin/busybox true || exit 1; done" % ROUNDS)

    def assert_hooked(self, monitor):
        known = len(monitor.of("exec"))
        self.execute()
        self.assertEqual(self.guest.run("/tmp/true").code, 126)
        monitor.wait_for(lambda _: sum(r["fields"]["path"] == "/bin/busybox" for r in monitor.of("exec")[known:]) >= ROUNDS,
                         "executions")
        monitor.wait_for(lambda r: r["type"] == "exec" and r not in monitor.of("exec")[:known] and r["fields"]["verdict"] == "denied",
                         "denial")

    def assert_free(self):
        self.execute()
        self.assertEqual(self.guest.run("/tmp/true").code, 0)

    # --- Function tracers

    def traced(self, work):
        """How often the tracer saw the function during WORK."""
        self.guest.check(f"echo >{TRACING}/trace")
        work()
        return int(self.guest.check(f"grep -c {FUNCTION} {TRACING}/trace; true"))

    def trace(self, tracer):
        self.guest.check(f"cd {TRACING}; echo {FUNCTION} security_file_open >set_ftrace_filter; echo {tracer} >current_tracer")

    def check_tracers(self, *mode):
        for tracer in ("function", "function_graph"):
            with self.subTest(f"{tracer} comes later"):
                with self.guard(*mode) as monitor:
                    self.trace(tracer)
                    self.assertGreaterEqual(self.traced(lambda: self.assert_hooked(monitor)), ROUNDS)  # noqa: B023
                self.assertGreaterEqual(self.traced(self.assert_free), ROUNDS)
            with self.subTest(f"{tracer} is there and goes"):
                with self.guard(*mode) as monitor:
                    self.assertGreaterEqual(self.traced(lambda: self.assert_hooked(monitor)), ROUNDS)  # noqa: B023
                    self.guest.check(f"echo nop >{TRACING}/current_tracer")
                    self.assert_hooked(monitor)
                self.assert_free()

    def test_function_tracers(self):
        self.check_tracers()

    def test_function_tracers_with_breakpoints(self):
        self.check_tracers("--mode", "breakpoint")

    def test_who_calls_is_still_seen(self):
        """A tracer sees the function called by whom it was called before it was hooked."""
        def callers():
            self.traced(self.execute)
            return set(re.findall(rf"{FUNCTION} <-(\S+)", self.guest.check(f"cat {TRACING}/trace")))
        self.trace("function")
        before = callers()
        self.assertTrue(before)
        with self.guard():
            self.assertEqual(callers(), before)

    # --- kprobes

    @functools.cache  # noqa: B019 (of one guest)
    def call_site(self):
        """The function's caller and the offset of the call in it."""
        callers = ("exec_binprm", "bprm_execve", "search_binary_handler", "bprm_execve.part.0")
        # By address: the next one says where a function ends.
        lines = self.guest.check(f"grep -A1 -E ' ({FUNCTION}|{'|'.join(callers)})$' /proc/kallsyms", 300).splitlines()
        symbols = sorted((int(line.split()[0], 16), line.split()[2]) for line in lines if line != "--")
        target = next(address for address, name in symbols if name == FUNCTION)
        for (begin, name), (end, _) in zip(symbols, symbols[1:]):
            if name not in callers:
                continue
            code = subprocess.run([harness.BINARY, "read", str(self.guest.pid), hex(begin), str(end - begin)], check=True,
                                  capture_output=True).stdout
            for at in range(len(code) - 5):
                if code[at] == 0xe8 and begin + at + 5 + int.from_bytes(code[at + 1:at + 5], "little", signed=True) == target:
                    return name, at
        self.fail(f"nobody calls {FUNCTION}")

    def probe(self, *probes):
        self.guest.check(f"cd {TRACING}; " + "; ".join(f"echo '{probe}' >>kprobe_events || exit 1" for probe in probes) +
                         "; echo 1 >events/kprobes/enable")

    def probe_before(self, caller, offset):
        """Probes an instruction of the caller that is run before the call: the first that the kernel takes for one."""
        self.guest.check(f"cd {TRACING}; for i in $(seq 5 {offset - 1}); do echo \"p:lab_before {caller}+$i\" >>kprobe_events "
                         "2>/dev/null && exit 0; done; exit 1")
        self.guest.check(f"echo 1 >{TRACING}/events/kprobes/enable")

    def unprobe(self):
        self.guest.check(f"cd {TRACING}; echo 0 >events/kprobes/enable; echo >kprobe_events")

    def hits(self):
        found = re.findall(r"^\s*(lab_\w+)\s+(\d+)\s+(\d+)", self.guest.check(f"cat {TRACING}/kprobe_profile"), re.M)
        self.assertEqual([name for name, _, missed in found if int(missed)], [])
        return {name: int(count) for name, count, _ in found}

    def assert_hit(self, names, work):
        before = self.hits()
        work()
        after = self.hits()
        for name in names:
            self.assertGreaterEqual(after[name] - before[name], ROUNDS, name)

    ENTRIES = (f"p:lab_entry {FUNCTION}", f"r:lab_return {FUNCTION}", "p:lab_open security_file_open")
    NAMES = ("lab_entry", "lab_return", "lab_open")

    def test_kprobes_that_come_later(self):
        caller, offset = self.call_site()
        names = (*self.NAMES, "lab_before", "lab_call")
        with self.guard() as monitor:
            self.probe(*self.ENTRIES, f"p:lab_call {caller}+{offset}")
            self.probe_before(caller, offset)
            self.assert_hit(names, lambda: self.assert_hooked(monitor))
            time.sleep(1.5)  # some become jumps
            self.assert_hit(names, lambda: self.assert_hooked(monitor))
            self.unprobe()
            self.assert_hooked(monitor)
            self.assertEqual(monitor.of("gate_tampered"), [])
        self.assertEqual([r["sentence"] for r in monitor.of("guard_notice")], [])
        self.assert_free()

    def test_kprobes_that_are_there(self):
        caller, offset = self.call_site()
        names = (*self.NAMES, "lab_before")
        self.probe(*self.ENTRIES)
        self.probe_before(caller, offset)
        time.sleep(1.5)
        with self.guard() as monitor:
            self.assert_hit(names, lambda: self.assert_hooked(monitor))
        self.assertEqual([r["sentence"] for r in monitor.of("guard_notice") + monitor.of("gate_tampered")], [])
        self.assert_hit(names, self.assert_free)
        self.unprobe()
        self.assert_free()

    def test_a_kprobe_on_the_call_itself(self):
        caller, offset = self.call_site()
        self.probe(f"p:lab_call {caller}+{offset}")
        completed = harness.run_lararium("guard", self.guest.pid, *GUARD, cache=self.cache.name, check=False)
        self.assertNotEqual(completed.returncode, 0)
        self.assertIn(f"a kprobe of the guest's stands on the call of {FUNCTION}", completed.stderr)
        self.assertIn(f" in {caller}", completed.stderr)
        self.assert_hit(["lab_call"], self.assert_free)
        self.unprobe()
        # One that came later, and stays: it has a copy of the call that leads to the hooks.
        with self.guard() as monitor:
            self.probe(f"p:lab_call {caller}+{offset}")
            self.assert_hit(["lab_call"], lambda: self.assert_hooked(monitor))
        self.assertIn("a probe of the guest's stands on the call", " ".join(r["sentence"] for r in monitor.of("guard_notice")))
        self.assert_hit(["lab_call"], self.assert_free)
        self.unprobe()
        self.assert_free()
        with self.guard() as monitor:
            self.assert_hooked(monitor)
        self.assertEqual([r["sentence"] for r in monitor.of("guard_notice")], [])
        self.assert_free()

    def test_kprobes_with_breakpoints(self):
        with self.guard("--mode", "breakpoint") as monitor:
            self.probe(*self.ENTRIES)
            self.assert_hit(self.NAMES, lambda: self.assert_hooked(monitor))
        self.assert_hit(self.NAMES, self.assert_free)
        with self.guard("--mode", "breakpoint") as monitor:
            self.assert_hit(self.NAMES, lambda: self.assert_hooked(monitor))
            self.unprobe()
            self.assert_hooked(monitor)
        self.assert_free()

    # --- Live patches

    def live_patch(self):
        name = "lararium_live_patch"
        self.guest.put(modules.build(self.guest.kernel, name, paths.LAB / "live_patch").read_bytes(), "/tmp/live_patch.ko")
        self.guest.check("insmod /tmp/live_patch.ko")
        self.wait_for_transition()
        return name

    def wait_for_transition(self):
        self.guest.check("i=0; while grep -qs 1 /sys/kernel/livepatch/lararium_live_patch/transition; do "
                         "[ $i -lt 300 ] || exit 1; usleep 100000; i=$((i+1)); done", 90)

    def live_unpatch(self):
        self.guest.check("echo 0 >/sys/kernel/livepatch/lararium_live_patch/enabled")
        self.guest.check("i=0; until rmmod lararium_live_patch 2>/dev/null; do [ $i -lt 300 ] || exit 1; usleep 100000; "
                         "i=$((i+1)); done", 90)

    def patched(self, work):
        """How often the patched function was called during WORK."""
        def count():
            return int(self.guest.check("cat /sys/module/lararium_live_patch/parameters/calls"))
        before = count()
        work()
        return count() - before

    def assert_binds(self, denied):
        """Calls of the patched function, and one that does not come to it where it is denied."""
        output = self.guest.check("hooked_calls " + "bind:5011 " * ROUNDS + "bind:5001")
        self.assertEqual(output.split(), ["bind:5011", "ok"] * ROUNDS + ["bind:5001", "EPERM" if denied else "ok"])

    def assert_patched(self, denied):
        self.assertEqual(self.patched(lambda: self.assert_binds(denied)), ROUNDS + (not denied))

    def check_live_patch(self, *mode):
        with self.guard(*mode) as monitor:
            self.assert_binds(True)
            self.live_patch()
            self.assert_patched(True)
            self.live_unpatch()
            self.assert_binds(True)
            self.live_patch()
            self.assert_patched(True)
            self.assertEqual(len([r for r in monitor.of("bind") if r["fields"]["verdict"] == "denied"]), 4)
        self.assert_patched(False)
        with self.guard(*mode) as monitor:
            self.assert_patched(True)
            monitor.wait_for(lambda r: r["fields"].get("verdict") == "denied", "denial")
        self.assert_patched(False)
        self.live_unpatch()
        self.assert_binds(False)

    def test_live_patches(self):
        self.check_live_patch()

    def test_live_patches_with_breakpoints(self):
        self.check_live_patch("--mode", "breakpoint")


if __name__ == "__main__":
    harness.main()
