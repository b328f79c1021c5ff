#!/usr/bin/env python3
"""Writes that are held, on a guest without an operating system, under KVM and TCG: each is seen, the vCPU waits and goes on,
and whatever becomes of whoever holds it, the guest goes on at once and QEMU keeps nothing of it.

$LARARIUM_WHOLE=1 takes all combinations of KVM, QEMU and memory; $LARARIUM_KILLS is how often the monitor is killed in each.
"""

import functools
import random
import statistics
import time

import harness
from bare_guest import KILLS, BareGuestTest
from bare_guest import Monitor as AnyMonitor

from lab import bare_metal

Monitor = functools.partial(AnyMonitor, "bare_monitor")


def target(cpu):
    return bare_metal.TARGETS + cpu * bare_metal.BLOCK


class HeldWrites(BareGuestTest):
    def test_the_writer_waits_and_goes_on(self):
        def check(guest):
            guest.start_job(0, "compute")
            monitor = Monitor(guest, "hold", "--ask", hex(target(1)))
            for _ in range(3):
                before = guest.word(target(1))
                guest.start_job(1, "write", limit=1)
                fault = monitor.fault()
                self.assertEqual(fault["vcpu"], 1)
                self.assertEqual(fault["address"] // bare_metal.BLOCK, target(1) // bare_metal.BLOCK)
                others = guest.rounds(0)
                time.sleep(0.2)
                self.assertEqual((guest.rounds(1), guest.word(target(1))), (0, before), "it does not wait")
                self.assertEqual(len(self.held(guest)), 1)
                self.assertGreater(guest.rounds(0), others, "another CPU waits, too")
                monitor.go_on()
                self.assertEqual(monitor.line(), "protected")
                # The write is done; the guest counts it a few instructions later.
                deadline = time.monotonic() + 10
                while guest.rounds(1) == 0 and time.monotonic() < deadline:
                    time.sleep(0.0005)
                self.assertEqual((guest.rounds(1), guest.word(target(1))), (1, before + 1))
                guest.write(bare_metal.TARGETS, b"own")  # not protected
            counts = monitor.end()
            self.assertEqual((counts["faults"], counts["events"], counts["strangers"]), (3, 3, 0))
        self.on_each(check)

    def test_one_fault_for_each_event(self):
        def check(guest):
            monitor = Monitor(guest, "hold", *(hex(target(cpu)) for cpu in (0, 1)))
            for cpu in (0, 1):
                guest.start_job(cpu, "write")
            time.sleep(1)
            counts = monitor.end()
            self.assertGreater(counts["events"], 20)
            self.assertLessEqual(counts["faults"], counts["events"] * 1.01 + 1)
            self.assertEqual(counts["strangers"], 0)
            self.assert_goes_on(guest)
        self.on_each(check)

    def test_the_bell(self):
        """Every event of the gate's is answered, by a bell or by a monitor that is awake."""
        def check(guest):
            if guest.options.backend == "anon":
                return  # bare_monitor answers through memory that it shares
            for awake in (0, 2000):
                for verdict in ("allowed", "denied"):
                    monitor = Monitor(guest, "gate", "--awake", awake, *(["--deny"] if verdict == "denied" else []), 1)
                    guest.start_job(1, "gate", limit=300)
                    while guest.state_of(1)["job"]:
                        time.sleep(0.01)
                    counts, seen = monitor.end(), guest.counts(1)
                    self.assertEqual(seen["allowed"] + seen["denied"], 300)
                    self.assertEqual(counts["events"] + seen["unanswered"], 300)
                    # Of those that found it awake, but not in time: this machine had no processor for it.
                    self.assertLessEqual(seen["unanswered"], 30)
                    self.assertGreaterEqual(seen[verdict], 270)
                    self.assertLessEqual(counts["faults"], seen["rung"] * 1.01 + 1)
        self.on_each(check)

    def test_killed_at_any_moment(self):
        chance = random.Random(4)

        def check(guest):
            before = harness.open_files(guest.pid)
            for cpu in (0, 1):
                guest.start_job(cpu, "write")
            took, held = [], 0
            for number in range(KILLS):
                holds = number % 3 != 0  # or it is killed while it takes hold of QEMU
                monitor = Monitor(guest, "hold", *(hex(target(cpu)) for cpu in (0, 1)), ready=holds)
                time.sleep(chance.random() * 0.1)
                monitor.kill()
                held += holds
                took.append(self.assert_goes_on(guest))
            # Killed within the few microseconds in which QEMU had a copy, it leaves that; whoever comes next removes it.
            left = harness.open_files(guest.pid)
            Monitor(guest, "hold", hex(target(0))).end()
            self.assertEqual(harness.open_files(guest.pid), before)
            print(f"{guest.options.accel} {guest.options.qemu} {guest.options.backend}: killed {KILLS} times, {held} of "
                  f"them while it held; it went on after {statistics.median(took) * 1e3:.1f}, at most {max(took) * 1e3:.1f} ms; "
                  f"{len(left) - len(before)} descriptors left until the next one came")
        self.on_each(check)


if __name__ == "__main__":
    harness.main()
