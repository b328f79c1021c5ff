#!/usr/bin/env python3
"""`lararium vms` and `ps` on every way of running a VM, compared with what the guest says.

What a VM can be made of (kinds of memory, machine types, QEMU's versions, monitors, users, paging) is combined so that
each pair that matters meets in some guest, not each with each: see VARIANTS. Those marked ci run in `make test`, all
with $LARARIUM_WHOLE=1 (`make test-all`). $LARARIUM_VARIANTS is a regular expression of those to run.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import unittest
import uuid

import harness
from lab import qmp
from lab.errors import LabError, Skip
from lab.guest import Guest
from lab.libvirt import LibvirtGuest
from lab.qemu import size

WHOLE = os.environ.get("LARARIUM_WHOLE") == "1"
CHOSEN = re.compile(os.environ.get("LARARIUM_VARIANTS", ""))
IDENTITY = "6f1c9a3e-5d2b-4c7f-9a10-0123456789ab"

# What a guest is made of; `ci`: in the short run; `libvirt`: a domain. The rest are fields of lab.qemu.Options.
VARIANTS = {
    "pc, anonymous memory, QEMU 7.2, sandbox, no KASLR":
        dict(machine="pc", backend="anon", qemu="7.2", sandbox=True, kaslr=False, ci=True),
    "q35, memfd, QEMU 10.0, both monitors, 4 levels":
        dict(machine="q35", backend="memfd", qemu="10.0", monitor="both", la57=False, debug_threads=True, ci=True),
    "microvm, file, QEMU 7.2, page table isolation":
        dict(machine="microvm", backend="file", qemu="7.2", pti=True),
    "microvm, private, QEMU 10.0, no monitor":
        dict(machine="microvm", backend="private", qemu="10.0", monitor="none", pti=False),
    "q35, private, QEMU 10.0, human monitor, gives up root":
        dict(machine="q35", backend="private", qemu="10.0", monitor="hmp", run_as="nobody"),
    "pc, anonymous, QEMU 10.0, no monitor, 5 levels, sandbox":
        dict(machine="pc", backend="anon", qemu="10.0", monitor="none", la57=True, sandbox=True),
    "q35, memfd, QEMU 7.2, no monitor, page table isolation":
        dict(machine="q35", backend="memfd", qemu="7.2", monitor="none", pti=True, ci=True),
    "q35, huge pages, QEMU 7.2":
        dict(machine="q35", backend="hugetlbfs", qemu="7.2"),
    "pc, two nodes of memfd, QEMU 10.0, another user, 5 levels, page table isolation":
        dict(machine="pc", backend="memfd", numa=2, qemu="10.0", start_as="nobody", la57=True, pti=True),
    "q35, two nodes of anonymous memory, QEMU 7.2, human monitor":
        dict(machine="q35", backend="anon", numa=2, qemu="7.2", monitor="hmp"),
    "q35, two nodes of files, QEMU 7.2, no monitor":
        dict(machine="q35", backend="file", numa=2, qemu="7.2", monitor="none"),
    "q35, 5 GiB of anonymous memory, QEMU 7.2":
        dict(machine="q35", backend="anon", memory="5G", qemu="7.2"),
    "pc, 5 GiB of memfd, QEMU 10.0":
        dict(machine="pc", backend="memfd", memory="5G", qemu="10.0"),
    "pc, 5 GiB of private memory, QEMU 7.2, no monitor":
        dict(machine="pc", backend="private", memory="5G", qemu="7.2", monitor="none"),
    "q35, 5 GiB of memfd, QEMU 10.0, no monitor":
        dict(machine="q35", backend="memfd", memory="5G", qemu="10.0", monitor="none"),
    "q35, memory plugged in, memfd, QEMU 7.2":
        dict(machine="q35", backend="memfd", max_memory="2G", qemu="7.2"),
    "pc, memory plugged in, anonymous, QEMU 10.0":
        dict(machine="pc", backend="anon", max_memory="2G", qemu="10.0"),
    "a libvirt domain, anonymous memory":
        dict(machine="q35", backend="anon", libvirt=True),
    "a libvirt domain, memfd, vmcoreinfo":
        dict(machine="pc", backend="memfd", libvirt=True, vmcoreinfo=True),
}
MAPPED = ("memfd", "file", "hugetlbfs")


def processes_of(guest):
    """(pid, comm) as the guest's own ps lists them."""
    lines = guest.check("ps -o pid,comm").splitlines()[1:]
    return {(int(pid), comm.strip()) for pid, _, comm in (line.strip().partition(" ") for line in lines)}


class Targets(unittest.TestCase):
    def setUp(self):
        self.bases = {}

    def assert_sees_its_processes(self, guest, *options):
        for attempt in range(3):  # on a busy machine a kernel thread may come just between the looks
            before = processes_of(guest)
            document = json.loads(harness.run_lararium("ps", guest.pid, "--json", *options).stdout)
            after = processes_of(guest)
            seen = {(item["pid"], item["comm"]) for item in document["items"]}
            names = {pid: comm for pid, comm in seen}
            # ps itself and what came and went between the looks is in one list only.
            stay = {(pid, comm) for pid, comm in before & after}
            missing = {entry for entry in stay if names.get(entry[0], "\0")[:15] != entry[1][:15]
                       and not names.get(entry[0], "").startswith("kworker")}
            extra = {pid for pid in names if pid not in {p for p, _ in before | after}}
            if not missing and not extra:
                break
        self.assertEqual(missing, set(), "in the guest's ps, not seen from outside")
        self.assertEqual(extra, set(), "seen from outside, not in the guest's ps")
        self.assertGreater(len(stay), 20)
        return document

    def row(self, pid):
        document = json.loads(harness.run_lararium("vms", "--json").stdout)
        return next(item for item in document["items"] if item["pid"] == pid)

    def assert_listed(self, guest, options):
        row = self.row(guest.pid)
        self.assertEqual(row["name"], guest.name)
        self.assertEqual(row["accelerator"], "tcg")
        self.assertEqual(row["vcpus"], options.get("cpus", 2))
        self.assertEqual(row["ram_bytes"], size(options.get("memory", "512M")))
        self.assertTrue(row["readable"])
        self.assertIsNotNone(row["guest"], row)
        self.assertEqual(row["guest"]["release"], guest.check("uname -r").strip())
        self.assertEqual(row["guest"]["hostname"], guest.check("hostname").strip())
        access = row["memory_access"]
        self.assertEqual("mapped" in access, options["backend"] in MAPPED, access)
        monitor = options.get("monitor", "qmp")
        if monitor == "none":
            self.assertIn(row["state"], ("unknown", "running"))
        else:
            self.assertEqual(row["state"], "running")
        return row

    def assert_info(self, guest, options):
        info = json.loads(harness.run_lararium("info", guest.pid, "--json").stdout)["item"]
        base = int(guest.check("grep -w -m1 _text /proc/kallsyms").split()[0], 16)
        self.assertEqual(int(info["kernel_base"], 16), base)
        if options.get("kaslr", True):
            self.bases.setdefault(options.get("machine"), set()).add(base)
        else:
            self.assertEqual(base, 0xffffffff81000000)
        if "la57" in options:
            self.assertEqual(info["paging_levels"], 5 if options["la57"] else 4)
        if "pti" in options:
            self.assertEqual(info["page_table_isolation"], options["pti"])
        total = re.search(r"MemTotal:\s+(\d+)", guest.check("cat /proc/meminfo"))[1]
        self.assertEqual(info["memory"]["total_bytes"], int(total) * 1024)

    def assert_tells_what_is_missing(self, guest, options):
        notes = harness.run_lararium("ps", guest.pid, "--verbose").stderr
        if options.get("monitor") == "none":
            self.assertRegex(notes, r"(?i)monitor")
            paused = harness.run_lararium("ps", guest.pid, "--pause", check=False)
            self.assertEqual(paused.returncode, 7, paused.stderr)
        elif not options.get("libvirt"):
            self.assertNotRegex(notes, r"(?i)no monitor")
            self.assert_sees_its_processes(guest, "--pause")
            self.assertEqual(self.row(guest.pid)["state"], "running", "it goes on after --pause")

    def try_variant(self, options):
        options = dict(options)
        options.pop("ci", None)
        libvirt = options.pop("libvirt", False)
        make = LibvirtGuest if libvirt else Guest
        with make(harness.KERNEL, **options) as guest:
            options["libvirt"] = libvirt
            self.assert_sees_its_processes(guest)
            self.assert_listed(guest, options)
            self.assert_info(guest, options)
            self.assert_tells_what_is_missing(guest, options)
            if options.get("max_memory"):
                self.plug_memory_in(guest)

    def plug_memory_in(self, guest):
        """A file that fills more than the first memory lies in the new one, too, and is seen."""
        before = self.row(guest.pid)["ram_bytes"]
        guest.hotplug_memory("512M")
        guest.check("mount -o remount,size=900M /dev/shm; dd if=/dev/zero bs=1M count=640 2>/dev/null | tr '\\0' x "
                    ">/dev/shm/big", timeout=400)
        jobs = [guest.start("workload spawn 20") for _ in range(3)]
        self.assert_sees_its_processes(guest)
        self.assertEqual(self.row(guest.pid)["ram_bytes"], before + (512 << 20))
        done = harness.run_lararium("recover", guest.pid, "/dev/shm/big", "--json", "-o", "/dev/null", check=False)
        if done.returncode == 0:
            self.assertEqual(json.loads(done.stdout)["item"]["cached_bytes"], 640 << 20)
        for job in jobs:
            job.stop()

    def test_variants(self):
        began = time.monotonic()
        count = 0
        for name, options in VARIANTS.items():
            if not CHOSEN.search(name) or not (WHOLE or options.get("ci") or os.environ.get("LARARIUM_VARIANTS")):
                continue
            with self.subTest(variant=name):
                try:
                    self.try_variant(options)
                    count += 1
                except Skip as reason:
                    print(f"skipped: {name}: {reason}", flush=True)
        print(f"{count} ways to run a VM, {time.monotonic() - began:.0f} s")
        bases = set().union(*self.bases.values()) if self.bases else set()
        if count > 2 and not os.environ.get("LARARIUM_VARIANTS"):
            self.assertGreater(len(bases), 1, "KASLR gave one base to all guests")


class OneGuestManyNames(harness.GuestTest):
    OPTIONS = {"backend": "memfd", "uuid": IDENTITY, "control": True, "name": f"lab-names-{os.getpid()}"}

    def ps(self, name, *options):
        return harness.run_lararium("ps", name, "--json", *options, cache=self.cache.name)

    def test_named_in_every_way(self):
        expected = {item["pid"] for item in self.items("ps")}
        for name in (self.guest.name, self.guest.pid, IDENTITY, IDENTITY.upper(), IDENTITY[:8], self.guest.qmp_socket):
            with self.subTest(name=str(name)):
                document = json.loads(self.ps(name).stdout)
                self.assertEqual(document["vm"]["pid"], self.guest.pid)
                self.assertEqual(document["vm"]["uuid"], IDENTITY)
                self.assertLess(len(expected ^ {item["pid"] for item in document["items"]}), 6)

    def test_monitor_held_by_another_client(self):
        with contextlib.ExitStack() as stack:
            for path in (self.guest.qmp_socket, self.guest.sockets / "control.sock"):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.connect(str(path))
                client.recv(4096)  # the greeting: it is ours now
            began = time.monotonic()
            done = harness.run_lararium("ps", self.guest.pid, "--verbose", "--json", cache=self.cache.name)
            self.assertLess(time.monotonic() - began, 15)
            self.assertGreater(len(json.loads(done.stdout)["items"]), 20)
            self.assertRegex(done.stderr, r"(?i)client|in use|busy|does not answer")
        self.assertNotRegex(harness.run_lararium("ps", self.guest.pid, "--verbose", cache=self.cache.name).stderr,
                            r"(?i)another client|in use|does not answer")

    def test_paused_guest(self):
        self.guest.qmp("stop")
        try:
            rows = json.loads(harness.run_lararium("vms", "--json", cache=self.cache.name).stdout)["items"]
            row = next(row for row in rows if row["pid"] == self.guest.pid)
            self.assertEqual(row["state"], "paused")
            self.assertEqual(self.ps(self.guest.pid).stdout, self.ps(self.guest.pid).stdout)
            # What was paused before stays so.
            self.ps(self.guest.pid, "--pause")
            self.assertEqual(self.guest.qmp("query-status")["status"], "paused")
        finally:
            self.guest.qmp("cont")
        self.ps(self.guest.pid, "--pause")
        self.assertEqual(self.guest.qmp("query-status")["status"], "running")


class KilledWhilePausing(unittest.TestCase):
    """SIGKILL leaves no time to resume the guest: a process that outlives the killed one does."""

    @contextlib.contextmanager
    def vm(self, *more):
        with tempfile.TemporaryDirectory(prefix="lararium-pause-") as folder:
            self.control = f"{folder}/control.sock"
            with harness.bare_qemu("-qmp", f"unix:{self.control},server=on,wait=off", *more) as vm:
                yield vm

    def status(self):
        return qmp.execute(self.control, "query-status")["status"]

    def wait_for(self, status, seconds, process=None):
        deadline = time.monotonic() + seconds
        while (now := self.status()) != status:
            if process and process.poll() is not None:
                self.fail(f"lararium ended with {process.returncode}: {process.stderr.read()}")
            self.assertLess(time.monotonic(), deadline, f"the VM is {now}, not {status}")
            time.sleep(0.005)

    @contextlib.contextmanager
    def paused(self, vm):
        """A Lararium that pauses the VM and cannot go on: nobody reads what it writes."""
        process = subprocess.Popen([harness.BINARY, "read", str(vm.pid), "phys:0x100000", "32M", "--pause"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        try:
            self.wait_for("paused", 30, process)
            yield process
        finally:
            process.stdout.close()
            process.stderr.close()
            process.kill()
            process.wait()

    def test_it_goes_on(self):
        with self.vm() as vm:
            for ways, kill in {"the process": os.kill, "its group": os.killpg}.items():
                with self.subTest(killed=ways), self.paused(vm) as process:
                    kill(process.pid, signal.SIGKILL)
                    process.wait()
                    began = time.monotonic()
                    self.wait_for("running", 20)
                    print(f"resumed {(time.monotonic() - began) * 1e3:.0f} ms after the kill of {ways}")
                    # Who reads our output does not wait for the process that looks after the VM.
                    process.stdout.read()
                    self.assertLess(time.monotonic() - began, 20)

    def test_by_the_human_monitor(self):
        with tempfile.TemporaryDirectory(prefix="lararium-pause-") as folder:
            path = f"{folder}/hmp.sock"
            with harness.bare_qemu("-monitor", f"unix:{path},server=on,wait=off") as vm:
                # Two clients would be one too many for the only QMP socket: the human monitor is what is left.
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(vm.qmp))
                    stream = client.makefile("rw")
                    stream.readline()

                    def ask(command):
                        stream.write(json.dumps({"execute": command}) + "\n")
                        stream.flush()
                        while True:
                            answer = json.loads(stream.readline())
                            if "return" in answer:
                                return answer["return"]

                    ask("qmp_capabilities")
                    self.status = lambda: ask("query-status")["status"]
                    with self.paused(vm) as process:
                        process.kill()
                        process.wait()
                        self.wait_for("running", 20)

    def test_what_was_paused_before_stays_so(self):
        with self.vm() as vm:
            qmp.execute(self.control, "stop")
            process = subprocess.Popen([harness.BINARY, "read", str(vm.pid), "phys:0x100000", "32M", "--pause"],
                                       stdout=subprocess.PIPE)
            with process:
                process.stdout.read(1)
                process.kill()
            time.sleep(1)
            self.assertEqual(self.status(), "paused")

    def test_at_any_moment(self):
        with self.vm() as vm:
            for round_ in range(30):
                process = subprocess.Popen([harness.BINARY, "read", str(vm.pid), "phys:0x100000", "4M", "--pause"],
                                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                time.sleep(round_ * 0.001)
                process.kill()
                process.wait()
            time.sleep(2.5)  # a guard that does not know whether there was a pause looks for two seconds
            self.wait_for("running", 20)
            self.assertIsNone(vm.poll())


class SeveralVms(unittest.TestCase):
    """QEMU alone is enough for these: nothing boots."""

    def test_two_of_one_name(self):
        with harness.bare_qemu("-name", "twin", "-uuid", IDENTITY) as first, \
                harness.bare_qemu("-name", "twin", "-uuid", str(uuid.uuid4())) as second, \
                harness.bare_qemu("-name", "other") as third:
            rows = {row["pid"]: row for row in
                    json.loads(harness.run_lararium("vms", "--json", "--no-guest").stdout)["items"]}
            self.assertEqual([rows[vm.pid]["name"] for vm in (first, second, third)], ["twin", "twin", "other"])
            self.assertEqual(rows[first.pid]["uuid"], IDENTITY)
            done = harness.run_lararium("read", "twin", "phys:0x1000", "16", "--json", check=False)
            self.assertEqual(done.returncode, 4, done.stderr)
            self.assertEqual(json.loads(done.stdout)["error"]["code"], "ambiguous")
            for vm in (first, second):
                self.assertIn(str(vm.pid), done.stderr)
            for name in (first.pid, second.pid, IDENTITY, "other"):
                harness.run_lararium("read", name, "phys:0x1000", "16", "-o", "/dev/null")
            done = harness.run_lararium("read", "phys:0x1000", "16", check=False)
            self.assertEqual(done.returncode, 4, "several run, and none was named")


if __name__ == "__main__":
    harness.main()
