"""Talks to QEMU's monitors, one connection per command: each socket serves one client at a time, and what is under
test wants it too."""

import json
import socket
import time

from .errors import LabError


def execute(path, command: str, timeout: float = 30, **arguments):
    """What QEMU answers to a QMP command."""
    with _connect(path, timeout) as connection, connection.makefile("rw") as lines:
        _receive(lines)
        for request in ({"execute": "qmp_capabilities"},
                        {"execute": command, **({"arguments": arguments} if arguments else {})}):
            lines.write(json.dumps(request) + "\n")
            lines.flush()
            reply = _receive(lines)
            while "event" in reply:
                reply = _receive(lines)
            if "error" in reply:
                raise LabError(f"QMP {request['execute']}: {reply['error']['desc']}")
        return reply["return"]


def human(path, command: str, timeout: float = 30) -> str:
    """What QEMU prints for a command on its human monitor."""
    with _connect(path, timeout) as connection:
        _read_prompt(connection)
        connection.sendall(command.encode() + b"\n")
        lines = _read_prompt(connection).replace("\r\n", "\n").split("\n")
    return "\n".join(lines[1:-1]) + "\n"  # without the echo and the next prompt


def _connect(path, timeout: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise LabError(f"cannot connect to {path}: {error.strerror}") from error
    return connection


def _receive(lines) -> dict:
    try:
        line = lines.readline()
    except TimeoutError:
        raise LabError("the monitor does not answer; is another client connected to it?") from None
    if not line:
        raise LabError("the monitor was closed: QEMU ended")
    return json.loads(line)


def _read_prompt(connection: socket.socket) -> str:
    content = b""
    while not content.endswith(b"(qemu) "):
        try:
            part = connection.recv(1 << 16)
        except TimeoutError:
            raise LabError("the monitor does not answer; is another client connected to it?") from None
        if not part:
            raise LabError("the monitor was closed: QEMU ended")
        content += part
    return content.decode(errors="replace")
