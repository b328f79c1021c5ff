"""Switches attack simulators (attacks/kernel) on and off in a test guest."""

import re
import shlex

from . import initrd, modules
from .errors import LabError
from .guest import Guest

CONTROL = "/proc/lararium_attack"
MODULE = "lararium_attack"


class Unsupported(LabError):
    """The guest's kernel does not have what a technique would change."""


class Attacker:
    """The simulators in one guest: the module, loaded when this is made, and in /tmp its programs.

    stop() takes all that the module did back and unloads it.
    """

    def __init__(self, guest: Guest):
        self.guest = guest
        guest.check(f"cp /{initrd.ATTACKS}/* /tmp")
        path = f"/tmp/{MODULE}.ko"
        guest.put(modules.build(guest.kernel, MODULE).read_bytes(), path)
        self.lookup = guest.check("awk '$3 == \"kallsyms_lookup_name\" { print $1; exit }' /proc/kallsyms").strip()
        if not self.lookup:
            raise LabError("the guest's kernel does not tell where kallsyms_lookup_name is")
        guest.check(f"insmod {path} lookup=0x{self.lookup}")

    def techniques(self) -> dict[str, bool]:
        """Their names, and whether they are on."""
        return {name: state == "on" for name, state in
                (line.split() for line in self.guest.check(f"cat {CONTROL}").splitlines())}

    def on(self, technique: str, argument: str = ""):
        self._write(f"on {technique} {argument}".strip())

    def off(self, technique: str):
        self._write(f"off {technique}")

    def stop(self):
        self.guest.check(f"rmmod {MODULE}")

    def _write(self, line: str):
        code, output = self.guest.run(f"echo {shlex.quote(line)} >{CONTROL}")
        if code:
            if re.search(r"not supported", output):
                raise Unsupported(f"{self.guest.options.kernel} has nothing that {line.split()[1]} could change")
            raise LabError(f"in the guest, {line!r} failed: {output.strip()}")
