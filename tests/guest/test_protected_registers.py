#!/usr/bin/env python3
"""`protect` and what no write to memory shows: registers of the CPUs, and network interfaces."""

import os
import time

import harness
from test_protect import Monitor

from lab.attack import Attacker, Unsupported

QEMU = os.environ.get("LARARIUM_QEMU", "7.2")


def of_type(record_type, **fields):
    return lambda record: record["type"] == record_type and all(
        record["fields"].get(name) == value for name, value in fields.items())


class Guarded(harness.GuestTest):
    def monitor(self, *arguments):
        monitor = Monitor(self.guest, self.cache.name, *arguments)
        self.addCleanup(lambda: monitor.process.poll() is None and monitor.end())
        monitor.wait_for(of_type("protection_started"), "start")
        return monitor


class Registers(Guarded):
    OPTIONS = {"backend": os.environ.get("LARARIUM_BACKEND", "memfd"), "qemu": QEMU, "pti": False}

    ATTACKS = (  # technique, argument, register, whether each CPU is concerned
        ("lstar", "orphan", "LSTAR", True),
        ("own_idt", "", "IDTR", True),
        ("own_gdt", "", "GDTR", True),
        ("write_protection_off", "", "CR0", True),
        ("protection_off", "smep", "CR4", True),
        ("protection_off", "smap", "CR4", True),
        ("own_page_table", "", "CR3", False),
    )

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.attacker = Attacker(cls.guest)

    def test_changes_are_told_with_evidence_and_when_they_are_taken_back(self):
        monitor = self.monitor("--interval", "500ms")
        for technique, argument, register, on_each in self.ATTACKS:
            with self.subTest(f"{technique} {argument}"):
                known = len(monitor.records)
                began = time.time()
                try:
                    self.attacker.on(technique, argument)
                except Unsupported as error:
                    self.skipTest(str(error))
                for cpu in (0, 1) if on_each else (1,):
                    when, record = monitor.wait_for(
                        lambda r: r["finding"] and of_type("register_changed", register=register, vcpu=cpu)(r)
                        and r not in [old for _, old in monitor.records[:known]], f"{register} of {cpu}")
                    self.assertEqual(record["finding"]["subject"], f"{register} of CPU {cpu}")
                    self.assertFalse(record["fields"]["lawful"])
                    if register != "CR3":
                        self.assertNotEqual(record["fields"]["found"], record["fields"]["expected"])
                print(f"{technique} {argument}: told of after {when - began:.1f} s: {record['sentence']}")
                self.attacker.off(technique)
                if register != "CR3":  # that is told of when it was not seen for half a minute
                    monitor.wait_for(of_type("register_changed", register=register, lawful=True), "restoration")
        others = [r["sentence"] for r in monitor.findings() if r["type"] != "register_changed"]
        self.assertEqual(others, [])

    def test_busy_guest_gives_no_false_alarm(self):
        """Processes that live for a moment, threads, kernel threads that borrow page tables, ptrace, and code that is
        patched."""
        jobs = [self.guest.start(f"sh -c 'echo ready; {load}'") for load in (
            "while :; do (:); /bin/true; done", "while :; do ls -R /proc/1 >/dev/null 2>&1; done",
            "while :; do dd if=/dev/zero of=/tmp/load bs=64k count=8 2>/dev/null; sync; done",
            "while :; do modprobe dummy; rmmod dummy; done")]
        try:
            monitor = self.monitor("--interval", "100ms")
            time.sleep(float(os.environ.get("LARARIUM_SECONDS", "20")))
            told = [r["sentence"] for r in monitor.findings()]
            code = monitor.end()
            ended = monitor.records[-1][1]["fields"]
        finally:
            for job in jobs:
                job.stop("KILL")
        print(f"{ended['register_looks']} looks at registers")
        self.assertEqual(told, [])
        self.assertEqual(code, 0)
        self.assertGreater(ended["register_looks"], 20)


class Nics(Guarded):
    """The guest has no tcpdump: `ip link set promisc on` is what that does to the interface."""
    OPTIONS = {"backend": "memfd", "qemu": QEMU, "nic": "virtio", "control": True,
               "modules": ["virtio_pci", "virtio_net", "af_packet"]}
    MAC = "52:54:00:12:34:56"
    ONE = MAC[:-2] + "99"

    def setUp(self):
        self.interface = self.guest.check("ls /sys/class/net | grep -v lo | head -1").strip()
        self.assertTrue(self.interface)
        self.guest.check(f"ip link set {self.interface} address {self.MAC} promisc off up")

    def ip(self, arguments):
        self.guest.check(f"ip link set {self.interface} {arguments}")

    def carrier(self):
        return self.guest.check(f"cat /sys/class/net/{self.interface}/carrier").strip()

    def test_changes_are_told(self):
        for events in ((), ("--nic-events",)):
            with self.subTest(events=bool(events)):
                monitor = self.monitor("--interval", "1s", *events)
                time.sleep(1.5)
                for switch, back, sentence in (("promisc on", "promisc off", "is promiscuous: it takes"),
                                               (f"address {self.ONE}", f"address {self.MAC}", f"has the address {self.ONE}")):
                    began = time.time()
                    self.ip(switch)
                    when, record = monitor.wait_for(lambda r: r["finding"] and sentence in r["sentence"], switch)
                    print(f"{switch}: told of after {when - began:.2f} s {events}")
                    self.assertEqual(record["type"], "nic_changed")
                    self.assertEqual(record["fields"]["action"], "reported")
                    self.assertEqual(record["fields"]["configured_mac"], self.MAC)
                    known = len(monitor.records)
                    self.ip(back)
                    monitor.wait_for(lambda r: of_type("nic_changed", lawful=True)(r)
                                     and r not in [old for _, old in monitor.records[:known]], "restoration")
                self.assertEqual(self.carrier(), "1")
                self.assertEqual(monitor.end(), 20)

    def test_changes_are_denied(self):
        monitor = self.monitor("--nic", "deny", "--interval", "500ms")
        self.assertEqual(self.carrier(), "1")
        self.ip("promisc on")
        _, record = monitor.wait_for(lambda r: r["finding"], "finding")
        self.assertEqual(record["fields"]["action"], "link down")
        self.wait_carrier("0")
        self.ip("promisc off")
        monitor.wait_for(of_type("nic_changed", lawful=True, action="link up"), "link up")
        self.wait_carrier("1")
        self.ip(f"address {self.ONE}")
        monitor.wait_for(of_type("nic_changed", lawful=False, action="link down", mac=self.ONE), "second finding")
        self.wait_carrier("0")
        self.assertEqual(monitor.end(), 20)
        self.assertIn("links_down", monitor.records[-1][1]["fields"])  # and it stays so
        self.assertEqual(self.carrier(), "0")
        name = monitor.records[-1][1]["fields"]["links_down"]
        self.guest.qmp("set_link", name=name, up=True)
        self.wait_carrier("1")

    def test_interface_that_is_not_used_is_not_promiscuous(self):
        """Its device is, from when the driver takes it until the interface is brought up."""
        self.guest.check("rmmod virtio_net; modprobe virtio_net")
        monitor = self.monitor("--interval", "200ms")
        time.sleep(2)
        self.assertEqual([r["sentence"] for r in monitor.findings()], [])
        self.assertEqual(monitor.end(), 0)

    def wait_carrier(self, wanted):
        deadline = time.monotonic() + 10
        while self.carrier() != wanted:
            self.assertLess(time.monotonic(), deadline, f"the carrier does not become {wanted}")
            time.sleep(0.1)


class OtherNic(Guarded):
    """One whose filter QEMU does not tell: its address is watched, by a human monitor, too."""
    OPTIONS = {"backend": "memfd", "qemu": QEMU, "nic": "e1000", "monitor": "hmp", "control": True, "modules": ["e1000"]}

    def test_address(self):
        interface = self.guest.check("ls /sys/class/net | grep -v lo | head -1").strip()
        if not interface:
            self.skipTest(f"{self.guest.options.kernel} has no driver for it")
        monitor = self.monitor("--nic", "deny", "--interval", "300ms")
        monitor.wait_for(lambda r: r["type"] == "protection_notice" and "promiscuous is not told" in r["sentence"], "notice")
        self.guest.check(f"ip link set {interface} up; ip link set {interface} address 52:54:00:12:34:99")
        monitor.wait_for(of_type("nic_changed", lawful=False, action="link down"), "finding")
        self.guest.check(f"ip link set {interface} address 52:54:00:12:34:56")
        monitor.wait_for(of_type("nic_changed", lawful=True, action="link up"), "restoration")


if __name__ == "__main__":
    harness.main()
