"""Finds a QEMU of the wanted version and writes the command line that starts a guest."""

import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

from . import apt, paths
from .errors import LabError, Skip

VERSIONS = {"7.2": ("bookworm",), "10.0": ("bookworm", "bookworm-backports")}  # the last suite is where it comes from
MACHINES = ("pc", "q35", "microvm")
BACKENDS = ("anon", "memfd", "file", "hugetlbfs", "private")
MONITORS = ("qmp", "hmp", "both", "none")
FIRMWARE = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")
SANDBOX = "on,obsolete=deny,elevateprivileges={},spawn=deny,resourcecontrol=deny"


@dataclasses.dataclass(frozen=True)
class Qemu:
    """A QEMU that can be started, and what its environment must hold."""
    binary: pathlib.Path
    version: str
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    firmware: tuple[str, ...] = ()  # where its firmware is, if not where it looks by itself


@dataclasses.dataclass
class Options:
    """What a guest is made of. Guest() and `lab boot` take these."""
    kernel: str = "6.1-cloud"
    qemu: str = "7.2"               # a version or the path of a binary
    machine: str = "q35"            # pc, q35 or microvm
    accel: str = "tcg"              # tcg or kvm
    tcg_threads: str = "multi"      # single: one thread of QEMU's runs all vCPUs, in turns
    cpu: str = "max"
    cpus: int = 2
    memory: str = "512M"
    max_memory: str | None = None   # room for memory to be hotplugged, such as "2G"
    slots: int = 4                  # how many pieces may be hotplugged
    backend: str = "anon"           # anon, memfd, file (or file:FOLDER), hugetlbfs, private
    numa: int = 0                   # number of NUMA nodes
    monitor: str = "qmp"            # qmp, hmp, both or none
    control: bool = False           # a second QMP socket, for a test whose subject holds the first
    la57: bool | None = None        # five-level paging; None leaves it to the CPU model
    pti: bool | None = None         # page table isolation; None leaves it to the kernel
    kaslr: bool = True
    append: str = ""                # more of the kernel's command line
    modules: tuple[str, ...] = ()   # kernel modules to load at boot
    vmcoreinfo: bool = False        # the device through which a guest hands its VMCOREINFO to QEMU
    sandbox: bool = False           # the seccomp filter as libvirt sets it
    run_as: str | None = None       # QEMU gives up root for this user once it is set up (-runas)
    start_as: str | None = None     # QEMU is this user from its start, as under libvirt
    uuid: str | None = None
    debug_threads: bool = False     # name QEMU's threads, as libvirt does
    disk: str | None = None         # size of a virtio disk, such as "64M", or "64M:qcow2" (which savevm needs)
    nic: str | None = None          # "virtio" or another model: a user-mode network that reaches nothing
    reboot: bool = False            # let the guest reboot instead of ending QEMU
    extra: tuple[str, ...] = ()     # more of QEMU's command line

    def __post_init__(self):
        for name, known in (("machine", MACHINES), ("monitor", MONITORS), ("accel", ("tcg", "kvm"))):
            if getattr(self, name) not in known:
                raise LabError(f"{name} is {getattr(self, name)!r}, not one of {', '.join(known)}")
        if self.backend.split(":")[0] not in BACKENDS:
            raise LabError(f"backend is {self.backend!r}, not one of {', '.join(BACKENDS)}")
        if self.numa and self.numa > self.cpus:
            raise LabError(f"{self.numa} NUMA nodes need as many CPUs")
        self.modules, self.extra = tuple(self.modules), tuple(self.extra)


def find(wanted: str) -> Qemu:
    """The QEMU of version WANTED (the machine's own if it is that, else downloaded), or the one at a path."""
    if "/" in wanted:
        return Qemu(pathlib.Path(wanted), _version(pathlib.Path(wanted), {}))
    if wanted not in VERSIONS:
        raise LabError(f"no QEMU is called {wanted}; known: {', '.join(VERSIONS)}, or a path")
    own = shutil.which("qemu-system-x86_64")
    if own:
        version = _version(pathlib.Path(own), {})
        if version.startswith(f"{wanted}."):
            return Qemu(pathlib.Path(own), version)
    with paths.locked(f"qemu-{wanted}"):
        tree = paths.cache_dir() / "qemu" / wanted
        if not tree.exists():
            _download(wanted, tree)
    # Only the loader's search path is changed, so that QEMU is a process of its own name, as everywhere else. The C
    # library stays the machine's: it must be the loader's twin.
    folders = [str(tree / folder) for folder in ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")]
    environment = {"LD_LIBRARY_PATH": ":".join(folders), "QEMU_MODULE_DIR": f"{folders[0]}/qemu"}
    binary = tree / "usr/bin/qemu-system-x86_64"
    firmware = tuple(str(tree / folder) for folder in FIRMWARE)
    return Qemu(binary, _version(binary, environment), environment, firmware)


def command(options: Options, qemu: Qemu, name: str, sockets: pathlib.Path, folder: pathlib.Path,
            boot: list[str]) -> list[str]:
    """The command line of QEMU for a guest whose files are in FOLDER and whose sockets are in SOCKETS. BOOT are the
    arguments that say what it boots."""
    shared = {"memfd": "on", "file": "on", "hugetlbfs": "on", "private": "off", "anon": None}[
        options.backend.split(":")[0]]
    machine = options.machine
    memory = options.memory
    if options.max_memory:
        memory += f",slots={options.slots},maxmem={options.max_memory}"
    backends = []
    if shared and not options.numa:
        machine += ",memory-backend=ram0"
        backends.append(_backend(options, "ram0", size(options.memory), folder))
    line = [str(qemu.binary), "-name", f"guest={name},debug-threads=on" if options.debug_threads else name]
    for firmware in qemu.firmware:
        line += ["-L", firmware]
    line += ["-machine", machine]
    line += ["-accel", f"tcg,thread={options.tcg_threads}" if options.accel == "tcg" else options.accel]
    cpu = options.cpu
    if options.la57 is not None:
        cpu += f",la57={'on' if options.la57 else 'off'}"
    line += ["-cpu", cpu, "-smp", str(options.cpus), "-m", memory]
    if options.numa:
        share = size(options.memory) // options.numa
        for node in range(options.numa):
            backends.append(_backend(options, f"ram{node}", share, folder))
            first = node * options.cpus // options.numa
            last = (node + 1) * options.cpus // options.numa - 1
            backends += ["-numa", f"node,nodeid={node},cpus={first}-{last},memdev=ram{node}"]
    for backend in backends:
        line += ["-object", backend] if backend.startswith("memory-backend") else [backend]
    if options.uuid:
        line += ["-uuid", options.uuid]
    if options.sandbox:
        # With it denied QEMU itself could not change its user any more.
        line += ["-sandbox", SANDBOX.format("allow" if options.run_as else "deny")]
    line += ["-display", "none"]
    line += ["-chardev", f"socket,id=serial0,path={sockets}/serial.sock,server=on,wait=off,logfile={folder}/console.log",
             "-serial", "chardev:serial0"]
    if options.monitor in ("qmp", "both"):
        line += ["-qmp", f"unix:{sockets}/qmp.sock,server=on,wait=off"]
    if options.control:
        line += ["-qmp", f"unix:{sockets}/control.sock,server=on,wait=off"]
    if options.monitor in ("hmp", "both"):
        line += ["-monitor", f"unix:{sockets}/hmp.sock,server=on,wait=off"]
    else:
        line += ["-monitor", "none"]
    if options.vmcoreinfo:
        line += ["-device", "vmcoreinfo"]
    bus = "device" if options.machine == "microvm" else "pci"
    if options.disk:
        path = create_disk(options.disk, folder)
        line += ["-drive", f"file={path},format={path.suffix[1:]},if=none,id=disk0",
                 "-device", f"virtio-blk-{bus},drive=disk0"]
    if options.nic:
        model = f"virtio-net-{bus}" if options.nic == "virtio" else options.nic
        line += ["-netdev", "user,id=net0,restrict=on", "-device", f"{model},netdev=net0"]
    else:
        line += ["-nic", "none"]
    if options.run_as:
        since_9 = int(qemu.version.split(".")[0]) >= 9
        line += ["-run-with", f"user={options.run_as}"] if since_9 else ["-runas", options.run_as]
    if not options.reboot:
        line += ["-no-reboot"]
    return line + boot + list(options.extra)


def append(options: Options, name: str) -> str:
    """The kernel's command line."""
    words = ["console=ttyS0", "quiet", "loglevel=1", "panic=-1", f"lab.name={name}"]
    # On a machine so busy that timer interrupts come late, the kernel would take its timer for broken and give up.
    words.append("no_timer_check")
    if options.pti is not None:
        words.append("pti=on" if options.pti else "nopti")
    if not options.kaslr:
        words.append("nokaslr")
    if options.machine == "microvm" and options.accel == "tcg":
        # It has no timer by which a kernel could measure the CPU's clock, and under TCG none that tells it.
        words.append(f"tsc_early_khz={_host_khz()}")
    modules = [*options.modules, *(["qemu_fw_cfg"] if options.vmcoreinfo else [])]
    if modules:
        words.append(f"lab.modules={','.join(modules)}")
    return " ".join([*words, *options.append.split()])


def size(text: str) -> int:
    """The bytes in a size such as "512M"."""
    match = re.fullmatch(r"(\d+)([KMGT]?)", text.upper())
    if not match:
        raise LabError(f"not a size: {text}")
    return int(match[1]) << {"": 20, "K": 10, "M": 20, "G": 30, "T": 40}[match[2]]


def create_disk(disk: str, folder: pathlib.Path) -> pathlib.Path:
    """An empty disk image in FOLDER."""
    length, _, kind = disk.partition(":")
    path = folder / f"disk.{kind or 'raw'}"
    if kind == "qcow2":
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(size(length))], check=True)
    else:
        path.touch()
        os.truncate(path, size(length))
    return path


def _backend(options: Options, name: str, length: int, folder: pathlib.Path) -> str:
    kind, _, where = options.backend.partition(":")
    common = f"id={name},size={length >> 20}M"
    if kind == "memfd":
        return f"memory-backend-memfd,{common},share=on"
    if kind == "private":
        return f"memory-backend-memfd,{common},share=off"
    if kind == "anon":
        return f"memory-backend-ram,{common}"
    if kind == "hugetlbfs":
        return f"memory-backend-file,{common},mem-path={folder}/hugepages,share=on,prealloc=on"
    return f"memory-backend-file,{common},mem-path={pathlib.Path(where) if where else folder}/{folder.name}.{name},share=on"


def _host_khz() -> int:
    match = re.search(r"^cpu MHz\s*: ([\d.]+)", pathlib.Path("/proc/cpuinfo").read_text(), re.M)
    return round(float(match[1]) * 1000) if match else 2_000_000


def _version(binary: pathlib.Path, environment: dict[str, str]) -> str:
    try:
        done = subprocess.run([binary, "--version"], env={**os.environ, **environment}, capture_output=True, text=True)
    except OSError as error:
        raise LabError(f"cannot run {binary}: {error.strerror}") from error
    match = re.search(r"version (\S+)", done.stdout)
    if not match:
        raise LabError(f"cannot run {binary}: {done.stderr.strip()}")
    return match[1]


def _download(version: str, tree: pathlib.Path):
    suites = VERSIONS[version]
    packages = apt.Root(*suites).download_with_depends("qemu-system-x86", suites[-1])
    tree.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tree.parent) as fresh:
        fresh = pathlib.Path(fresh) / "tree"
        for package in packages:
            if not package.name.startswith(("libc6_", "debconf_", "passwd_", "adduser_")):
                apt.extract(package, fresh)
        binary = fresh / "usr/bin/qemu-system-x86_64"
        if not any(package.name.startswith("qemu-system-x86_") and f"{version}." in package.name
                   for package in packages) or not binary.exists():
            raise Skip(f"no QEMU {version} in {suites[-1]}")
        # It would also look for its modules where the machine's own QEMU has those of another build, and give up on
        # seeing them. Its own are found through the environment.
        folder = b"\0/usr/lib/x86_64-linux-gnu/qemu\0"
        binary.write_bytes(binary.read_bytes().replace(folder, b"\0/nonexistent".ljust(len(folder), b"\0")))
        for folder in ("usr/share", "etc", "var"):
            for path in list((fresh / folder).glob("*")):
                if str(path.relative_to(fresh)) not in FIRMWARE and path.is_dir():
                    shutil.rmtree(path)
        os.replace(fresh, tree)
    for package in packages:
        package.unlink()
