"""Guests as libvirt domains, for what only libvirt does: QEMU as a user of its own, with its monitor taken.

Where no libvirtd runs (a container, a machine without systemd), virtlogd and libvirtd are started for as long as there
are such guests, at the places where everybody's tools look for them.
"""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
import uuid
from xml.sax.saxutils import escape, quoteattr

from . import paths, qemu, state
from .errors import LabError, Skip
from .guest import Guest

URI = "qemu:///system"
DAEMONS = ("virtlogd", "libvirtd")
BACKENDS = {"anon": "", "memfd": "<source type='memfd'/><access mode='shared'/>",
            "file": "<source type='file'/><access mode='shared'/>",
            "private": "<source type='memfd'/><access mode='private'/>"}
# What libvirt decides by itself, or what this module does not translate.
FIXED = ("accel", "cpu", "monitor", "control", "la57", "sandbox", "run_as", "start_as", "debug_threads", "nic", "extra")


class LibvirtGuest(Guest):
    """A transient domain. It takes the options of Guest, save those that are libvirt's own affair."""

    def _find_qemu(self) -> qemu.Qemu:
        if os.geteuid() != 0:
            raise Skip("a guest of the system's libvirt needs root")
        for program in ("virsh", *DAEMONS):
            if not shutil.which(program):
                raise Skip(f"libvirt is not installed: there is no {program}")
        for name in FIXED:
            if getattr(self.options, name) != getattr(qemu.Options(), name):
                raise LabError(f"libvirt guests have no choice of {name}")
        if self.options.machine == "microvm" or self.options.backend not in BACKENDS:
            raise LabError(f"libvirt guests are pc or q35, with memory of the kinds {', '.join(BACKENDS)}")
        found = qemu.find(self.options.qemu)
        if found.environment:
            raise LabError("libvirt guests run on the machine's own QEMU")
        return found

    def _make_socket_dir(self) -> pathlib.Path:
        # libvirt's QEMU is another user, who may not be able to enter the folder of the guest.
        folder = pathlib.Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
        folder.chmod(0o755)
        return folder

    def _start(self, for_test: bool):
        # libvirt makes the files that it hands to QEMU the property of QEMU's user, so it gets copies.
        image, ramdisk = (shutil.copy(path, self.sockets / name) for path, name in
                          ((self.kernel.image, "vmlinuz"), (self.ramdisk, "initrd")))
        identity = self.options.uuid or str(uuid.uuid4())
        self._save(libvirt={"uuid": identity, "daemons": _start_daemons()})
        description = self.folder / "domain.xml"
        description.write_text(_domain(self.options, self.name, identity, self.qemu, self.sockets, image, ramdisk))
        # A libvirtd that just started asks QEMU for all that it can do first, which takes long on a busy machine.
        _virsh("create", str(description), timeout=300)
        pid = int(pathlib.Path(f"/run/libvirt/qemu/{self.name}.pid").read_text())
        self._save(pid=pid, start_time=state.start_time(pid),
                   command=pathlib.Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1])

    @property
    def console_log(self) -> pathlib.Path:
        return self.sockets / "console.log"

    def qmp(self, command: str, timeout: float = 30, **arguments):
        request = {"execute": command, "arguments": {key.replace("_", "-"): value for key, value in arguments.items()}}
        return json.loads(_virsh("qemu-monitor-command", self.name, json.dumps(request), timeout=timeout))["return"]

    def hmp(self, command: str, timeout: float = 30) -> str:
        return _virsh("qemu-monitor-command", self.name, "--hmp", command, timeout=timeout)

    def describe(self) -> dict:
        return {**super().describe(), "qmp": None, "libvirt": URI}


def clean_up(domain: dict):
    """Ends the domain, and the daemons if they were started here and no other guest needs them."""
    try:
        _virsh("destroy", domain["uuid"])
    except LabError:
        pass  # it is gone already
    with paths.locked("libvirt"):
        others = [other for _, other in state.guests() if other.get("libvirt")
                  and other["libvirt"]["uuid"] != domain["uuid"] and state.is_alive(other)]
        if others:
            return
        record = _record()
        for daemon in reversed((state.load(record) or {}).get("daemons", [])):
            state.kill(daemon)
        shutil.rmtree(record, ignore_errors=True)


def _record() -> pathlib.Path:
    """Where it is noted which daemons were started here."""
    return paths.run_dir() / ".libvirt"


def _start_daemons() -> bool:
    """Starts libvirt's daemons if they do not run; whether it did."""
    with paths.locked("libvirt"):
        try:
            _virsh("version")
            return False
        except LabError:
            pass
        record = _record()
        record.mkdir(exist_ok=True)
        daemons = []
        for name in DAEMONS:
            file = record / f"{name}.pid"
            file.unlink(missing_ok=True)
            # They are given up after a while without use, in case that nobody comes to stop them.
            done = subprocess.run([name, "--daemon", "--pid-file", file, "--timeout", "120"], capture_output=True,
                                  text=True)
            if done.returncode:
                raise Skip(f"{name} does not start: {done.stderr.strip()[-300:]}")
            pid = int(file.read_text())
            daemons.append({"pid": pid, "start_time": state.start_time(pid)})
            state.save(record, {"daemons": daemons})
        deadline = time.monotonic() + 20
        while True:
            try:
                _virsh("version")
                return True
            except LabError as error:
                if time.monotonic() > deadline:
                    raise Skip(f"libvirtd does not answer: {error}") from error
                time.sleep(0.2)


def _virsh(*words: str, timeout: float = 60) -> str:
    try:
        done = subprocess.run(["virsh", "-c", URI, *words], capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise LabError(f"virsh {words[0]} does not end") from None
    if done.returncode:
        raise LabError(f"virsh {words[0]}: {done.stderr.strip()}")
    return done.stdout


def _domain(options: qemu.Options, name: str, identity: str, found: qemu.Qemu, sockets: pathlib.Path, image, ramdisk):
    memory = qemu.size(options.memory) >> 10
    backend = BACKENDS[options.backend]
    cells = "".join(
        f"<cell id='{node}' cpus='{node * options.cpus // options.numa}-{(node + 1) * options.cpus // options.numa - 1}' "
        f"memory='{memory // options.numa}' unit='KiB'/>" for node in range(options.numa))
    if options.max_memory and not cells:
        cells = f"<cell id='0' cpus='0-{options.cpus - 1}' memory='{memory}' unit='KiB'/>"  # libvirt asks for one
    disk = ""
    if options.disk:
        path = qemu.create_disk(options.disk, sockets)
        disk = (f"<disk type='file' device='disk'><driver name='qemu' type='{path.suffix[1:]}'/>"
                f"<source file={quoteattr(str(path))}/><target dev='vda' bus='virtio'/></disk>")
    return f"""<domain type='qemu'>
<name>{escape(name)}</name><uuid>{identity}</uuid>
{f"<maxMemory slots='{options.slots}' unit='KiB'>{qemu.size(options.max_memory) >> 10}</maxMemory>"
 if options.max_memory else ""}
<memory unit='KiB'>{memory}</memory><vcpu>{options.cpus}</vcpu>
{f"<memoryBacking>{backend}</memoryBacking>" if backend else ""}
<os><type arch='x86_64' machine='{options.machine}'>hvm</type>
<kernel>{escape(str(image))}</kernel><initrd>{escape(str(ramdisk))}</initrd>
<cmdline>{escape(qemu.append(options, name))}</cmdline></os>
<features><acpi/><apic/>{"<vmcoreinfo state='on'/>" if options.vmcoreinfo else ""}</features>
<cpu mode='maximum'>{f"<numa>{cells}</numa>" if cells else ""}</cpu>
<on_poweroff>destroy</on_poweroff><on_reboot>{"restart" if options.reboot else "destroy"}</on_reboot>
<on_crash>destroy</on_crash>
<devices><emulator>{escape(str(found.binary))}</emulator>{disk}
<serial type='unix'><source mode='bind' path='{sockets}/serial.sock'/><log file='{sockets}/console.log'/>
<target port='0'/></serial><memballoon model='none'/></devices>
</domain>
"""
