"""What is known of running guests, on disk, so that any process (or a later one) can stop them and clean up."""

import json
import os
import pathlib
import shutil
import signal
import time

from . import hugepages, paths


def save(folder: pathlib.Path, state: dict):
    """Writes STATE; a reader sees the old or the new one."""
    fresh = folder / "state.json.new"
    fresh.write_text(json.dumps(state, indent=1) + "\n")
    os.replace(fresh, folder / "state.json")


def load(folder: pathlib.Path) -> dict | None:
    """The state of the guest in FOLDER, or None."""
    try:
        return json.loads((folder / "state.json").read_text())
    except (OSError, ValueError):
        return None


def guests() -> list[tuple[pathlib.Path, dict]]:
    """The guests of the run folder, dead ones too."""
    folders = sorted(path.parent for path in paths.run_dir().glob("*/state.json"))
    return [(folder, state) for folder in folders if (state := load(folder))]


def start_time(pid: int) -> int | None:
    """When a process started, which with its pid names it for good; None if there is none."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def is_alive(state: dict) -> bool:
    """Whether the very process that was started still runs."""
    return bool(state.get("pid")) and start_time(state["pid"]) == state["start_time"]


def clean_up(folder: pathlib.Path):
    """Ends the guest in FOLDER and gives back all that it took. Doing it twice, or half, does no harm."""
    state = load(folder)
    if state is None:
        return
    if state.get("libvirt"):
        from . import libvirt  # it knows guests, which know this module
        libvirt.clean_up(state["libvirt"])
    kill(state)
    if state.get("hugepages"):
        hugepages.release(folder, state["hugepages"])
    for path in state.get("files", []):
        pathlib.Path(path).unlink(missing_ok=True)
    if state["sockets"] != str(folder):
        shutil.rmtree(state["sockets"], ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def kill(state: dict):
    """Ends the very process that was started, if it still runs."""
    if not is_alive(state):
        return
    # A descriptor of the process cannot come to mean another one, as its number can.
    try:
        process = os.pidfd_open(state["pid"])
    except ProcessLookupError:
        return
    try:
        if not is_alive(state):
            return
        for number, seconds in ((signal.SIGTERM, 3), (signal.SIGKILL, 10)):
            try:
                signal.pidfd_send_signal(process, number)
            except ProcessLookupError:
                return
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                if not is_alive(state):
                    return
                time.sleep(0.02)
    finally:
        os.close(process)
