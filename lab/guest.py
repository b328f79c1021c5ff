"""A guest that runs: boot it, run commands in it, talk to its monitor, stop it.

    with Guest(kernel="6.1-cloud", backend="memfd") as guest:
        code, output = guest.run("ps")
"""

import atexit
import contextlib
import ctypes
import dataclasses
import itertools
import os
import pathlib
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import typing

from . import guardian, hugepages, initrd, kernels, paths, qemu, qmp, state
from .console import Console
from .errors import BootError, ConsoleGone, LabError, Skip

BOOT_TIMEOUT = 150  # a few seconds where nothing else runs; test machines are busy
# TCG with several threads loses a kernel that patches its code (ADR 5): of the younger ones every thirtieth on a busy
# machine, while it boots and nobody is there but the lab.
BOOT_TRIES, EARLY_TRY_SECONDS = 3, 40
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)
_running: set["Guest"] = set()


def next_number() -> int:
    """For the name of one more guest of this process."""
    return next(_numbers)


class Result(typing.NamedTuple):
    """How a command in the guest ended. Output that is not UTF-8 keeps its bytes as surrogates."""
    code: int
    output: str


@dataclasses.dataclass
class Job:
    """A program in the guest's background. READY has the words key=value of the line with which it said so."""
    guest: "Guest"
    pid: int
    line: str
    ready: dict[str, str]
    log: str

    def output(self) -> str:
        return self.guest.check(f"cat {self.log}")

    def alive(self) -> bool:
        return self.guest.run(f"kill -0 {self.pid}").code == 0

    def stop(self, signal_name: str = "TERM"):
        self.guest.run(f"kill -{signal_name} {self.pid}; for i in $(seq 100); do kill -0 {self.pid} || break; "
                       "usleep 20000; done")


class Machine:
    """A QEMU of the lab with whatever runs in it: its process, its folder, its monitors. It starts when it is made and
    ends with the `with` block, or with this process."""

    def __init__(self, options: qemu.Options, name: str, *, for_test: bool = True, boot_timeout: float | None):
        """With FOR_TEST it ends with this process. With BOOT_TIMEOUT None nobody waits until it is up."""
        self.options, self.name = options, name
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name):
            raise LabError(f"not a name for a guest: {self.name!r}")
        self.qemu = self._find_qemu()
        self.process = self.guardian = self.console = None
        self.boot_seconds = None
        self._lock = threading.RLock()
        for tries_left in reversed(range(BOOT_TRIES if self._can_be_lost_by_tcg() else 1)):
            self._make_folder()
            try:
                if for_test:
                    self.guardian = guardian.start(self.folder)
                    _running.add(self)
                self._start(for_test)
                self._connect_console()
                if boot_timeout is not None:
                    self.wait_boot(min(boot_timeout, EARLY_TRY_SECONDS) if tries_left else boot_timeout)
                return
            except BootError as error:
                self.stop()
                # It ends with "Oops: int3" or what else half-changed code does, or hangs in handling it.
                is_lost = isinstance(error.__cause__, (ConsoleGone, TimeoutError))
                if not tries_left or not is_lost:
                    raise
                print(f"lab: once more: {error}", file=sys.stderr)
            except BaseException:
                self.stop()
                raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    @property
    def pid(self) -> int:
        """QEMU's process."""
        return self.state["pid"]

    @property
    def qmp_socket(self) -> pathlib.Path:
        return self.sockets / "qmp.sock"

    @property
    def hmp_socket(self) -> pathlib.Path:
        return self.sockets / "hmp.sock"

    @property
    def console_log(self) -> pathlib.Path:
        """All that the guest ever printed on its console."""
        return self.folder / "console.log"

    def alive(self) -> bool:
        return state.is_alive(self.state)

    def wait_boot(self, timeout: float = BOOT_TIMEOUT):
        """Waits until what runs in it is up, or up again."""
        began = time.monotonic()
        try:
            self._wait_ready(timeout)
        except (LabError, TimeoutError) as error:
            raise BootError(f"the guest {self.name} did not boot: {error}\n{self._last_words()}") from error
        self.boot_seconds = time.monotonic() - began

    def _can_be_lost_by_tcg(self) -> bool:
        return self.options.accel == "tcg" and self.options.tcg_threads == "multi" and self.options.cpus > 1

    # What each kind of machine has of its own.
    release = ""  # of the kernel

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _open_console(self, path: pathlib.Path):
        """Connects to the serial port; OSError while there is none."""
        raise NotImplementedError

    def _wait_ready(self, timeout: float):
        raise NotImplementedError

    def qmp(self, command: str, timeout: float = 30, **arguments):
        """What QEMU answers to a QMP command. An underscore in an argument's name stands for a dash."""
        arguments = {key.replace("_", "-"): value for key, value in arguments.items()}
        return qmp.execute(self._monitor(), command, timeout, **arguments)

    def hmp(self, command: str, timeout: float = 30) -> str:
        """What QEMU prints for a command of its human monitor."""
        if self.options.monitor == "hmp" and not self.options.control:
            return qmp.human(self.hmp_socket, command, timeout)
        return qmp.execute(self._monitor(), "human-monitor-command", timeout, **{"command-line": command})

    def stop(self):
        """Ends the guest and removes what it left."""
        with self._lock:
            _running.discard(self)
            if self.console:
                self.console.close()
                self.console = None
            state.clean_up(self.folder)
            shutil.rmtree(self.folder, ignore_errors=True)
            if self.process:
                self.process.wait()
            if self.guardian:
                self.guardian.stdin.close()
                self.guardian.wait()
                self.guardian = None

    def describe(self) -> dict:
        """What a person or a program needs to know to use the guest."""
        return {"name": self.name, "pid": self.pid, "kernel": self.options.kernel, "release": self.state["release"],
                "qemu": self.state["qemu"], "folder": str(self.folder), "console": str(self.sockets / "serial.sock"),
                "qmp": str(self.qmp_socket) if self.options.monitor in ("qmp", "both") else None,
                "hmp": str(self.hmp_socket) if self.options.monitor in ("hmp", "both") else None,
                "alive": self.alive(), "command": self.state["command"], "options": self.state["options"]}

    def _find_qemu(self) -> qemu.Qemu:
        return qemu.find(self.options.qemu)

    def _make_folder(self):
        self.folder = paths.run_dir() / self.name
        old = state.load(self.folder)
        if old and state.is_alive(old):
            raise LabError(f"a guest called {self.name} is running already")
        state.clean_up(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        self.sockets = self._make_socket_dir()
        self.state = {"name": self.name, "pid": None, "start_time": None, "sockets": str(self.sockets), "files": [],
                      "release": self.release, "qemu": self.qemu.version if self.qemu else None,
                      "options": dataclasses.asdict(self.options)}
        self._save()

    def _save(self, **changes):
        self.state.update(changes)
        state.save(self.folder, self.state)

    def _make_socket_dir(self) -> pathlib.Path:
        return paths.socket_dir(self.folder)

    def _start(self, for_test: bool):
        options = self.options
        if options.accel == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
            raise Skip("/dev/kvm cannot be used")
        line = self._command()
        kind, _, where = options.backend.partition(":")
        if kind == "file" and where:
            self._save(files=[f"{where}/{self.name}.ram{node}" for node in range(max(options.numa, 1))])
        if kind == "hugetlbfs":
            self._save(hugepages=hugepages.borrow(self.folder, qemu.size(options.memory)))
        user = None
        if options.start_as:
            user = self._give_to(options.start_as)
        parent = os.getpid()
        main_thread = threading.current_thread() is threading.main_thread()

        def prepare():
            # The signal comes when the starting thread ends, so only the main one stands for the process.
            if for_test and main_thread:
                _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                if os.getppid() != parent:
                    os._exit(1)

        with open(self.folder / "qemu.log", "wb") as log:
            self.process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env={**os.environ, **self.qemu.environment}, start_new_session=True,
                                            preexec_fn=prepare, **(user or {}))
        self._save(pid=self.process.pid, start_time=state.start_time(self.process.pid), command=line)

    def _give_to(self, user: str) -> dict:
        """Makes the guest's folders USER's; the arguments that start a process as them."""
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            raise LabError(f"no user is called {user}") from None
        if os.geteuid() != 0:
            raise Skip("starting QEMU as another user needs root")
        for folder in {self.folder, self.sockets}:
            os.chown(folder, entry.pw_uid, entry.pw_gid)
            for path in folder.iterdir():
                if path.is_file():
                    os.chown(path, entry.pw_uid, entry.pw_gid)
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}

    def _connect_console(self):
        path = self.sockets / "serial.sock"
        deadline = time.monotonic() + 30
        while True:
            try:
                self.console = self._open_console(path)
                return
            except OSError:
                if not self.alive() or time.monotonic() > deadline:
                    raise LabError(f"QEMU did not start:\n{self._last_words()}") from None
                time.sleep(0.02)

    def _monitor(self) -> pathlib.Path:
        if self.options.control:
            return self.sockets / "control.sock"
        if self.options.monitor in ("qmp", "both"):
            return self.qmp_socket
        raise LabError(f"the guest {self.name} has no QMP socket (monitor={self.options.monitor})")

    def _last_words(self) -> str:
        words = []
        for path in (self.folder / "qemu.log", self.console_log):
            try:
                text = path.read_bytes()[-3000:].decode(errors="replace").strip()
            except OSError:
                continue
            if text:
                words.append(f"--- {path.name}\n{text}")
        return "\n".join(words)


class Guest(Machine):
    """A guest machine with Linux and a shell."""

    def __init__(self, kernel: str = "6.1-cloud", *, name: str | None = None, for_test: bool = True,
                 boot_timeout: float = BOOT_TIMEOUT, wait: bool = True, **options):
        """OPTIONS are the fields of qemu.Options. With FOR_TEST the guest ends with this process."""
        self.kernel = kernels.fetch(kernel)
        self.ramdisk = initrd.build(self.kernel)
        super().__init__(qemu.Options(kernel=kernel, **options),
                         name or f"lab-{kernel}-{os.getpid()}-{next_number()}",
                         for_test=for_test, boot_timeout=boot_timeout if wait else None)

    @classmethod
    def attach(cls, name: str) -> "Guest":
        """A guest that another process started, such as `lab boot`."""
        folder = paths.run_dir() / name
        known = state.load(folder)
        if known is None:
            raise LabError(f"no guest is called {name}; lab/lab list shows them")
        if known.get("libvirt"):
            from .libvirt import LibvirtGuest as cls  # it is made of this class
        if not state.is_alive(known):
            raise LabError(f"the guest {name} ended; lab/lab stop {name} cleans up")
        guest = cls.__new__(cls)
        guest.options = qemu.Options(**known["options"])
        guest.name, guest.folder, guest.state = name, folder, known
        guest.sockets = pathlib.Path(known["sockets"])
        guest.kernel = kernels.cached(guest.options.kernel)
        guest.process = guest.guardian = guest.console = guest.boot_seconds = None
        guest._lock = threading.RLock()
        return guest

    @property
    def release(self) -> str:
        return self.kernel.release

    def run(self, command: str, timeout: float = 60) -> Result:
        """Runs a shell command in the guest. What it leaves in the background should be started by start()."""
        code, output = self.run_bytes(command, timeout)
        return Result(code, output.decode(errors="surrogateescape"))

    def run_bytes(self, command: str | bytes, timeout: float = 60) -> tuple[int, bytes]:
        """Like run(), with the output as bytes."""
        with self._conversation() as shell:
            return shell.run(command, timeout)

    def check(self, command: str, timeout: float = 60) -> str:
        """The output of a command that must succeed."""
        result = self.run(command, timeout)
        if result.code:
            raise LabError(f"in the guest, {command!r} ended with {result.code}: {result.output[-2000:]}")
        return result.output

    def start(self, command: str, timeout: float = 60) -> Job:
        """Starts a program in the guest's background and waits until it prints a line that begins with "ready"."""
        log = f"/run/lab/job.{next(_numbers)}.{time.monotonic_ns() & 0xffffff:x}"
        tries = max(int(timeout / 0.05), 1)
        output = self.check(f"setsid sh -c {shlex.quote('exec ' + command)} </dev/null >{log} 2>&1 & p=$!; i=0\n"
                            f"until grep -qs ^ready {log} || [ $i -ge {tries} ] || ! kill -0 $p 2>/dev/null; "
                            "do usleep 50000; i=$((i+1)); done\n"
                            f"echo $p; cat {log}", timeout * 2)
        pid, _, printed = output.partition("\n")
        match = re.search(r"^ready.*", printed, re.M)
        if not match:
            raise LabError(f"in the guest, {command!r} did not become ready: {printed[-2000:]}")
        return Job(self, int(pid), match[0], dict(re.findall(r"([\w.]+)=(\S*)", match[0])), log)

    def put(self, content: bytes, path: str, mode: int | None = None, timeout: float = 120):
        """Writes a file in the guest."""
        with self._conversation() as shell:
            shell.put(content, path, timeout)
        if mode is not None:
            self.check(f"chmod {mode:o} {shlex.quote(path)}")

    def get(self, path: str, timeout: float = 120) -> bytes:
        """The content of a file in the guest."""
        code, output = self.run_bytes(f"cat {shlex.quote(path)}", timeout)
        if code:
            raise LabError(f"cannot read {path} in the guest: {output.decode(errors='replace').strip()}")
        return output

    def reset(self, timeout: float = BOOT_TIMEOUT):
        """Pushes the reset button and waits until the guest is up again."""
        self.hmp("system_reset")
        with self._lock:
            self.wait_boot(timeout)

    def hotplug_memory(self, length: str = "128M") -> str:
        """Plugs a piece of memory in and brings it online; the id of the new device. Needs max_memory."""
        number = next(_numbers)
        backend = {"qom_type": "memory-backend-ram"}
        if self.options.backend != "anon":
            backend = {"qom_type": "memory-backend-memfd", "share": self.options.backend != "private"}
        blocks = "ls -d /sys/devices/system/memory/memory* | wc -l"
        before = int(self.check(blocks))
        self.qmp("object-add", id=f"plug{number}", size=qemu.size(length), **backend)
        self.qmp("device_add", driver="pc-dimm", id=f"dimm{number}", memdev=f"plug{number}")
        # The blocks appear a little later; kernels differ in whether they go online by themselves.
        self.check(f"i=0; until [ $({blocks}) -gt {before} ]; do [ $i -lt 100 ] || exit 1; usleep 100000; "
                   "i=$((i+1)); done; "
                   "for f in /sys/devices/system/memory/memory*/state; do grep -q offline $f && echo online >$f; done; "
                   "! grep -q offline /sys/devices/system/memory/memory*/state")
        return f"dimm{number}"

    def _command(self) -> list[str]:
        boot = ["-kernel", str(self.kernel.image), "-initrd", str(self.ramdisk),
                "-append", qemu.append(self.options, self.name)]
        return qemu.command(self.options, self.qemu, self.name, self.sockets, self.folder, boot)

    def _open_console(self, path: pathlib.Path) -> Console:
        return Console(path)

    def _wait_ready(self, timeout: float):
        self._shell().wait_ready(timeout)

    @contextlib.contextmanager
    def _conversation(self):
        with self._lock:
            try:
                yield self._shell(synchronise=True)
            except ConsoleGone as error:
                raise ConsoleGone(f"{error}\n{self._last_words()}") from error

    def _shell(self, synchronise: bool = False) -> Console:
        if self.console is None:
            self._connect_console()
            if synchronise:
                self.console.synchronise()
        return self.console


@atexit.register
def _stop_all():
    for guest in list(_running):
        guest.stop()
