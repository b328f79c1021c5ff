#!/usr/bin/env python3
"""The gate's own trampoline, as `guard --mode lares` puts it into guests, in a guest without an operating system, under KVM
and TCG: calls pass or are refused, no register changes but the one that says so, whoever wrote into its pages finds that
undone, and when the monitor is killed the guest goes on.

The trampoline asks for the CPU's number with `lsl`. A KVM that emulates every instruction of its guest's, such as one
nested in a VM without hardware for it, may not have that one: the guest is asked first. Where it is not there, and nowhere
else, the guest has one CPU that calls, and these three bytes of the code are replaced by `xor eax, eax; nop`
(bare_hook --one-cpu). All else is what every guest gets.

$LARARIUM_WHOLE=1 takes all combinations of KVM, QEMU and memory; $LARARIUM_KILLS is how often the monitor is killed in each.
"""

import functools
import random
import re
import statistics
import time

import harness
from bare_guest import KILLS, BareGuestTest, Monitor, wait_until

from lab import bare_metal
from lab.bare_metal import BareMetal
from lab.errors import LabError

LAYOUT = dict((name, int(value, 0)) for name, value in re.findall(
    r"^#define (\w+) (0x[0-9a-f]+|\d+)\b", (harness.ROOT / "src/gate/trampoline_layout.h").read_text(), re.M))
EPERM, EACCES = 1, 13
AREA = bare_metal.FREE
MINUS = 1 << 64


@functools.cache
def has_lsl(accel, qemu):
    """Whether the guest's CPU has the instruction."""
    with BareMetal(accel=accel, qemu=qemu) as guest:
        try:
            return guest.command(f"limit {bare_metal.CPU_NUMBER:#x}", timeout=5) == {"value": 0}
        except LabError:
            if guest.qmp("query-status")["status"] != "internal-error":
                raise
            return False


class BareHook(BareGuestTest):
    BACKENDS = ("memfd", "file:/dev/shm", "anon")  # no huge pages: a single page of them cannot be held

    def hook(self, guest, *arguments, ready=True):
        """bare_hook on a guest."""
        own = [] if self.asks(guest) else ["--one-cpu"]
        return Monitor("bare_hook", guest, *own, *arguments, ready=ready)

    @staticmethod
    def asks(guest):
        return has_lsl(guest.options.accel, guest.options.qemu)

    def callers(self, guest):
        return (0, 1) if self.asks(guest) else (0,)

    def calls(self, guest, job, limit, **options):
        """Has all CPUs call at once; what each of them counts."""
        for cpu in self.callers(guest):
            guest.start_job(cpu, job, limit=limit, **options)
        for cpu in self.callers(guest):
            wait_until(lambda: not guest.state_of(cpu)["job"])
        return [guest.counts(cpu) for cpu in self.callers(guest)]

    def area(self, guest):
        """What only the monitor writes to, before the slots."""
        return guest.read(AREA, LAYOUT["GATE_CPUS"] + 0x1000)

    def test_calls_are_allowed_and_denied(self):
        def check(guest):
            call = guest.read(guest.symbol("call_site"), 5)
            for awake in (0, 2000):
                for denied in (0, EPERM, EACCES):
                    monitor = self.hook(guest, "--awake", awake, "--deny", denied)
                    self.assertNotEqual(guest.read(guest.symbol("call_site"), 5), call)
                    for job, unharmed in (("call", 0), ("registers", bare_metal.PATTERN)):
                        for seen in self.calls(guest, job, 200):
                            self.assertEqual((seen["allowed"], seen["denied"]), (0, 200) if denied else (200, 0))
                            self.assertEqual(seen["result"], MINUS - denied if denied else unharmed)
                            self.assertEqual(seen["changed"], 0, "a register, or a flag")
                    counts = monitor.end()
                    self.assertEqual(counts["events"], 400 * len(self.callers(guest)))
                    self.assertEqual((counts["forged"], counts["strangers"], counts["tampered"]), (0, 0, 0))
                    self.assertEqual(counts["arguments"][1:], [bare_metal.PATTERN + n for n in range(1, 6)])
                    self.assertLessEqual(counts["faults"], counts["events"] * 1.01 + 1)
                    if not awake:
                        self.assertEqual(counts["rings"], counts["events"])
                    # As if it had never been there.
                    self.assertEqual(guest.read(guest.symbol("call_site"), 5), call)
                    self.assertEqual(self.area(guest).strip(b"\0"), b"")
                    for seen in self.calls(guest, "registers", 50):
                        self.assertEqual((seen["allowed"], seen["changed"]), (50, 0))
        self.on_each(check)

    def test_one_fault_for_each_event(self):
        def check(guest):
            report, bell = [], {}
            for awake in (0, 2000):
                monitor = self.hook(guest, "--awake", awake)
                guest.start_job(0, "call")
                time.sleep(1)
                guest.stop_job(0)
                counts = monitor.end()
                self.assertGreater(counts["events"], 20)
                self.assertLessEqual(counts["faults"], counts["events"] * 1.01 + 1)
                self.assertEqual((counts["forged"], counts["strangers"]), (0, 0))
                bell = bell or counts
                report.append(f"{counts['events'] / counts['seconds']:.0f} {'awake' if awake else 'by the bell'}")
            print(f"{self.name(guest)}: round trips a second: {', '.join(report)}; "
                  f"faults an event by the bell {bell['faults'] / bell['events']:.4f}")
        self.on_each(check)

    def test_its_pages_are_put_back(self):
        """The guest writes to each kind of page that is ours alone, while it calls; to the code's first instruction while
        it does not, as it would run what it wrote."""
        places = {"the code's first instruction": 0,
                  "the code page's end": LAYOUT["GATE_BOARD"] - 8,
                  "the default verdict": LAYOUT["GATE_BOARD"] + LAYOUT["BOARD_DEFAULT"] - 5,
                  "the number of CPUs": LAYOUT["GATE_BOARD"] + LAYOUT["BOARD_CPU_COUNT"],
                  "the list of calls": LAYOUT["GATE_SITES"],
                  "the answers": LAYOUT["GATE_CPUS"] + LAYOUT["GATE_CPU_SIZE"] - 8}

        def check(guest):
            monitor, rounds, faults = self.hook(guest), 3, 0
            for number, (name, offset) in enumerate(places.items()):
                before = self.area(guest)
                with self.subTest(name):
                    for value in range(rounds):
                        if number:
                            guest.start_job(0, "call")
                        guest.command(f"store {AREA + offset:#x} {0xf4f4f4f4f4f4f4f4 + value:#x}")
                        if number:
                            guest.stop_job(0)
                        # The answers change with each event.
                        kept = slice(0, LAYOUT["GATE_CPUS"])
                        wait_until(lambda: self.area(guest)[kept] == before[kept] and
                                   self.area(guest)[offset:offset + 8] == before[offset:offset + 8])
                        faults += 1
            for seen in self.calls(guest, "registers", 100):
                self.assertEqual((seen["allowed"], seen["changed"]), (100, 0))
            counts = monitor.end()
            self.assertEqual(counts["tampered"], faults)
            self.assertEqual(len(counts["put_back_us"]), faults)
            self.assertEqual(counts["forged"], 0)
            took, stood = counts["put_back_us"], counts["stood_us"]
            print(f"{self.name(guest)}: {faults} writes, put back {statistics.median(took):.0f}, at most {max(took):.0f} us "
                  f"after the fault; they stood there for {statistics.median(stood):.0f}, at most {max(stood):.0f} us")
        self.on_each(check)

    def test_killed_at_any_moment(self):
        """With the calls going on. A third of the time it is killed while it puts itself in, or takes over."""
        chance = random.Random(4)

        def check(guest):
            before = harness.open_files(guest.pid)
            call = guest.read(guest.symbol("call_site"), 5)
            guest.start_job(1, "compute")
            guest.start_job(0, "call")
            took, served = [], 0
            for number in range(KILLS):
                default, denied = ((0, EPERM), (EPERM, 0))[number % 2]
                ready = number % 3 != 0
                if not ready and number % 2:
                    # So that the next puts all in anew. The one before was killed while it answered.
                    self.assertTrue(self.hook(guest).end()["adopted"])
                    self.assertEqual(guest.read(guest.symbol("call_site"), 5), call)
                monitor = self.hook(guest, "--default", default, "--deny", denied, ready=ready)
                time.sleep(chance.random() * 0.1)
                monitor.kill()
                served += ready
                took.append(self.assert_goes_on(guest))
                if ready:
                    self.assert_decides(guest, "denied" if default else "allowed")
            counts = self.hook(guest).end()
            self.assertEqual((counts["forged"], counts["strangers"]), (0, 0))
            self.assertEqual(guest.read(guest.symbol("call_site"), 5), call)
            self.assertEqual(harness.open_files(guest.pid), before)
            for cpu in (0, 1):
                guest.stop_job(cpu)
            for seen in self.calls(guest, "registers", 50):
                self.assertEqual((seen["allowed"], seen["changed"]), (50, 0))
            print(f"{self.name(guest)}: killed {KILLS} times, {served} of them while it answered; the guest went on after "
                  f"{statistics.median(took) * 1e3:.1f}, at most {max(took) * 1e3:.1f} ms")
        self.on_each(check)

    def assert_decides(self, guest, verdict):
        """Without a monitor each call is decided so, once the one that waited is over."""
        other = {"allowed": "denied", "denied": "allowed"}[verdict]
        begin = guest.state_of(0)
        wait_until(lambda: guest.rounds(0) >= begin["rounds"] + 2)
        begin = guest.state_of(0)
        wait_until(lambda: guest.rounds(0) >= begin["rounds"] + 20)
        end = guest.state_of(0)
        self.assertGreaterEqual(end[verdict] - begin[verdict], 19)
        self.assertLessEqual(end[other] - begin[other], 0)


if __name__ == "__main__":
    harness.main()
