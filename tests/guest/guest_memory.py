"""The RAM of a stopped guest, read and written from outside, and its kernel's structures: for tests that make a guest
lie. Page tables are walked here once more, in Python, so that the subject of a test is not its own measure."""

import contextlib
import json
import mmap
import os
import pathlib
import re
import struct
import tempfile

PAGE = 4096
PRESENT, LARGE = 1, 1 << 7
ADDRESS = 0x000ffffffffff000


class GuestMemory:
    """The one RAM block of a guest with a memfd backend below 2 GiB: guest-physical addresses are offsets in it."""

    def __init__(self, guest, size):
        self.size = size
        folder = pathlib.Path(f"/proc/{guest.pid}/fd")
        for entry in folder.iterdir():
            if os.readlink(entry).startswith("/memfd:") and entry.stat().st_size == size:
                self._file = os.open(entry, os.O_RDWR | os.O_CLOEXEC)
                break
        else:
            raise AssertionError("the guest has no memfd of its memory's size")
        self._map = mmap.mmap(self._file, size)
        registers = guest.hmp("info registers")
        self.cr3, self.cr4 = (int(re.search(rf"{name}=([0-9a-f]+)", registers)[1], 16) for name in ("CR3", "CR4"))
        self.levels = 5 if self.cr4 >> 12 & 1 else 4
        self.root = self.cr3 & ADDRESS
        self._undo = []

    def close(self):
        self._map.close()
        os.close(self._file)

    # ---- physical

    def read_physical(self, address, size):
        assert 0 <= address <= self.size - size, hex(address)
        return self._map[address:address + size]

    def write_physical(self, address, content):
        assert 0 <= address <= self.size - len(content), hex(address)
        self._undo.append((address, self._map[address:address + len(content)]))
        self._map[address:address + len(content)] = content

    def undo(self):
        """Takes back all that was written."""
        while self._undo:
            address, content = self._undo.pop()
            self._map[address:address + len(content)] = content

    @contextlib.contextmanager
    def undone(self):
        try:
            yield
        finally:
            self.undo()

    def untouched(self, size):
        """The guest-physical address of SIZE bytes, aligned to 2 MiB, that the guest never used."""
        at = 0
        while at < self.size:
            try:
                data = os.lseek(self._file, at, os.SEEK_DATA)
            except OSError:
                data = self.size  # no data behind
            begin = (at + (2 << 20) - 1) & -(2 << 20)
            if begin + size <= data:
                return begin
            at = os.lseek(self._file, data, os.SEEK_HOLE) if data < self.size else data
        raise AssertionError("the guest has touched too much of its memory")

    def data_ranges(self):
        """(begin, end) of what was ever touched."""
        at = 0
        while at < self.size:
            try:
                begin = os.lseek(self._file, at, os.SEEK_DATA)
            except OSError:
                return
            at = os.lseek(self._file, begin, os.SEEK_HOLE)
            yield begin, at

    # ---- virtual

    def entry(self, address, level, root=None):
        """Where the page table entry of a level (1: of a page) lies that maps the address; None if there is none."""
        table = self.root if root is None else root
        for at in range(self.levels, 0, -1):
            place = table + 8 * (address >> (12 + 9 * (at - 1)) & 511)
            if at == level:
                return place
            value, = struct.unpack("<Q", self.read_physical(place, 8))
            if not value & PRESENT or (value & LARGE and at <= 3):
                return None
            table = value & ADDRESS
        return None

    def translate(self, address, root=None):
        """The guest-physical address; None where nothing is mapped."""
        found = self._page_of(address, root)
        return found and found[0]

    def _page_of(self, address, root):
        """The guest-physical address, and how many bytes follow in the same page."""
        table = self.root if root is None else root
        for level in range(self.levels, 0, -1):
            shift = 12 + 9 * (level - 1)
            value, = struct.unpack("<Q", self.read_physical(table + 8 * (address >> shift & 511), 8))
            if not value & PRESENT:
                return None
            if level == 1 or (value & LARGE and level <= 3):
                inside = address & (1 << shift) - 1
                return (value & ADDRESS & -(1 << shift)) + inside, (1 << shift) - inside
            table = value & ADDRESS
        return None

    def _pieces(self, address, size, root):
        while size:
            found = self._page_of(address, root)
            assert found, f"{address:#x} is not mapped"
            part = min(size, found[1])
            yield found[0], part
            address, size = address + part, size - part

    def read(self, address, size, root=None):
        return b"".join(self.read_physical(at, part) for at, part in self._pieces(address, size, root))

    def write(self, address, content, root=None):
        done = 0
        for at, part in list(self._pieces(address, len(content), root)):
            self.write_physical(at, content[done:done + part])
            done += part


class NoSymbol(Exception):
    """This kernel has no symbol of that name."""


class GuestKernel:
    """A kernel's symbols and structures as Lararium itself exports them, over a GuestMemory."""

    def __init__(self, memory, run):
        """RUN(command, arguments...) gives the text that `lararium COMMAND VM ARGUMENTS...` prints."""
        self.memory = memory
        self.symbols = {}
        for item in json.loads(run("symbols", "--json"))["items"]:
            if item["module"] is None:
                self.symbols.setdefault(item["name"], int(item["address"], 16))
        with tempfile.TemporaryDirectory() as folder:
            run("profile", "--isf", f"{folder}/isf.json")
            isf = json.loads(pathlib.Path(folder, "isf.json").read_text())
        self._types, self._bases = isf["user_types"], isf["base_types"]

    def symbol(self, name):
        """A symbol's address. What kallsyms leaves out (its own tables) VMCOREINFO names from 6.0 on."""
        if name not in self.symbols:
            begin, size = (self.get(self.symbols[f"vmcoreinfo_{what}"]) for what in ("data", "size"))
            text = self.memory.read(begin, min(size, 4096)).decode(errors="replace")
            found = re.search(rf"^SYMBOL\({name}\)=([0-9a-f]+)$", text, re.M)
            if not found:
                raise NoSymbol(name)
            self.symbols[name] = int(found[1], 16)
        return self.symbols[name]

    def has_type(self, structure):
        return structure in self._types

    def has(self, structure, path):
        return self._find(structure, path.split(".")) is not None

    def offset(self, structure, path):
        """Where a member lies; "a.b" for nested ones; anonymous structures are looked through."""
        found = self._find(structure, path.split("."))
        assert found is not None, f"no member {structure}.{path}"
        return found

    def size(self, structure):
        return self._types[structure]["size"]

    def _find(self, structure, path):
        fields = self._types[structure]["fields"]
        field = fields.get(path[0])
        if field is not None:
            if len(path) == 1:
                return field["offset"]
            inner = self._find(field["type"]["name"], path[1:]) if field["type"]["kind"] in ("struct", "union") else None
            return None if inner is None else field["offset"] + inner
        for field in fields.values():
            if field.get("anonymous"):
                inner = self._find(field["type"]["name"], path)
                if inner is not None:
                    return field["offset"] + inner
        return None

    # ---- 64 bits unless said otherwise

    def get(self, address, size=8):
        return int.from_bytes(self.memory.read(address, size), "little")

    def put(self, address, value, size=8):
        self.memory.write(address, (value & ((1 << 8 * size) - 1)).to_bytes(size, "little"))

    def member(self, object_, structure, path, size=8):
        return self.get(object_ + self.offset(structure, path), size)

    def set_member(self, object_, structure, path, value, size=8):
        self.put(object_ + self.offset(structure, path), value, size)

    def direct(self, physical):
        """The kernel's own address of a physical one."""
        return self.get(self.symbol("page_offset_base")) + physical

    def text_base(self):
        return self.symbol("_text")
