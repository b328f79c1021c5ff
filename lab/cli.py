"""The command line of the lab."""

import argparse
import dataclasses
import json
import os
import select
import shlex
import sys
import termios
import tty

from . import initrd, kernels, modules, paths, qemu, state
from .errors import LabError, Skip
from .guest import BOOT_TIMEOUT, Guest

SKIPPED = 77  # the exit code by which test runners know that a test could not run
CHOICES = {"machine": qemu.MACHINES, "monitor": qemu.MONITORS, "accel": ("tcg", "kvm")}
HELP = {
    "qemu": f"{', '.join(qemu.VERSIONS)} or a path",
    "backend": f"memory of the guest: {', '.join(qemu.BACKENDS)}; file:FOLDER puts the file elsewhere",
    "max_memory": "room for memory to be hotplugged, such as 2G",
    "control": "a second QMP socket (control.sock)",
    "la57": "five-level paging",
    "pti": "page table isolation",
    "append": "more of the kernel's command line",
    "modules": "a kernel module to load at boot (may be repeated)",
    "extra": "one more argument of QEMU (may be repeated; write --extra=-device)",
    "sandbox": "QEMU's seccomp filter, as libvirt sets it",
    "run_as": "QEMU gives up root for this user once it is set up",
    "start_as": "QEMU is this user from its start",
    "disk": "size of a virtio disk, such as 64M, or 64M:qcow2",
    "nic": "virtio, or another model: a user-mode network that reaches nothing outside",
    "reboot": "let the guest reboot instead of ending QEMU",
    "debug_threads": "name QEMU's threads, as libvirt does",
    "vmcoreinfo": "the device through which a guest hands its VMCOREINFO to QEMU",
}


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        return options.action(options) or 0
    except Skip as error:
        print(f"lab: cannot do that here: {error}", file=sys.stderr)
        return SKIPPED
    except (LabError, TimeoutError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="lab", description="Boots real guests to try things on.", epilog=(
        f"Downloads are kept in {paths.LAB.name}/cache (or $LARARIUM_LAB_CACHE), running guests in "
        f"{paths.LAB.name}/run (or $LARARIUM_LAB_RUN)."))
    actions = top.add_subparsers(metavar="ACTION", required=True)

    def action(name, function, **words):
        added = actions.add_parser(name, **words)
        added.set_defaults(action=function)
        return added

    listing = action("kernels", list_kernels, help="list the kernels, and which are in the cache")
    listing.add_argument("--json", action="store_true")
    fetching = action("fetch", fetch, help="download kernels (and QEMU) into the cache")
    fetching.add_argument("names", nargs="*", metavar="NAME", help="a kernel, or qemu-VERSION")
    fetching.add_argument("--all", action="store_true", help="every kernel and every QEMU")
    fetching.add_argument("--refresh", action="store_true", help="look for newer ones")
    debug = action("debug", fetch_debug, help="a kernel's debug symbols; says how big they are, fetches with --yes")
    debug.add_argument("kernel")
    debug.add_argument("--yes", action="store_true")
    attacking = action("attack", build_attack, help="build the attack simulator for guests of these kernels")
    attacking.add_argument("kernels", nargs="+", metavar="KERNEL")
    booting = action("boot", boot, help="boot a guest and leave it running",
                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    booting.add_argument("name", nargs="?", help="how to call it")
    booting.add_argument("--json", action="store_true", help="print all about it as JSON")
    booting.add_argument("--timeout", type=float, default=BOOT_TIMEOUT, help="seconds to wait for its shell")
    booting.add_argument("--no-wait", action="store_true", help="do not wait for its shell")
    booting.add_argument("--libvirt", action="store_true", help="as a libvirt domain")
    _add_guest_options(booting)
    running = action("run", run, help="run a command in a guest")
    running.add_argument("--timeout", type=float, default=60)
    running.add_argument("name")
    running.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    starting = action("start", start, help="start a program in a guest's background; waits for its ready line")
    starting.add_argument("name")
    starting.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    putting = action("put", put, help="copy a file into a guest")
    putting.add_argument("name")
    putting.add_argument("source")
    putting.add_argument("target")
    getting = action("get", get, help="copy a file out of a guest")
    getting.add_argument("name")
    getting.add_argument("source")
    getting.add_argument("target", nargs="?", help="standard output if left out")
    action("console", console, help="a guest's console; leave it with Ctrl-]").add_argument("name")
    showing = action("list", list_guests, help="list the guests")
    showing.add_argument("--json", action="store_true")
    stopping = action("stop", stop, help="end guests")
    stopping.add_argument("names", nargs="*", metavar="NAME")
    stopping.add_argument("--all", action="store_true")
    return top


def list_kernels(options):
    rows = []
    for name, source in kernels.SOURCES.items():
        kernel = kernels.cached(name)
        rows.append({"name": name, "arch": source.arch, "release": kernel and kernel.release,
                     "version": kernel and kernel.version, "suite": kernel.suite if kernel else source.suites[0]})
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(f"{row['name']:12} {row['arch']:6} {row['release'] or 'not in the cache':30} "
              f"{row['version'] or '':20} {row['suite']}".rstrip())


def fetch(options):
    names = list(options.names)
    if options.all:
        names += [*kernels.SOURCES, *(f"qemu-{version}" for version in qemu.VERSIONS)]
    if not names:
        raise LabError("what? Name a kernel (lab/lab kernels lists them), or say --all")
    for name in names:
        if name.startswith("qemu-"):
            found = qemu.find(name.removeprefix("qemu-"))
            print(f"{name}: {found.version}, {found.binary}")
        else:
            kernel = kernels.fetch(name, refresh=options.refresh)
            initrd.build(kernel)
            print(f"{name}: {kernel.release}, {kernel.folder}")


def fetch_debug(options):
    root, package, length = kernels.debug_package(options.kernel)
    if not options.yes:
        print(f"{package} is {length / 1e6:.0f} MB; fetch it with --yes")
        return
    print(root.download(package)[0])


def build_attack(options):
    for name in options.kernels:
        print(modules.build(name))


def boot(options):
    fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(qemu.Options)}
    make = Guest
    if options.libvirt:
        from .libvirt import LibvirtGuest as make
    name = options.name or f"{fields['kernel']}-{os.getpid()}"
    guest = make(name=name, for_test=False, boot_timeout=options.timeout, wait=not options.no_wait, **fields)
    about = guest.describe()
    if guest.console:
        guest.console.close()
    if options.json:
        print(json.dumps({**about, "boot_seconds": guest.boot_seconds}, indent=1))
        return
    print(f"{name}: pid {about['pid']}, kernel {about['release']}, QEMU {about['qemu']}", end="")
    print(f", booted in {guest.boot_seconds:.1f} s" if guest.boot_seconds else "")
    for socket in ("qmp", "hmp", "console"):
        if about[socket]:
            print(f"  {socket}: {about[socket]}")


def run(options) -> int:
    guest = Guest.attach(options.name)
    code, output = guest.run_bytes(_command(options), options.timeout)
    sys.stdout.buffer.write(output)
    sys.stdout.buffer.flush()
    return code


def start(options):
    print(Guest.attach(options.name).start(_command(options)).line)


def put(options):
    with open(options.source, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
        Guest.attach(options.name).put(file.read(), options.target, mode)


def get(options):
    content = Guest.attach(options.name).get(options.source)
    if options.target:
        with open(options.target, "wb") as file:
            file.write(content)
    else:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()


def console(options):
    connection = Guest.attach(options.name)._shell().socket
    connection.sendall(b"\nstty echo onlcr; PS1='# ' PS2='> '\n")
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        while True:
            readable, _, _ = select.select([0, connection], [], [])
            if connection in readable:
                content = connection.recv(1 << 16)
                if not content:
                    break
                os.write(1, content)
            if 0 in readable:
                typed = os.read(0, 4096)
                if b"\x1d" in typed or not typed:
                    break
                connection.sendall(typed)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        print()


def list_guests(options):
    rows = [{"name": known["name"], "pid": known["pid"], "alive": state.is_alive(known), "release": known["release"],
             "qemu": known["qemu"], "sockets": known["sockets"]} for _, known in state.guests()]
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(f"{row['name']:24} {row['pid'] or '-':>8} {'runs' if row['alive'] else 'ended':6} {row['release']:28} "
              f"QEMU {row['qemu']}")


def stop(options):
    if not options.names and not options.all:
        raise LabError("which? Name guests, or say --all")
    for name in options.names:
        folder = paths.run_dir() / name
        if state.load(folder) is None:
            raise LabError(f"no guest is called {name}")
        state.clean_up(folder)
    if options.all:
        for folder, _ in state.guests():
            state.clean_up(folder)


def _command(options) -> str:
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not words:
        raise LabError("which command?")
    # One word is a line for the shell; several are a command and its arguments, as they were given.
    return words[0] if len(words) == 1 else shlex.join(words)


def _add_guest_options(group: argparse.ArgumentParser):
    for field in dataclasses.fields(qemu.Options):
        flag = f"--{field.name.replace('_', '-')}"
        default = None if field.default is dataclasses.MISSING else field.default
        words = {"dest": field.name, "default": default, "help": HELP.get(field.name, " ")}
        if field.name in ("modules", "extra"):
            group.add_argument("--module" if field.name == "modules" else flag, action="append",
                               metavar="WORD", **{**words, "default": []})
        elif field.type is bool or field.type == (bool | None):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **words)
        elif field.type is int:
            group.add_argument(flag, type=int, metavar="N", **words)
        else:
            group.add_argument(flag, choices=CHOICES.get(field.name),
                               **({} if field.name in CHOICES else {"metavar": field.name.upper()}), **words)
