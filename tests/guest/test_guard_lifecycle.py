#!/usr/bin/env python3
"""`guard` through what happens to a VM: reboot, kexec, snapshots, pause, migration with and without a monitor on the other
side, killed monitors in each mode, a tool that is killed, and many attachments."""

import os
import random
import subprocess
import time
import unittest

import harness
from test_guard import MODE, Monitor, guard

from lab import initrd, kernels
from lab.guest import Guest

KILLS = int(os.environ.get("LARARIUM_KILLS", "10"))
CYCLES = int(os.environ.get("LARARIUM_CYCLES", "20"))
# In several threads TCG loses a younger kernel now and then while it boots (ADR 5), and here nobody boots it once more.
BOOTS_ANEW = {"tcg_threads": "single"}
DENY = ("--hooks", "exec,fork,exit,open", "--deny", "exec path=/tmp/**")


def is_started(record):
    return record["type"] == "guard_started"


class Lifecycle(harness.GuestTest):
    def assert_denied(self, guest=None):
        guest = guest or self.guest
        guest.check("[ -x /tmp/true ] || cp /bin/busybox /tmp/true")
        self.assertEqual(guest.run("/tmp/true").code, 126)

    def assert_allowed(self, guest=None):
        self.assertEqual((guest or self.guest).run("/tmp/true").code, 0)

    def assert_unwatched(self, guest=None):
        """With no monitor the guest goes on by the default verdict; rules in the guest hold for two more seconds."""
        time.sleep(2.5 if "sim" in MODE else 0)
        self.assert_allowed(guest)

    def assert_quiet(self, guest=None):
        log = (guest or self.guest).check("dmesg")
        for word in ("BUG:", "Oops", "stall", "lockup", "general protection", "unable to handle"):
            self.assertNotIn(word, log)


class Reboot(Lifecycle):
    OPTIONS = {"backend": "memfd", "reboot": True, **BOOTS_ANEW}

    def test_the_next_kernel_is_hooked_too(self):
        with guard(self.guest, self.cache.name, *DENY) as monitor:
            self.assert_denied()
            for round_ in range(2):
                self.guest.qmp("system_reset")
                self.guest.wait_boot()
                monitor.wait_for(lambda r: is_started(r) and len(monitor.of("guard_started")) > round_ + 1,  # noqa: B023
                                 "the next start", 90)
                self.assert_denied()
            self.assertEqual(monitor.of("gate_tampered"), [])
        self.assertEqual(monitor.end()[0], 0)
        self.assert_allowed()
        self.assert_quiet()


class Kexec(Lifecycle):
    @classmethod
    def setUpClass(cls):
        cls.files = [kernels.fetch(harness.KERNEL).image, initrd.build(kernels.fetch(harness.KERNEL))]
        cls.OPTIONS = {"backend": "memfd", **BOOTS_ANEW, "modules": ("virtio_blk",), "extra": [
            word for number, file in enumerate(cls.files) for word in (
                "-drive", f"file={file},format=raw,readonly=on,if=none,id=file{number}",
                "-device", f"virtio-blk-pci,drive=file{number},serial=file{number}")]}
        super().setUpClass()

    def test_the_next_kernel_is_hooked_too(self):
        for number, file in enumerate(self.files):
            self.guest.check(f"for d in /sys/block/vd?; do [ $(cat $d/serial) = file{number} ] && "
                             f"head -c {file.stat().st_size} /dev/${{d##*/}} >/tmp/file{number}; done; "
                             f"[ -s /tmp/file{number} ]", timeout=120)
        with guard(self.guest, self.cache.name, *DENY) as monitor:
            self.assert_denied()
            self.guest.start("workload kexec /tmp/file0 /tmp/file1")
            self.guest.wait_boot()
            monitor.wait_for(lambda r: is_started(r) and len(monitor.of("guard_started")) > 1, "the next start", 90)
            self.assert_denied()
            self.assertEqual(monitor.of("gate_tampered"), [])
        self.assertEqual(monitor.end()[0], 0)
        self.assert_quiet()


class Snapshots(Lifecycle):
    OPTIONS = {"backend": "memfd", "disk": "64M:qcow2", "modules": ("virtio_blk",), "control": True}

    def test_pause_and_snapshots(self):
        self.guest.check("cp /bin/busybox /tmp/true")
        self.assertEqual(self.guest.hmp("savevm unhooked", timeout=120).strip(), "")
        with guard(self.guest, self.cache.name, *DENY) as monitor:
            self.assert_denied()
            self.guest.qmp("stop")
            time.sleep(0.5)
            self.guest.qmp("cont")
            self.assert_denied()
            self.assertEqual(self.guest.hmp("savevm hooked", timeout=120).strip(), "")
            self.assert_denied()
            for name in ("hooked", "unhooked"):  # what is not there any more is put back
                self.assertEqual(self.guest.hmp(f"loadvm {name}", timeout=120).strip(), "")
                self.guest.console.synchronise()
                deadline = time.monotonic() + 20
                while self.guest.run("/tmp/true").code != 126:
                    self.assertLess(time.monotonic(), deadline, name)
        self.assertIsNotNone(monitor.end()[0])
        self.assert_allowed()
        # A guest that wakes up hooked, with no monitor.
        self.assertEqual(self.guest.hmp("loadvm hooked", timeout=120).strip(), "")
        self.guest.console.synchronise()
        self.assert_unwatched()
        with guard(self.guest, self.cache.name, *DENY) as monitor:
            self.assertTrue(monitor.started()["fields"]["adopted"])
            self.assert_denied()
        self.assertEqual(monitor.end()[0], 0)
        self.assert_allowed()
        self.assert_quiet()


class Migration(Lifecycle):
    OPTIONS = {"backend": "memfd", "memory": "256M", "control": True}

    def migrate(self, target):
        address = f"unix:{target.folder}/migration.sock"
        target.qmp("migrate-incoming", uri=address)
        self.guest.qmp("migrate", uri=address)
        deadline = time.monotonic() + 120
        while (status := self.guest.qmp("query-migrate").get("status")) != "completed":
            self.assertNotIn(status, ("failed", "cancelled"))
            self.assertLess(time.monotonic(), deadline, status)
            time.sleep(0.1)

    def test_hooks_are_adopted_on_arrival(self):
        self.guest.check("(while :; do /bin/busybox true; done) >/dev/null 2>&1 &")
        with Guest(harness.KERNEL, wait=False, extra=["-incoming", "defer"], **self.OPTIONS) as target, \
                guard(self.guest, self.cache.name, *DENY) as source_monitor:
            self.assert_denied()
            self.migrate(target)
            source_monitor.process.kill()
            target.console.synchronise()
            self.assert_unwatched(target)
            with guard(target, self.cache.name, *DENY) as monitor:
                self.assertTrue(monitor.started()["fields"]["adopted"])
                self.assert_denied(target)
            self.assertEqual(monitor.end()[0], 0)
            self.assert_allowed(target)
            self.assert_quiet(target)


class Hotplug(Lifecycle):
    OPTIONS = {"backend": "memfd", "cpus": 1, "control": True, "extra": ["-smp", "1,maxcpus=2"]}
    ARGUMENTS = ()

    def set_online(self, online):
        # Kernels differ in whether it goes online by itself.
        self.guest.check("i=0; until [ -e /sys/devices/system/cpu/cpu1/online ]; do [ $i -lt 100 ] || exit 1; usleep 100000; "
                         f"i=$((i+1)); done; echo {online} >/sys/devices/system/cpu/cpu1/online; "
                         f"[ $(cat /sys/devices/system/cpu/cpu1/online) = {online} ]")

    def assert_denied_on(self, monitor, cpus):
        for cpu in cpus:
            known = len(monitor.records)
            self.assertEqual(self.guest.run(f"taskset {1 << cpu:x} /tmp/true").code, 126, f"CPU {cpu}")
            monitor.wait_for(lambda r: r not in monitor.records[:known] and  # noqa: B023
                             r["fields"].get("verdict") == "denied" and r["fields"]["cpu"] == cpu, "denial")  # noqa: B023

    def test_a_cpu_that_comes_and_goes(self):
        if self.guest.run("dmesg | grep -q 'plus 0 hotplug CPUs'").code == 0:
            self.skipTest("this kernel (6.9 and later) takes no new CPU under an emulator")
        self.guest.check("cp /bin/busybox /tmp/true")
        with guard(self.guest, self.cache.name, *DENY, *self.ARGUMENTS) as monitor:
            self.assert_denied_on(monitor, [0])
            (place,) = [each for each in self.guest.qmp("query-hotpluggable-cpus") if "qom-path" not in each]
            self.guest.qmp("device_add", driver=place["type"], id="second", **place["props"])
            self.set_online(1)
            time.sleep(0.5)
            self.assert_denied_on(monitor, [0, 1])
            self.set_online(0)
            self.assert_denied_on(monitor, [0])
            self.set_online(1)
            time.sleep(0.5)
            self.assert_denied_on(monitor, [0, 1])
            self.assertEqual([r["sentence"] for r in monitor.of("gate_tampered")], [])
        self.assertEqual(monitor.end(), (0, ""))
        self.assert_allowed()
        self.assert_quiet()


@unittest.skipIf("sim" in MODE, "breakpoints are another mode")
class HotplugWithBreakpoints(Hotplug):
    ARGUMENTS = ("--mode", "breakpoint")


@unittest.skipIf("sim" in MODE, "breakpoints are another mode")
class CpuWithoutBreakpoints(Lifecycle):
    OPTIONS = Hotplug.OPTIONS

    def test_an_end_when_a_cpu_has_no_breakpoints(self):
        """QEMU refuses to take from it what it never had: those of the others must go all the same."""
        if self.guest.run("dmesg | grep -q 'plus 0 hotplug CPUs'").code == 0:
            self.skipTest("this kernel (6.9 and later) takes no new CPU under an emulator")
        self.guest.check("cp /bin/busybox /tmp/true")
        with guard(self.guest, self.cache.name, *DENY, "--mode", "breakpoint") as monitor:
            self.assert_denied()
            (place,) = [each for each in self.guest.qmp("query-hotpluggable-cpus") if "qom-path" not in each]
            self.guest.qmp("device_add", driver=place["type"], id="second", **place["props"])
        self.assertEqual(monitor.end(), (0, ""))
        self.assert_allowed()
        self.assert_quiet()


class HotplugMemory(Lifecycle):
    OPTIONS = {"backend": "memfd", "memory": "512M", "max_memory": "2G"}

    def test_who_lies_in_new_memory_is_seen_too(self):
        with guard(self.guest, self.cache.name, *DENY) as monitor:
            self.assert_denied()
            self.guest.hotplug_memory("512M")
            monitor.wait_for(lambda r: r["type"] == "guard_notice" and "plugged in" in r["sentence"], "notice")
            monitor.wait_for(lambda r: is_started(r) and len(monitor.of("guard_started")) > 1, "the next start", 60)
            # So many processes that some have their stacks in the new memory.
            jobs = [self.guest.start("workload spawn 40") for _ in range(5)]
            self.guest.check("i=0; while [ $i -lt 60 ]; do /tmp/true 2>/dev/null; [ $? = 126 ] || exit 1; i=$((i+1)); done",
                             timeout=120)
            self.assertEqual([r["sentence"] for r in monitor.of("gate_tampered")], [])
            for job in jobs:
                job.stop("KILL")
        self.assertEqual(monitor.end(), (0, ""))
        self.assert_allowed()
        self.assert_quiet()


class Kills(Lifecycle):
    def storm(self):
        self.guest.check("(while :; do /bin/busybox true; cat /proc/self/stat >/tmp/x; done) >/dev/null 2>&1 & "
                         "echo $! >/tmp/storm")
        self.addCleanup(lambda: self.guest.run("kill $(cat /tmp/storm)"))

    def kill(self, *arguments):
        self.storm()
        times = []
        for _ in range(KILLS):
            monitor = Monitor(self.guest, self.cache.name, *arguments)
            time.sleep(random.uniform(0, 1.2))
            monitor.process.kill()
            begin = time.monotonic()
            monitor.end()
            self.assertEqual(self.guest.run("echo alive", timeout=30).output.strip(), "alive")
            times.append(time.monotonic() - begin)
        print(f"{KILLS} kills, an answer after {max(times):.2f} s at most")
        self.assert_quiet()
        # What QEMU holds is what it held: no userfaultfd, no socket of the stub's.
        time.sleep(1)
        names = [os.readlink(f"/proc/{self.guest.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{self.guest.pid}/fd")]
        self.assertEqual([name for name in names if "userfaultfd" in name], [])
        with open(f"/proc/{self.guest.pid}/net/unix", encoding="utf-8") as file:
            ours = [line.split()[6] for line in file if "/run/lararium-" in line]
        self.assertEqual([inode for inode in ours if f"socket:[{inode}]" in names], [])

    def test_lares(self):
        self.kill(*DENY)

    def test_breakpoints(self):
        self.kill(*DENY, "--mode", "breakpoint")

    def test_a_killed_tool(self):
        tool = harness.BINARY.parent / "example_security_tool"
        ask = ("--ask", "exec") if "sim" in MODE else ()
        self.guest.check("cp /bin/busybox /tmp/true")
        with guard(self.guest, self.cache.name, "--hooks", "exec", "--tool", str(tool), "--default", "deny", *ask) as monitor:
            self.assertEqual(self.guest.run("/bin/busybox true").code, 0)
            self.assertEqual(self.guest.run("/tmp/true").code, 126)
            child = int(open(f"/proc/{monitor.process.pid}/task/{monitor.process.pid}/children").read().split()[0])
            os.kill(child, 9)
            self.guest.run("/bin/busybox true")  # whose first event, its own or the shell's, is decided by nobody
            record = monitor.wait_for(lambda r: r["fields"].get("decided_by", "").startswith("default"), "default verdict")
            self.assertEqual(record["fields"]["verdict"], "denied")
            time.sleep(1.2)
            self.assertEqual(self.guest.run("/bin/busybox true").code, 0)

    def test_attached_many_times(self):
        self.storm()

        def low_memory():
            return subprocess.run([harness.BINARY, "read", str(self.guest.pid), "phys:0", str(0xa0000)],
                                  capture_output=True, check=True).stdout

        def attach():
            completed = harness.run_lararium("guard", self.guest.pid, "--hooks", "exec,fork,exit,open", "--for", 0,
                                             cache=self.cache.name)
            self.assertNotIn("notice", completed.stdout)
        attach()
        before, descriptors = low_memory(), len(os.listdir(f"/proc/{self.guest.pid}/fd"))
        for _ in range(CYCLES):
            attach()
        self.assertEqual(low_memory(), before)
        time.sleep(0.5)  # QEMU closes a monitor's connection when it gets to it
        self.assertEqual(len(os.listdir(f"/proc/{self.guest.pid}/fd")), descriptors)
        self.assert_quiet()


if __name__ == "__main__":
    harness.main()
