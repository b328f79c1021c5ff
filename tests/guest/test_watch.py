#!/usr/bin/env python3
"""watch: what happens in a guest comes as records, in time, and the guest goes on whatever happens to the watcher."""

import json
import os
import signal
import subprocess
import threading
import time

import harness


class Watcher:
    """`lararium watch --json`, its records collected as they come."""

    def __init__(self, test, *options):
        self.process = subprocess.Popen(
            [harness.BINARY, "watch", str(test.guest.pid), "--json", "--no-checks", *options], stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL, env={**os.environ, "LARARIUM_CACHE": test.cache.name})
        self.records = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.wait_for(lambda record: record["type"] == "vm_appeared")

    def _read(self):
        for line in self.process.stdout:
            self.records.append(json.loads(line))

    def wait_for(self, wanted, seconds=20):
        """The first record that fits."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for record in list(self.records):
                if wanted(record):
                    return record
            time.sleep(0.02)
        raise AssertionError(f"no such record within {seconds} s; there were "
                             f"{[(r['type'], r['sentence']) for r in self.records][-30:]}")

    def stop(self, number=signal.SIGINT):
        self.process.send_signal(number)
        self.process.wait(20)
        self._reader.join(20)
        self.process.stdout.close()


def of(kind, **fields):
    """A record of that type whose actor has these members."""
    return lambda record: record["type"] == kind and all(
        (record["actor"] or {}).get(name) == value for name, value in fields.items())


class Watch(harness.GuestTest):
    OPTIONS = {"backend": "memfd", "modules": ("dummy",)}

    def setUp(self):
        self.assertIn("alive", self.guest.check("rmmod dummy 2>/dev/null; echo alive"))
        self.watcher = Watcher(self)
        self.addCleanup(lambda: self.watcher.process.poll() is None and self.watcher.stop(signal.SIGKILL))

    def test_what_happens_is_told(self):
        job = self.guest.start("workload tcp 4 8080")
        # It may have been seen before it became what it is.
        started = self.watcher.wait_for(lambda r: r["type"] in ("process_started", "process_executed")
                                        and (r["actor"] or {}).get("pid") == job.pid and r["actor"]["comm"] == "workload")
        self.assertEqual(started["actor"]["uid"], 0)
        self.assertLess(abs(harness.seconds_of(started["host_time"]) - time.time()), 20)
        listening = self.watcher.wait_for(of("listening_started", pid=job.pid))
        self.assertIn("8080", listening["sentence"])
        other = self.guest.start("workload setuid 1234")
        changed = self.watcher.wait_for(lambda r: r["type"] in ("credentials_changed", "process_started")
                                        and (r["actor"] or {}).get("pid") == other.pid and r["actor"]["uid"] == 1234)
        self.assertEqual(changed["actor"]["comm"], "workload")
        self.guest.check("mkdir -p /tmp/watched; mount -t tmpfs watched /tmp/watched; modprobe dummy; "
                         "ip link set lo promisc on")
        self.assertIn("/tmp/watched", self.watcher.wait_for(of("mounted"))["sentence"])
        self.assertIn("dummy", self.watcher.wait_for(of("module_loaded"))["sentence"])
        self.watcher.wait_for(lambda r: r["type"] == "interface_changed" and "promiscuous" in json.dumps(r))
        self.guest.check("umount /tmp/watched; rmmod dummy; ip link set lo promisc off")
        job.stop("KILL")
        other.stop("KILL")
        self.watcher.wait_for(of("process_ended", pid=job.pid))
        self.watcher.wait_for(of("listening_stopped"))
        self.watcher.wait_for(of("unmounted"))
        self.watcher.wait_for(of("module_unloaded"))
        self.watcher.stop()
        self.assertEqual(self.watcher.process.returncode, 0)
        self.assertEqual(self.watcher.records[-1]["type"], "watch_ended")

    def test_what_is_too_short_is_counted(self):
        self.guest.check("i=0; while [ $i -lt 100 ]; do /bin/busybox true; i=$((i+1)); done")
        time.sleep(1)
        self.watcher.stop()
        seen = {r["actor"]["pid"] for r in self.watcher.records if r["type"] == "process_started"}
        unseen = self.watcher.records[-1]["fields"]["processes_unseen"]
        self.assertGreaterEqual(len(seen) + unseen, 100)
        # The shell of the command, kernel threads and the like beside them.
        self.assertLess(len(seen) + unseen, 160)

    def test_paused_and_killed(self):
        self.guest.qmp("stop")
        self.watcher.wait_for(of("vm_paused"))
        self.guest.qmp("cont")
        self.watcher.wait_for(of("vm_resumed"))
        self.watcher.stop(signal.SIGKILL)
        self.assertEqual(self.guest.check("echo goes on").strip(), "goes on")
        self.assertEqual(self.guest.qmp("query-status")["status"], "running")


class End(harness.GuestTest):
    def test_end_of_the_vm(self):
        watcher = Watcher(self)
        self.guest.stop()
        watcher.wait_for(of("vm_gone"))
        watcher.process.wait(20)
        watcher.stop()


class Reboot(harness.GuestTest):
    OPTIONS = {"backend": "memfd", "reboot": True}

    def test_reboot(self):
        watcher = Watcher(self)
        self.addCleanup(lambda: watcher.process.poll() is None and watcher.stop(signal.SIGKILL))
        before = watcher.wait_for(of("vm_appeared"))
        self.guest.qmp("system_reset")
        after = watcher.wait_for(of("guest_rebooted"), 90)
        self.assertNotEqual(before["fields"]["kernel_base"], after["fields"]["kernel_base"])
        watcher.stop()


if __name__ == "__main__":
    harness.main()
