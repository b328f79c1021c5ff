#!/usr/bin/env python3
"""Records the guests of the golden tests again: boots them, makes known things in them, and writes beside this file a
folder for each kernel, with

    guest.recording   the memory and registers that the commands read
    profile.json.xz   of the guest's symbols and types, what Lararium can ask for (strip_profile.py)
    commands          what was run, and in which file what it printed is

    tests/golden/record.py                  all kernels, with the programs in build/bin
    tests/golden/record.py 6.1-cloud --build build-debug

What the commands print of the recording is compared with what they print of the guest itself, which stands still, with
its own whole profile.
"""

import argparse
import json
import lzma
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

import strip_profile  # noqa: E402
import test_views  # noqa: E402
from lab.guest import Guest  # noqa: E402

# How many CPUs: each makes a dozen threads, so there are two only where per-CPU symbols are addresses (6.15 on).
KERNELS = {"5.10-cloud": 1, "6.1-cloud": 1, "6.12-cloud": 1, "7-cloud": 2}
# Small hash tables of sockets, which are recorded whole.
OPTIONS = {"memory": "192M", "backend": "memfd", "modules": ("dummy",), "append": "thash_entries=128 uhash_entries=128"}
WORKLOADS = ("tcp 4 80", "udp 6 53", "unix", "packet lo", "threads 3 worker", "container", "deleted_exec", "fds",
             "maps")
# The kernel's threads differ in little: as a table they take a tenth of the room.
COMMANDS = """\
threads.txt ps --threads --wide
threads.json ps --threads --user
kthreadd.json ps --pid 2
modules.json modules
sockets.json sockets
files.json files
mounts.json mounts
interfaces.json interfaces
info.json info
maps.json maps {maps}
"""
# What a recording does not have as the guest has it: the VM, its state, and whose profile it was.
DIFFERENT = {"vm": None, "state": None, "limitations": None, "found_by": None, "profile_source": None, "build_id": None}


def comparable(document):
    if isinstance(document, str):
        return document
    document = {**document, **{key: None for key in DIFFERENT if key in document}}
    if "item" in document:
        document["item"] = {**document["item"], **{key: None for key in DIFFERENT if key in document["item"]}}
    return document


def run(*command):
    completed = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if completed.returncode:
        raise SystemExit(f"{completed.args}: {completed.stderr}")
    return completed.stdout


def record(kernel, build, scratch):
    folder = HERE / kernel
    folder.mkdir(exist_ok=True)
    program = build / "bin/lararium"
    with Guest(kernel, name=f"golden-{kernel}", cpus=KERNELS[kernel], **OPTIONS) as guest:
        jobs = {workload.split()[0]: guest.start(f"workload {workload}") for workload in WORKLOADS}
        time.sleep(1)  # for the shell that started them to be at rest
        guest.qmp("stop")
        full = scratch / "profile.json"
        run(program, "profile", guest.pid, "--no-cache", "--isf", full)
        isf = strip_profile.strip(json.loads(full.read_text()), strip_profile.names_in(ROOT / "src/os/linux"))
        profile = folder / "profile.json.xz"
        profile.write_bytes(lzma.compress(json.dumps(isf, separators=(",", ":")).encode(), check=lzma.CHECK_CRC32,
                                          preset=9 | lzma.PRESET_EXTREME))
        (folder / "commands").write_text(COMMANDS.format(**{name: job.pid for name, job in jobs.items()}))
        pages = run(build / "bin/record_guest", guest.pid, profile, folder / "commands", kernel,
                    folder / "guest.recording")
        for path, words in test_views.commands(folder):
            is_json = test_views.is_json(path)
            whole, kept = (test_views.run(program, guest.pid, words, is_json),
                           test_views.replay(program, folder, words, is_json))
            if lines := test_views.difference(comparable(whole), comparable(kept), "guest", "recording"):
                raise SystemExit("\n".join([f"{kernel}: {path.name}: the recording shows something else", *lines]))
    test_views.update(program, folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{kernel}: {pages.strip()}, {size >> 10} KiB in {folder}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"of {', '.join(KERNELS)}; all if none is named")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build", help="where record_guest was built")
    options = parser.parse_args()
    if unknown := set(options.kernels) - set(KERNELS):
        parser.error(f"not recorded: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="lararium-record-") as scratch:
        for kernel in options.kernels or KERNELS:
            record(kernel, options.build.resolve(), pathlib.Path(scratch))


if __name__ == "__main__":
    sys.exit(main())
