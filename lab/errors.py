"""The ways in which something here goes wrong."""


class LabError(Exception):
    """Something is broken: the message says what, and what to do about it."""


class ConsoleGone(LabError):
    """QEMU ended, or closed the serial port."""


class BootError(LabError):
    """A guest does not come up."""


class Skip(LabError):
    """This machine cannot do what was asked for (no huge pages, no libvirt, no network). A test skips on it."""
