#!/usr/bin/env python3
"""Every attack is found by its check, and its end clears the finding.

An attack is a line of ATTACKS: a technique of lab/attacks/kernel or a program, the check that must find it, and what the
finding must say. An attack whose check does not exist, or that the guest's kernel has no object for, is skipped by
name. $LARARIUM_ATTACKS is a regular expression of those to run; $LARARIUM_ATTACK_TABLE names a file that gets one JSON
line for each attack: technique, check, kernel, found in how many milliseconds.
"""

import dataclasses
import json
import os
import re
import time
import typing

import harness

from lab.attack import Attacker, Unsupported

CHOSEN = re.compile(os.environ.get("LARARIUM_ATTACKS", ""))
TABLE = os.environ.get("LARARIUM_ATTACK_TABLE")
LOOKS = 3  # a look that raced with the guest drops what it saw


@dataclasses.dataclass
class Attack:
    name: str
    check: str    # that must find it
    pattern: str  # of the finding's subject, a space, and its sentence
    begin: typing.Callable  # of (test); gives the function that ends it


def technique(name, check, pattern, argument="orphan", label=None):
    """A technique of the module. ARGUMENT: where the code lies that is put in the way, or whom it is about."""
    def begin(test):
        test.attacker.on(name, argument)
        return lambda: test.attacker.off(name)
    return Attack(label or (f"{name}.{argument}" if argument else name), check, pattern, begin)


def both(name, check, pattern):
    """Once with code in memory that belongs to nobody, once with code of a module."""
    return [technique(name, check, pattern, argument) for argument in ("orphan", "module")]


ATTACKS = [
    *both("syscall_table", "system_calls", r"sys_call_table\[62\]"),
    *both("syscall_table_32", "system_calls", r"ia32_sys_call_table\[37\]"),
    *both("syscall_dispatch", "system_calls", r"x64_sys_call\+"),
    *both("syscall_dispatch_32", "system_calls", r"ia32_sys_call\+"),
    *both("syscall_entry_call", "system_calls", r"do_syscall_64\+"),
    *both("idt_entry", "interrupts", r"\b4\b"),
    technique("gdt_entry", "interrupts", r"(?i)gdt|descriptor", ""),
    *both("text_inline_jump", "kernel_text", r"__x64_sys_sethostname"),
    *both("text_call", "kernel_text", r"vfs_statfs"),
    technique("module_text_jump", "kernel_text", r"dummy", "orphan"),
    technique("module_text_jump", "kernel_text", r"dummy", "module"),
]


class Attacks(harness.GuestTest):
    OPTIONS = {"backend": "memfd", "modules": ["dummy"]}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.attacker = Attacker(cls.guest)
        listed = json.loads(harness.run_lararium("check", "--list", "--json").stdout)
        cls.checks = {check["check"] for check in listed["items"]}
        cls.rows = []
        cls.addClassCleanup(cls.print_table)

    def findings(self, check):
        return self.items("check", "--only", check, check=False)

    def carry_out(self, attack):
        if attack.check not in self.checks:
            self.skipTest(f"there is no check {attack.check}")
        self.assertEqual(self.findings(attack.check), [], "findings before the attack")
        began = time.monotonic()
        try:
            end = attack.begin(self)
        except Unsupported as error:
            self.skipTest(str(error))
        try:
            for _ in range(LOOKS):
                findings = self.findings(attack.check)
                milliseconds = (time.monotonic() - began) * 1000
                matching = [finding for finding in findings
                            if re.search(attack.pattern, f"{finding['subject']} {finding['sentence']}")]
                if matching:
                    break
        finally:
            end()
        self.rows.append({"attack": attack.name, "check": attack.check, "kernel": harness.KERNEL,
                          "found_ms": round(milliseconds) if matching else None})
        self.assertTrue(matching, f"not found; the check says {[f['sentence'] for f in findings]}")
        for _ in range(LOOKS):
            left = self.findings(attack.check)
            if not left:
                break
        self.assertEqual(left, [], "findings after the attack was taken back")

    @classmethod
    def print_table(cls):
        if not cls.rows:
            return
        print(f"\n{'attack':32} {'check':20} found on {harness.KERNEL} in")
        for row in cls.rows:
            found = "not found" if row["found_ms"] is None else f"{row['found_ms']} ms"
            print(f"{row['attack']:32} {row['check']:20} {found}")
        if TABLE:
            with open(TABLE, "a") as file:
                file.writelines(json.dumps(row) + "\n" for row in cls.rows)


for each in ATTACKS:
    if CHOSEN.search(each.name):
        method = f"test_{re.sub(r'[^a-z0-9]+', '_', each.name)}"
        assert not hasattr(Attacks, method), f"two attacks are called {each.name}"
        setattr(Attacks, method, lambda self, attack=each: self.carry_out(attack))

if __name__ == "__main__":
    harness.main()
