"""Runs commands in a guest through the root shell on its serial console."""

import base64
import gzip
import hashlib
import itertools
import re
import select
import shlex
import socket
import time

from .errors import ConsoleGone, LabError

LINE = 900        # busybox's shell reads at most 1023 bytes a line from a terminal without echo
PIECE_SECONDS = 30  # after which what the guest should have got counts as lost
CHUNK = 12 << 10  # sent before the guest must answer: less than the terminal's buffers hold
_ids = itertools.count(1)


class Console:
    """The shell at the other end of a UNIX socket. It is one conversation: one command at a time."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self.received = b""
        self.tail = b""  # the last of what came, to show when something goes wrong

    def close(self):
        self.socket.close()

    def wait_ready(self, timeout: float):
        """Waits until a shell that just started says so, and sets the line up."""
        deadline = time.monotonic() + timeout
        self._read_until(rb"lab: ready\r?\n", deadline)
        self.synchronise(max(deadline - time.monotonic(), 5))

    def synchronise(self, timeout: float = 30):
        """Turns echo and line ending translation off, and drops what an earlier user left unread."""
        deadline = time.monotonic() + timeout
        while True:
            mark = f"{next(_ids)}.{time.monotonic_ns():x}"
            # The mark is written in two parts, so that the echo of the command is not taken for its answer.
            self._send(f"\nstty -echo -onlcr -ixon; PS1= PS2=; printf '\\001%s\\n' ok{mark}\n".encode())
            try:
                self._read_until(rb"\x01ok" + re.escape(mark).encode() + rb"\r?\n",
                                 min(deadline, time.monotonic() + 3))
                return
            except TimeoutError:
                if time.monotonic() >= deadline:
                    raise

    def run(self, command: str | bytes, timeout: float) -> tuple[int, bytes]:
        """Runs COMMAND with sh -c; its exit code and all that it printed, to the byte."""
        deadline = time.monotonic() + timeout
        if isinstance(command, str):
            command = command.encode(errors="surrogateescape")
        mark = f"{next(_ids)}.{time.monotonic_ns() & 0xffffff:x}"
        quoted = shlex.quote(command.decode("latin1")).encode("latin1")
        if re.fullmatch(rb"[ -~]{0,%d}" % (LINE - 50), quoted):
            line = f"lab_run {mark} ".encode() + quoted
        else:
            self._send_script(base64.b64encode(command), f"/run/lab/script.{mark}.b64", deadline)
            script = f"/run/lab/script.{mark}"
            line = (f"base64 -d {script}.b64 >{script}; rm {script}.b64; "
                    f"lab_run {mark} '. {script}'; rm {script}").encode()
        self._send(line + b"\n")
        try:
            match = self._read_until(rb"\x01" + re.escape(mark).encode() + rb" (\d+) (\d+)\n", deadline)
            output = self._read_exactly(int(match[2]), deadline)
            self._read_until(rb"\x02" + re.escape(mark).encode() + rb"\n", deadline)
        except TimeoutError:
            self._send(b"\x03")  # the interrupt character ends the command, so that the next one can run
            try:
                self.synchronise(5)
            except (TimeoutError, LabError):
                pass
            raise TimeoutError(f"after {timeout:g} s still running in the guest: {command[:200]!r}") from None
        return int(match[1]), output

    def put(self, content: bytes, path: str, timeout: float):
        """Writes CONTENT to PATH in the guest."""
        deadline = time.monotonic() + timeout
        target = shlex.quote(path)
        packed = base64.b64encode(gzip.compress(content, 6))
        for _ in range(3):  # a guest that is busy at the wrong moment loses what the line brings
            part = f"/run/lab/put.{next(_ids)}"
            try:
                self._send_script(packed, part, deadline, PIECE_SECONDS)
            except TimeoutError:  # what was lost was the end of a piece, or the question whether it came
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
                self._send(b"\n.\n")
                self.synchronise(left)
            code, output = self.run(f"base64 -d <{part} | gunzip >{target} && md5sum <{target}; s=$?; rm {part}; exit $s",
                                    max(deadline - time.monotonic(), 1))
            if not code and output.split()[:1] == [hashlib.md5(content).hexdigest().encode()]:
                return
        raise LabError(f"cannot write {path} in the guest: {output.decode(errors='replace').strip()}")

    def _send_script(self, text: bytes, path: str, deadline: float, patience: float = float("inf")):
        """Writes TEXT (base64) to PATH, in pieces that the guest answers within PATIENCE: the line has no flow control."""
        for start in range(0, max(len(text), 1), CHUNK):
            piece = text[start:start + CHUNK]
            lines = [piece[offset:offset + LINE] for offset in range(0, len(piece), LINE)]
            mark = f"{next(_ids)}.{time.monotonic_ns() & 0xffffff:x}"
            self._send(f"cat >>{path} <<'.'\n".encode() + b"\n".join([*lines, b"."]) +
                       f"\nprintf '\\001%s\\n' ok{mark}\n".encode())
            self._read_until(rb"\x01ok" + re.escape(mark).encode() + rb"\n", min(deadline, time.monotonic() + patience))

    def _send(self, content: bytes):
        try:
            self.socket.sendall(content)
        except OSError as error:
            raise ConsoleGone(f"the guest's console is gone ({error.strerror})") from error

    def _read_until(self, pattern: bytes, deadline: float) -> re.Match:
        while True:
            match = re.search(pattern, self.received)
            if match:
                self.received = self.received[match.end():]
                return match
            self._receive(deadline)

    def _read_exactly(self, count: int, deadline: float) -> bytes:
        while len(self.received) < count:
            self._receive(deadline)
        content, self.received = self.received[:count], self.received[count:]
        return content

    def _receive(self, deadline: float):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self.socket], [], [], left)[0]:
            raise TimeoutError("the guest does not answer on its console")
        try:
            content = self.socket.recv(1 << 16)
        except OSError as error:
            raise ConsoleGone(f"the guest's console is gone ({error.strerror})") from error
        if not content:
            raise ConsoleGone("the guest's console was closed: QEMU ended")
        self.received += content
        self.tail = (self.tail + content)[-4096:]
