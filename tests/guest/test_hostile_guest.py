#!/usr/bin/env python3
"""A guest that lies: contradictions of every kind are written into the memory of a stopped guest, one at a time.

Every command must then end soon, within bounded memory, by itself (never by a signal), and with an exit code of
docs/exit_codes.md. The commands that a lie is about must also say that something is wrong: by the status of their view,
or by an error. After that the lie is taken back, and all must be as before.

A lie is a line of LIES: what it is called, the commands that it is about, and what it writes. $LARARIUM_WHOLE=1 runs
every command on every lie (`make test-all`), else only those that the lie is about and a few more. $LARARIUM_LIES is a
regular expression of those to run.
"""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import resource
import signal
import struct
import subprocess
import tempfile
import time
import typing

import harness
from guest_memory import GuestKernel, GuestMemory, NoSymbol

MEMORY = 768 << 20
ARENA = 64 << 20
CPU_SECONDS = 5
SECONDS = 60  # wall clock, for what waits; machines that run tests are busy
ADDRESS_SPACE = 4 << 30
OWN_MEMORY = 300 << 20  # of its own, beside the guest's, which is mapped
WHOLE = os.environ.get("LARARIUM_WHOLE") == "1"
TRACE = bool(os.environ.get("LARARIUM_TRACE"))
CHOSEN = re.compile(os.environ.get("LARARIUM_LIES", ""))
DOCUMENTED = {0, 3, 7, 8, 9, 10, 11, 13}  # what bad guest memory may lead to
RAW = "ps of a raw dump"
FINDINGS = 20  # of `check`, which may take a lie for an attack

NON_CANONICAL, USER, UNMAPPED = 0x4141414141414141, 0x400000, 0xfffffffffffe0000
WILD = {"a non-canonical address": NON_CANONICAL, "a user address": USER, "an unmapped address": UNMAPPED}


@dataclasses.dataclass
class Lie:
    name: str
    about: tuple[str, ...]  # keys of commands that must tell
    tell: typing.Callable
    cached: bool = True     # false: the lie is about the profile, so it must not come from the cache
    silent: bool = False    # no one could tell: only bounds and exit codes count
    harmless: bool = False  # the commands that it is about must not fall for it: they print what they print without it


@dataclasses.dataclass
class Outcome:
    command: tuple[str, ...]
    code: int
    seconds: float  # of CPU time
    stdout: bytes
    stderr: str
    resident: int

    def told(self):
        """Whether it says that something is wrong."""
        if self.code:
            return True
        try:
            document = json.loads(self.stdout)
        except ValueError:
            return "note:" in self.stderr
        item = document.get("item") or {}
        if item.get("holes") or item.get("types") == 0:  # of recover and profile
            return True
        status = document.get("status") or {}
        return bool(status.get("raced") or status.get("truncated") or status.get("warnings"))


LIES: list[Lie] = []


def lie(name, *about, **options):
    """Registers a function of (kernel, scene) as a lie."""
    def register(function):
        LIES.append(Lie(name, about, function, **options))
        return function
    return register


def wild_pointers(what, *about, of=WILD, **options):
    """Registers a function of (kernel, scene, address) as one lie for each kind of wild pointer."""
    def register(function):
        for kind, address in of.items():
            LIES.append(Lie(f"{what} is {kind}", about,
                            lambda k, s, function=function, address=address: function(k, s, address), **options))
        return function
    return register


# ---------------------------------------------------------------------------------------------------------------- tasks

def task_node(k, task):
    return task + k.offset("task_struct", "tasks")


@lie("a task's list element points to itself", "ps", "files", "info")
def _(k, s):
    k.put(task_node(k, s.task), task_node(k, s.task))


@lie("two tasks point to each other", "ps", "files", "info", "sockets")
def _(k, s):
    following = k.get(task_node(k, s.task))
    k.put(following, task_node(k, s.task))


@lie("the task list runs in a circle without its head", "ps", "info")
def _(k, s):
    head = task_node(k, k.symbol("init_task"))
    middle = task_node(k, s.task)
    last = k.get(head + 8)
    k.put(last, middle)


@lie("the task list has no end", "ps", "files", "info")
def _(k, s):
    base = s.region(k, 16 << 20)
    content = b"".join(struct.pack("<QQ", base + at + 16, base + at - 16 if at else task_node(k, s.task))
                       for at in range(0, 16 << 20, 16))
    k.memory.write(base, content)
    k.put(task_node(k, s.task), base)


@lie("a hundred thousand tasks share one process' memory", "ps", "info")
def _(k, s):
    s.flood_of_tasks(k)


@lie("a hundred thousand tasks share one table of files", "files", "sockets")
def _(k, s):
    s.flood_of_tasks(k)


@wild_pointers("tasks.next", "ps", "files", "info")
def _(k, s, address):
    k.put(task_node(k, s.task), address)


@lie("tasks.next is null", "ps", "info")
def _(k, s):
    k.put(task_node(k, s.task), 0)


@lie("the head of the task list points to itself", "ps", "info")
def _(k, s):
    head = task_node(k, k.symbol("init_task"))
    k.put(head, head)


@lie("a thread list points to itself", "ps", "ps --threads")
def _(k, s):
    sig = k.member(s.task, "task_struct", "signal")
    head = sig + k.offset("signal_struct", "thread_head")
    first = k.get(head)
    k.put(first, first)


@lie("every process has the threads of one", "ps --threads", silent=True)
def _(k, s):
    shared = k.member(s.task, "task_struct", "signal")
    for item in s.processes:
        k.set_member(int(item["task"], 16), "task_struct", "signal", shared)


for _member in ("signal", "real_cred", "nsproxy", "thread_pid"):
    @wild_pointers(f"a task's {_member}", "ps")
    def _(k, s, address, member=_member):
        k.set_member(s.task, "task_struct", member, address)


@wild_pointers("a task's mm", "ps", "maps", "env", "procmem")
def _(k, s, address):
    k.set_member(s.task, "task_struct", "mm", address)


@wild_pointers("a task's files", "files", "files of it")
def _(k, s, address):
    k.set_member(s.task, "task_struct", "files", address)


@wild_pointers("a task's cgroups", "ps", of={"an unmapped address": UNMAPPED})
def _(k, s, address):
    k.set_member(s.task, "task_struct", "cgroups", address)


@lie("a task is its own parent", "ps --tree", silent=True)
def _(k, s):
    k.set_member(s.task, "task_struct", "real_parent", s.task)


@lie("two tasks are each other's parents", "ps --tree", silent=True)
def _(k, s):
    k.set_member(s.task, "task_struct", "real_parent", s.other)
    k.set_member(s.other, "task_struct", "real_parent", s.task)


@lie("a task has two thousand million groups", "ps")
def _(k, s):
    cred = k.member(s.task, "task_struct", "real_cred")
    k.set_member(k.member(cred, "cred", "group_info"), "group_info", "ngroups", 0x7fffffff, 4)


@lie("names with escape sequences and no end", "ps", "ps --tree", silent=True)
def _(k, s):
    k.memory.write(s.task + k.offset("task_struct", "comm"), b"\x1b[2J\x1b]0;x\x07\xff\xfe\x1b[31m")
    k.memory.write(k.symbol("init_uts_ns") + k.offset("uts_namespace", "name.nodename"), b"\x1b[2J" * 16 + b"\xff")


# --------------------------------------------------------------------------------------------- a process' memory

@wild_pointers("mm.pgd", "ps", "env")
def _(k, s, address):
    k.set_member(s.mm, "mm_struct", "pgd", address)


@wild_pointers("mm.exe_file", "ps")
def _(k, s, address):
    k.set_member(s.mm, "mm_struct", "exe_file", address)


@lie("the arguments are as long as memory", "ps", silent=True)
def _(k, s):  # arguments_truncated says so
    k.set_member(s.mm, "mm_struct", "arg_end", (1 << 47) - 1)


@lie("the environment is as long as memory", "env")
def _(k, s):
    k.set_member(s.mm, "mm_struct", "env_end", (1 << 47) - 1)


@lie("a count of memory areas that is not so", "maps")
def _(k, s):
    k.set_member(s.mm, "mm_struct", "map_count", 3, 4)


@lie("a process' page tables point to themselves", "procmem", "env", silent=True)
def _(k, s):
    top = s.page_table(k)
    k.memory.write_physical(top, struct.pack("<Q", top | 0x67) * 256)


@lie("a process' page tables point to themselves and an area spans all", "procmem")
def _(k, s):
    top = s.page_table(k)
    k.memory.write_physical(top, struct.pack("<Q", top | 0x67) * 256)
    s.widen_areas(k)


@lie("a memory area of 128 TiB", "maps", "procmem", silent=True)
def _(k, s):
    s.widen_areas(k)


def maple_root(k, s):
    place = s.mm + k.offset("mm_struct", "mm_mt.ma_root")
    return place, k.get(place)


def has_maple_tree(k):
    return k.has("mm_struct", "mm_mt")


@lie("every slot of the maple tree's root leads to the root", "maps", "procmem")
def _(k, s):
    if not has_maple_tree(k):
        return s.does_not_apply()
    place, root = maple_root(k, s)
    node, inner = root & ~0xff, 2  # maple_range_64: 15 pivots, 16 slots
    root = root & ~0x78 | inner << 3
    k.put(place, root)
    for pivot in range(15):
        k.put(node + 8 + 8 * pivot, (1 << 40) * (pivot + 1))
    for slot in range(16):
        k.put(node + 8 + 15 * 8 + 8 * slot, root)


@wild_pointers("the maple tree's root", "maps", "procmem")
def _(k, s, address):
    if not has_maple_tree(k):
        return s.does_not_apply()
    k.put(maple_root(k, s)[0], address & ~0xff | 2 << 3 | 2)


@lie("the list of memory areas runs in a circle", "maps")
def _(k, s):
    if has_maple_tree(k):
        return s.does_not_apply()
    first = k.member(s.mm, "mm_struct", "mmap")
    second = k.member(first, "vm_area_struct", "vm_next")
    k.set_member(second, "vm_area_struct", "vm_next", first)


# ---------------------------------------------------------------------------------------------------------------- files

def table_of(k, s):
    return k.member(k.member(s.task, "task_struct", "files"), "files_struct", "fdt")


@wild_pointers("files.fdt", "files", "files of it")
def _(k, s, address):
    k.set_member(k.member(s.task, "task_struct", "files"), "files_struct", "fdt", address)


@wild_pointers("fdt.fd", "files", "files of it")
def _(k, s, address):
    k.set_member(table_of(k, s), "fdtable", "fd", address)


@lie("a table of four thousand million descriptors", "files", "files of it")
def _(k, s):
    k.set_member(table_of(k, s), "fdtable", "max_fds", 0xffffffff, 4)


@lie("a million descriptors of one file", "files of it")
def _(k, s):
    base = s.region(k, 8 << 20)
    slots = k.member(table_of(k, s), "fdtable", "fd")
    k.memory.write(base, struct.pack("<Q", k.get(slots)) * (1 << 20))
    k.set_member(table_of(k, s), "fdtable", "fd", base)
    k.set_member(table_of(k, s), "fdtable", "max_fds", 1 << 20, 4)


@lie("half a million files with names as long as can be", "files", "files of it")
def _(k, s):
    s.flood_of_files(k)


@wild_pointers("a descriptor", "files of it")
def _(k, s, address):
    k.put(k.member(table_of(k, s), "fdtable", "fd"), address)


@lie("a directory entry is its grandparent", "ps", silent=True)
def _(k, s):  # the path says "..."
    dentry = k.member(k.member(s.mm, "mm_struct", "exe_file"), "file", "f_path.dentry")
    parent = k.member(dentry, "dentry", "d_parent")
    k.set_member(parent, "dentry", "d_parent", dentry)


@lie("a directory entry's name is as long as memory", "ps", silent=True)
def _(k, s):
    dentry = k.member(k.member(s.mm, "mm_struct", "exe_file"), "file", "f_path.dentry")
    k.set_member(dentry, "dentry", "d_name.len", 0xffffffff, 4)


@lie("a mount is mounted on itself in a circle", "mounts", silent=True)
def _(k, s):
    mount = k.member(k.member(s.mm, "mm_struct", "exe_file"), "file", "f_path.mnt") - k.offset("mount", "mnt")
    root = k.member(mount, "mount", "mnt.mnt_root")
    other = s.region(k, 4096)
    k.memory.write(other, k.memory.read(mount, k.size("mount")))
    k.set_member(mount, "mount", "mnt_parent", other)
    k.set_member(other, "mount", "mnt_parent", mount)
    k.set_member(mount, "mount", "mnt_mountpoint", root)
    k.set_member(other, "mount", "mnt_mountpoint", root)


@lie("the mounts run in a circle", "mounts")
def _(k, s):
    namespace = k.member(k.member(s.first_task, "task_struct", "nsproxy"), "nsproxy", "mnt_ns")
    if k.has("mnt_namespace", "list"):
        first = k.member(namespace, "mnt_namespace", "list")
        k.put(first, first)
    else:
        top = k.member(namespace, "mnt_namespace", "mounts")
        k.put(top + 8, top)   # rb_right
        k.put(top + 16, top)  # rb_left


@lie("a file of eight exbibytes", "recover", silent=True)
def _(k, s):
    k.set_member(s.inode(k), "inode", "i_size", (1 << 63) - 1)


@lie("a page cache whose root leads to itself", "recover")
def _(k, s):
    head = s.inode(k) + k.offset("inode", "i_data.i_pages.xa_head")
    root = k.get(head)
    if root & 3 != 2:
        return s.does_not_apply()
    slots = (root & ~3) + k.offset("xa_node", "slots")
    k.memory.write(slots, struct.pack("<Q", root) * 64)


@wild_pointers("a page cache", "recover")
def _(k, s, address):
    k.put(s.inode(k) + k.offset("inode", "i_data.i_pages.xa_head"), address & ~3 | 2)


# -------------------------------------------------------------------------------------------------------------- modules

@lie("a module's list element points to itself", "modules", "symbols")
def _(k, s):
    node = s.module + k.offset("module", "list")
    k.put(node, node)


@lie("the head of the modules is wild", "modules", "symbols")
def _(k, s):
    k.put(k.symbol("modules"), UNMAPPED)


@wild_pointers("a module's next", "modules", "symbols")
def _(k, s, address):
    k.put(s.module + k.offset("module", "list"), address)


@lie("the users of a module run in a circle", "modules")
def _(k, s):
    node = s.module + k.offset("module", "source_list")
    other = s.region(k, 4096)
    k.memory.write(other, struct.pack("<QQ", other, other))
    k.put(node, other)


@lie("a module of four thousand million symbols", "symbols")
def _(k, s):
    k.set_member(k.member(s.module, "module", "kallsyms"), "mod_kallsyms", "num_symtab", 0xffffffff, 4)


for _member in ("symtab", "strtab"):
    @wild_pointers(f"a module's {_member}", "symbols", of={"an unmapped address": UNMAPPED})
    def _(k, s, address, member=_member):
        k.set_member(k.member(s.module, "module", "kallsyms"), "mod_kallsyms", member, address)


@lie("a module's name without end", "modules", silent=True)
def _(k, s):
    k.memory.write(s.module + k.offset("module", "name"), b"\x1b" * 56)


# -------------------------------------------------------------------------------------------------------------- sockets

@lie("the TCP table has four thousand million buckets", "sockets")
def _(k, s):
    k.set_member(k.symbol("tcp_hashinfo"), "inet_hashinfo", "ehash_mask", 0xffffffff, 4)


@wild_pointers("the TCP table", "sockets")
def _(k, s, address):
    k.set_member(k.symbol("tcp_hashinfo"), "inet_hashinfo", "ehash", address)


@lie("every TCP bucket holds the same long chain", "sockets")
def _(k, s):
    # A chain of 64 Ki elements 64 bytes apart; each is a socket whose counter of references is not zero.
    base = s.region(k, 12 << 20)
    count, chain = 65536, base + (8 << 20)
    element = bytearray(struct.pack("<Q", 0x0000000100000001) * 8)
    elements = bytearray()
    for i in range(count):
        element[0:8] = struct.pack("<Q", chain + 64 * (i + 1) if i + 1 < count else 1)
        elements += element
    k.memory.write(chain, bytes(elements[:4 << 20]))
    k.memory.write(base, struct.pack("<Q", chain) * (1 << 20))
    k.set_member(k.symbol("tcp_hashinfo"), "inet_hashinfo", "ehash", base)
    k.set_member(k.symbol("tcp_hashinfo"), "inet_hashinfo", "ehash_mask", (1 << 20) - 1, 4)


@lie("a TCP chain runs in a circle", "sockets")
def _(k, s):
    node = s.tcp_socket + k.offset("sock_common", "skc_node")
    k.put(node, node)


@lie("the UDP table has four thousand million buckets", "sockets")
def _(k, s):
    if "udp_table" not in k.symbols:
        return s.does_not_apply()
    k.set_member(k.symbol("udp_table"), "udp_table", "mask", 0xffffffff, 4)


@lie("the network namespaces run in a circle", "sockets", "interfaces")
def _(k, s):
    first = k.get(k.symbol("net_namespace_list"))
    k.put(first, first)


@wild_pointers("the network namespaces", "sockets", "interfaces", of={"an unmapped address": UNMAPPED})
def _(k, s, address):
    k.put(k.symbol("net_namespace_list"), address)


@lie("the network devices run in a circle", "interfaces")
def _(k, s):
    head = k.symbol("init_net") + k.offset("net", "dev_base_head")
    first = k.get(head)
    k.put(first, first)


# ---------------------------------------------------------------------------------------------------------- kernel log

def ring(k):
    return k.get(k.symbol("prb"))


@lie("a kernel log of 2 to the 63rd records", "dmesg")
def _(k, s):
    k.set_member(ring(k), "printk_ringbuffer", "desc_ring.count_bits", 63, 4)


@lie("a kernel log of 2 to the 63rd bytes", "dmesg")
def _(k, s):
    k.set_member(ring(k), "printk_ringbuffer", "text_data_ring.size_bits", 63, 4)


@lie("a kernel log that begins behind its end", "dmesg")
def _(k, s):
    k.set_member(ring(k), "printk_ringbuffer", "desc_ring.tail_id", 0x1234567812345678)


@wild_pointers("the kernel log's records", "dmesg")
def _(k, s, address):
    k.set_member(ring(k), "printk_ringbuffer", "desc_ring.descs", address)


@wild_pointers("the kernel log's text", "dmesg")
def _(k, s, address):
    k.set_member(ring(k), "printk_ringbuffer", "text_data_ring.data", address)


@wild_pointers("the kernel log", "dmesg")
def _(k, s, address):
    k.put(k.symbol("prb"), address)


# ------------------------------------------------------------------------------------------------------------------ BPF

def idr_root(k, name):
    place = k.symbol(name) + k.offset("idr", "idr_rt.xa_head")
    return place, k.get(place)


for _name in ("prog_idr", "map_idr", "link_idr"):
    @lie(f"{_name} leads to itself", "bpf", *(("check kernel",) if _name == "prog_idr" else ()))
    def _(k, s, name=_name):
        place, root = idr_root(k, name)
        if root & 3 != 2:
            return s.does_not_apply()
        k.memory.write((root & ~3) + k.offset("xa_node", "slots"), struct.pack("<Q", root) * 64)

    @wild_pointers(_name, "bpf", of={"an unmapped address": UNMAPPED})
    def _(k, s, address, name=_name):
        k.put(idr_root(k, name)[0], address & ~3 | 2)


@lie("a BPF program's aux is wild", "bpf")
def _(k, s):
    if not s.program:
        return s.does_not_apply()
    k.set_member(s.program, "bpf_prog", "aux", UNMAPPED)


@lie("a BPF program uses four thousand million maps", "bpf")
def _(k, s):
    if not s.program:
        return s.does_not_apply()
    k.set_member(k.member(s.program, "bpf_prog", "aux"), "bpf_prog_aux", "used_map_cnt", 0xffffffff, 4)


# --------------------------------------------------------------------------------------------- variables of the kernel

@lie("four thousand million CPUs", "info", silent=True)
def _(k, s):
    k.put(k.symbol("nr_cpu_ids"), 0xffffffff, 4)


@wild_pointers("a CPU's own area", "ps", silent=True, of={"an unmapped address": UNMAPPED})
def _(k, s, address):
    k.put(k.symbol("__per_cpu_offset"), address)


@wild_pointers("the kernel's command line", "info", silent=True)
def _(k, s, address):
    k.put(k.symbol("saved_command_line"), address)


@lie("a VMCOREINFO as long as memory", "dump", silent=True)
def _(k, s):
    k.put(k.symbol("vmcoreinfo_size"), (1 << 64) - 1)


# ------------------------------------------------------------------------------------------------------------- profile

def btf(k):
    return k.symbol("__start_BTF"), k.symbol("__stop_BTF")


def profile_lie(name, *about, **options):
    return lie(name, *(about or ("ps", "modules", "profile")), cached=False, **options)


@profile_lie("BTF's types are as long as memory")
def _(k, s):
    k.put(btf(k)[0] + 12, 0xfffffff0, 4)


@profile_lie("BTF's names are as long as memory")
def _(k, s):
    k.put(btf(k)[0] + 20, 0xfffffff0, 4)


@profile_lie("BTF without its magic")
def _(k, s):
    k.put(btf(k)[0], 0, 2)


@profile_lie("no BTF at all")
def _(k, s):
    begin, end = btf(k)
    k.memory.write(begin, bytes(end - begin))


def change_btf_types(k, change):
    """CHANGE(types, at, number, kind, count) may write to each type, a struct btf_type: name, info, size or type."""
    begin, _ = btf(k)
    header, type_begin, type_size, *_ = struct.unpack("<IIII", k.memory.read(begin + 4, 16))
    base = begin + header + type_begin
    types = bytearray(k.memory.read(base, type_size))
    at, number = 0, 1
    extra = {1: 4, 3: 12, 14: 4, 17: 4}
    while at + 12 <= len(types):
        info = struct.unpack_from("<I", types, at + 4)[0]
        kind, count = info >> 24 & 0x1f, info & 0xffff
        change(types, at, number, kind, count)
        at += 12 + extra.get(kind, 0) + {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}.get(kind, 0) * count
        number += 1
    k.memory.write(base, bytes(types))


@profile_lie("every BTF type refers to one", silent=True)
def _(k, s):
    first = []

    def change(types, at, number, kind, count):
        if kind in (8, 9, 10, 11):  # typedef and qualifiers
            first.append(number)
            struct.pack_into("<I", types, at + 8, first[0])
    change_btf_types(k, change)


def change_members(k, change):
    """CHANGE(bits) gives where a member lies that lay there."""
    def each(types, at, number, kind, count):
        if kind in (4, 5):  # struct and union: members of name, type and offset
            for place in range(at + 12 + 8, at + 12 + 12 * count, 12):
                bits = struct.unpack_from("<I", types, place)[0]
                struct.pack_into("<I", types, place, bits & 0xff000000 | change(bits & 0xffffff))
    change_btf_types(k, each)


@profile_lie("BTF's members lie as far away as can be", "ps", "modules", "info")
def _(k, s):
    change_members(k, lambda bits: 0xfffff8)


@profile_lie("BTF's members all lie at the beginning", silent=True)
def _(k, s):
    change_members(k, lambda bits: 0)


@profile_lie("BTF's members lie between bytes", silent=True)
def _(k, s):
    change_members(k, lambda bits: bits + 3)


@profile_lie("every BTF structure is a member of itself", silent=True)
def _(k, s):
    def change(types, at, number, kind, count):
        if kind in (4, 5):
            for place in range(at + 12, at + 12 + 12 * count, 12):
                struct.pack_into("<II", types, place, 0, number)  # without a name: it is looked into
    change_btf_types(k, change)


@profile_lie("BTF's types scrambled")
def _(k, s):
    begin, _ = btf(k)
    header, type_begin, type_size, *_ = struct.unpack("<IIII", k.memory.read(begin + 4, 16))
    k.memory.write(begin + header + type_begin, os.urandom(type_size))


@profile_lie("kallsyms of two thousand million symbols")
def _(k, s):
    k.put(k.symbol("kallsyms_num_syms"), 0x7fffffff, 4)


@profile_lie("kallsyms' markers scrambled", silent=True)
def _(k, s):
    k.memory.write(k.symbol("kallsyms_markers"), os.urandom(1024))


@profile_lie("kallsyms' tokens scrambled")
def _(k, s):
    k.memory.write(k.symbol("kallsyms_token_table"), os.urandom(900))


@profile_lie("kallsyms' names wiped out")
def _(k, s):
    begin = k.symbol("kallsyms_names")
    k.memory.write(begin, bytes(64 << 10))


@profile_lie("kallsyms' addresses scrambled")
def _(k, s):
    k.memory.write(k.symbol("kallsyms_offsets"), os.urandom(64 << 10))


@profile_lie("no banner")
def _(k, s):
    k.memory.write(k.symbol("linux_banner"), bytes(64))


@profile_lie("VMCOREINFO leads astray", silent=True)  # registers lead to the kernel
def _(k, s):
    page = k.get(k.symbol("vmcoreinfo_data"))
    text = k.memory.read(page, 4096)
    k.memory.write(page, re.sub(rb"(SYMBOL\(swapper_pg_dir\)=)[0-9a-f]{8}", rb"\g<1>ffffffff", text))


# Without registers, as in a raw dump, the kernel is found by a search for VMCOREINFO.

def vmcoreinfo(k, table):
    """The kernel's VMCOREINFO with another place, physical, of the page tables."""
    text = k.memory.read(k.get(k.symbol("vmcoreinfo_data")), 4096)
    base = int(re.search(rb"NUMBER\(phys_base\)=(-?\d+)", text)[1])
    address = 0xffffffff80000000 + table - base & (1 << 64) - 1
    changed = re.sub(rb"(SYMBOL\(swapper_pg_dir\)=)[0-9a-f]+", rb"\g<1>%016x" % address, text)
    return changed[:4096].ljust(4096, b"\0")


def kernel_that_is_not_there(k, table, image):
    """Page tables, three pages, that map 16 MiB of physical memory where a kernel could be."""
    for page in (table, table + 4096):
        k.memory.write_physical(page, struct.pack("<Q", page + 4096 | 0x63) * 512)
    k.memory.write_physical(table + 8192, struct.pack("<8Q", *(image + (i << 21) | 0xe3 for i in range(8))))


LOW = 0x8000  # in the first 64 KiB, which Linux does not use, and which a search comes to first


@lie("a second VMCOREINFO that leads nowhere", RAW, harmless=True, cached=False)
def _(k, s):
    for place in (LOW, s.physical_region(k, 4096)):
        k.memory.write_physical(place, vmcoreinfo(k, 1 << 46))


@lie("a stale VMCOREINFO of a kernel that is no longer there", RAW, harmless=True, cached=False)
def _(k, s):
    base = s.physical_region(k, 32 << 20)
    kernel_that_is_not_there(k, base, base + (2 << 20))
    k.memory.write_physical(LOW, vmcoreinfo(k, base))


@lie("VMCOREINFO without what it should tell", RAW, harmless=True, cached=False)
def _(k, s):
    text = vmcoreinfo(k, 0)
    for number, word in enumerate((b"swapper_pg_dir", b"phys_base", b"OSRELEASE")):
        k.memory.write_physical(LOW + 4096 * number, text.replace(word, b"x" * len(word)))
    k.memory.write_physical(LOW + 4096 * 3, b"OSRELEASE=" + b"9" * 4086)
    k.memory.write_physical(LOW + 4096 * 4, text.replace(b"\n", b"\0"))


@lie("a second VMCOREINFO, and page tables that point to themselves", RAW, harmless=True, cached=False)
def _(k, s):
    base = s.physical_region(k, 4096)
    k.memory.write_physical(base, struct.pack("<Q", base | 0x63) * 512)
    k.memory.write_physical(LOW, vmcoreinfo(k, base))


@lie("sixteen thousand VMCOREINFOs, each with half a thousand empty page tables", RAW, silent=True, cached=False)
def _(k, s):
    base = s.physical_region(k, ARENA)
    k.memory.write_physical(base, struct.pack("<Q", base + 4096 | 0x63) * 512)
    k.memory.write_physical(base + 4096, struct.pack("<Q", base + 8192 | 0x63) * 512)
    k.memory.write_physical(base + 8192, struct.pack("<Q", base + 12288 | 0x63) * 512)
    page = vmcoreinfo(k, base)
    k.memory.write_physical(base + 16384, page * (ARENA // 4096 - 4))


# --------------------------------------------------------------------------------------------------------- page tables

def table_lie(name, *about, **options):
    return lie(name, *about, cached=False, **options)


@table_lie("the kernel's top page table points to itself everywhere", "ps")
def _(k, s):
    k.memory.write_physical(k.memory.root + 2048, struct.pack("<Q", k.memory.root | 0x63) * 256)


@table_lie("the kernel's part of the top page table points to itself", "ps")
def _(k, s):
    k.memory.write_physical(k.memory.entry(k.text_base(), k.memory.levels), struct.pack("<Q", k.memory.root | 0x63))


@table_lie("the kernel's directory points to itself", "ps")
def _(k, s):
    place = k.memory.entry(k.text_base(), 3)
    k.memory.write_physical(place, struct.pack("<Q", place & ~0xfff | 0x63))


@table_lie("the kernel's page tables point to themselves", "ps")
def _(k, s):
    place = k.memory.entry(k.text_base(), 2)
    k.memory.write_physical(place, struct.pack("<Q", place & ~0xfff | 0x63))


@table_lie("all of physical memory is mapped as the kernel's image", "ps", silent=True)
def _(k, s):
    # A directory of 512 pages of 1 GiB in the place of the one that maps the image.
    place = k.memory.entry(k.text_base(), 4)
    table = s.physical_region(k, 4096)
    k.memory.write_physical(table, struct.pack("<Q", 0xe3) * 512)
    k.memory.write_physical(place, struct.pack("<Q", table | 0x63))


# ------------------------------------------------------------------------------------- what the kernel calls (`check`)

PROCESS_CHECKS = ("process_memory", "process_behaviour", "preload", "miners", "io_uring", "sockets")
TASK_CHECKS = ("processes", "credentials")
KERNEL_CHECKS = ("system_calls", "interrupts", "kernel_text", "modules", "orphan_code", "tracing", "defences", "bpf")
HANDLER_CHECKS = ("notifiers", "network_handlers", "timers", "work_items", "kernel_threads", "proc_files",
                  "file_operations", "line_disciplines", "binary_formats")
BOUNDED = {"silent": True}  # such a lie need not be told: what counts is that each look at it ends


def endless(k, s, stride=16, size=16 << 20, begin=0):
    """A list that goes on to the end of the region, which is the address of its first element."""
    base = s.region(k, ARENA) + begin
    content = bytearray(size)
    for at in range(0, size, stride):
        struct.pack_into("<QQ", content, at, base + at + stride, base + at - stride)
    k.memory.write(base, bytes(content))
    return base


def lists(k):
    """Heads of lists that checks of handlers walk."""
    for name in ("super_blocks", "workqueues", "formats", "tty_drivers", "ptype_base", "net_namespace_list",
                 "input_handler_list", "proto_list"):
        if name in k.symbols:
            yield k.symbol(name)


@lie("lists of what the kernel calls have no end", "check handlers", **BOUNDED)
def _(k, s):
    first = endless(k, s)
    for head in lists(k):
        k.put(head, first)


@lie("lists of what the kernel calls run in circles", "check handlers", **BOUNDED)
def _(k, s):
    base = s.region(k, 4096)
    k.memory.write(base, struct.pack("<QQQQ", base + 16, base + 16, base, base))
    for head in lists(k):
        k.put(head, base)


@wild_pointers("heads of lists of what the kernel calls", "check handlers", **BOUNDED)
def _(k, s, address):
    for head in lists(k):
        k.put(head, address)


@lie("a notifier is its own successor", "check handlers", **BOUNDED)
def _(k, s):
    block = s.region(k, 4096)
    k.memory.write(block, struct.pack("<QQQ", block, block, 0))
    k.set_member(k.symbol("reboot_notifier_list"), "blocking_notifier_head", "head", block)


def per_cpu(k, name):
    if name not in k.symbols:
        raise NoSymbol(name)
    for cpu in range(2):
        yield k.get(k.symbol("__per_cpu_offset") + 8 * cpu) + k.symbols[name] & (1 << 64) - 1


@lie("all buckets of all timer wheels lead to one endless chain", "check handlers", **BOUNDED)
def _(k, s):
    first = endless(k, s, stride=64)
    for base in per_cpu(k, "timer_bases"):
        k.memory.write(base + k.offset("timer_base", "vectors"), struct.pack("<Q", first) * 512)


@lie("a tree of timers in which each element is below itself", "check handlers", **BOUNDED)
def _(k, s):
    node = s.region(k, 4096)
    k.memory.write(node, struct.pack("<QQQ", node | 1, node, node))
    for base in per_cpu(k, "hrtimer_bases"):
        for clock in range(4):
            k.put(base + k.offset("hrtimer_cpu_base", "clock_base") + clock * k.size("hrtimer_clock_base") +
                  k.offset("hrtimer_clock_base", "active"), node)


@lie("works and workers without end", "check handlers", **BOUNDED)
def _(k, s):
    first = endless(k, s)
    for pool in per_cpu(k, "cpu_worker_pools"):
        for member in ("worklist", "workers"):
            k.set_member(pool, "worker_pool", member, first)


def frames(k):
    """The addresses of the structures of all pages that the guest has, in pieces that lie together."""
    structure, array = k.size("page"), k.get(k.symbol("vmemmap_base"))
    for frame in range(0, MEMORY >> 12, 64):
        if k.memory.translate(array + frame * structure):
            yield array + frame * structure, 64, structure


@lie("all memory is said to hold tasks", "check tasks", **BOUNDED)
def _(k, s):
    owner = "slab" if k.has_type("slab") else "page"
    place, cache = k.offset(owner, "slab_cache"), struct.pack("<Q", k.get(k.symbol("task_struct_cachep")))
    for begin, count, size in frames(k):
        content = bytearray(k.memory.read(begin, count * size))
        for at in range(place, count * size, size):
            content[at:at + 8] = cache
        k.memory.write(begin, bytes(content))


@lie("a task has room for sixty thousand million tasks", "check tasks", **BOUNDED)
def _(k, s):
    cache = k.get(k.symbol("task_struct_cachep"))
    k.set_member(cache, "kmem_cache", "oo", 0xffffffff, 4)
    k.set_member(cache, "kmem_cache", "size", 1024, 4)


@lie("the table of pids leads to itself", "check tasks", **BOUNDED)
def _(k, s):
    place = k.symbol("init_pid_ns") + k.offset("pid_namespace", "idr.idr_rt.xa_head")
    root = k.get(place)
    k.memory.write((root & ~3) + k.offset("xa_node", "slots"), struct.pack("<Q", root) * 64)


@lie("control groups without end, each with tasks without end", "check tasks", **BOUNDED)
def _(k, s):
    first = endless(k, s, stride=64)
    for bucket in range(128):
        k.put(k.symbol("css_set_table") + 8 * bucket, first)


@lie("a hundred thousand tasks with one another's credentials", "check tasks", **BOUNDED)
def _(k, s):
    s.flood_of_tasks(k)


@lie("a user namespace is its own parent", "check tasks", **BOUNDED)
def _(k, s):
    space = s.region(k, 4096)
    k.memory.write(space, k.memory.read(k.symbol("init_user_ns"), min(k.size("user_namespace"), 4096)))
    k.set_member(space, "user_namespace", "parent", space)
    k.set_member(space, "user_namespace", "level", 0x7fffffff, 4)
    cred = k.member(s.task, "task_struct", "cred")
    k.set_member(cred, "cred", "user_ns", space)


@wild_pointers("a task's credentials", "check tasks", **BOUNDED)
def _(k, s, address):
    for member in ("cred", "real_cred"):
        k.set_member(s.task, "task_struct", member, address)


def kernel_lists(k):
    """What the checks of the kernel itself walk, where the first element is named by the variable."""
    for name in ("modules", "module_bug_list", "btf_modules", "ftrace_ops_list", "ftrace_ops_trampoline_list",
                 "bpf_kallsyms", "pack_list", "vmap_area_list", "unloaded_tainted_modules", "ftrace_pages_start"):
        if name in k.symbols:
            yield k.symbol(name)
    for bucket in range(64):
        yield k.symbol("kprobe_table") + 8 * bucket
    if "security_hook_heads" in k.symbols:
        for at in range(0, k.size("security_hook_heads"), 8):
            yield k.symbol("security_hook_heads") + at


@lie("lists of the kernel's own have no end", "check kernel", **BOUNDED)
def _(k, s):
    first = endless(k, s, stride=64)
    for head in kernel_lists(k):
        k.put(head, first)


@lie("lists of the kernel's own run in circles", "check kernel", **BOUNDED)
def _(k, s):
    base = s.region(k, 4096)
    k.memory.write(base, struct.pack("<QQQQ", base + 16, base + 16, base, base))
    for head in kernel_lists(k):
        k.put(head, base)


@wild_pointers("heads of lists of the kernel's own", "check kernel", **BOUNDED)
def _(k, s, address):
    for head in kernel_lists(k):
        k.put(head, address)


@lie("the list of BPF programs contradicts itself", "check kernel")
def _(k, s):
    k.put(k.symbol("bpf_kallsyms") + 8, k.symbol("init_task"))


@lie("the trees of modules and of memory are below themselves", "check kernel", **BOUNDED)
def _(k, s):
    node = s.region(k, 4096)
    k.memory.write(node, struct.pack("<QQQ", node | 1, node, node))
    k.memory.write(k.symbol("mod_tree") + 8, struct.pack("<QQ", node, node))
    if "vmap_area_root" in k.symbols:
        k.put(k.symbol("vmap_area_root"), node)


@lie("a module as large as can be", "check kernel", **BOUNDED)
def _(k, s):
    if k.has("module", "core_layout"):
        for member in ("size", "text_size", "ro_size"):
            k.set_member(s.module, "module", f"core_layout.{member}", 0xffffffff, 4)
    else:
        for kind in range(4):
            place = s.module + k.offset("module", "mem") + kind * k.size("module_memory")
            k.set_member(place, "module_memory", "size", 0xffffffff, 4)


@lie("each system call, interrupt and tracepoint goes elsewhere", "check kernel", **BOUNDED)
def _(k, s):
    k.memory.write(k.symbol("sys_call_table"), struct.pack("<Q", NON_CANONICAL) * 400)
    k.memory.write(k.symbol("idt_table"), os.urandom(4096))
    begin, end = k.symbol("__start___tracepoints_ptrs"), k.symbol("__stop___tracepoints_ptrs")
    k.memory.write(begin, struct.pack("<i", s.region(k, 4096) - begin & 0x7fffffff) * ((end - begin) // 4))


@lie("the kernel's code is random", "check kernel", **BOUNDED)
def _(k, s):
    k.memory.write(k.symbol("_stext"), os.urandom(8 << 20))


@lie("where the kernel changes its code is random", "check kernel", **BOUNDED)
def _(k, s):
    for name in ("__jump_table", "static_call_sites"):
        if f"__start_{name}" in k.symbols:
            begin, end = k.symbol(f"__start_{name}"), k.symbol(f"__stop_{name}")
            k.memory.write(begin, os.urandom(end - begin))


@lie("each of a hundred thousand workqueues has all works there are", "check handlers", **BOUNDED)
def _(k, s):
    first = endless(k, s)
    stride, size = 512, 32 << 20
    queues = s.region(k, ARENA) + (16 << 20)
    content = bytearray(size)
    link = k.offset("workqueue_struct", "list") % stride
    parts = k.offset("workqueue_struct", "pwqs") % stride
    for at in range(0, size, stride):
        struct.pack_into("<QQ", content, at + link, queues + at + stride + link, 0)
        struct.pack_into("<Q", content, at + parts, first)
    k.memory.write(queues, bytes(content))
    k.put(k.symbol("workqueues"), queues + link)


@wild_pointers("a kernel thread's struct kthread", "check handlers", **BOUNDED)
def _(k, s, address):
    thread = next(int(item["task"], 16) for item in s.processes if item["pid"] == 2)
    member = "worker_private" if k.has("task_struct", "worker_private") else "set_child_tid"
    k.set_member(thread, "task_struct", member, address)


@lie("a process executes memory of 128 TiB, by page tables that point to themselves", "check processes", **BOUNDED)
def _(k, s):
    top = s.page_table(k)
    k.memory.write_physical(top, struct.pack("<Q", top | 0x67) * 256)
    k.set_member(s.widen_areas(k), "vm_area_struct", "vm_flags", 7)


@lie("a process executes 128 TiB of a file, by page tables that point to themselves", "check processes", **BOUNDED)
def _(k, s):
    top = s.page_table(k)
    k.memory.write_physical(top, struct.pack("<Q", top | 0x67) * 256)
    area = s.widen_areas(k)
    k.set_member(area, "vm_area_struct", "vm_flags", 5)
    k.set_member(area, "vm_area_struct", "vm_file", k.member(s.mm, "mm_struct", "exe_file"))


@lie("the tree of uprobes is below itself", "check processes", **BOUNDED)
def _(k, s):
    node = s.region(k, 4096)
    k.memory.write(node, struct.pack("<QQQ", node | 1, node, node))
    k.put(k.symbol("uprobes_tree"), node)


@wild_pointers("a task's io_uring", "check processes", **BOUNDED)
def _(k, s, address):
    k.set_member(s.task, "task_struct", "io_uring", address)


@lie("an environment of 128 TiB", "check processes", **BOUNDED)
def _(k, s):
    k.set_member(s.mm, "mm_struct", "env_end", (1 << 47) - 4096)


@lie("an entry of /proc is below itself", "check handlers", **BOUNDED)
def _(k, s):
    entry = k.symbol("proc_root")
    node = entry + k.offset("proc_dir_entry", "subdir_node")
    k.memory.write(node, struct.pack("<QQQ", 1, 0, 0))
    k.set_member(entry, "proc_dir_entry", "subdir", node)


@lie("65,535 netfilter hooks wherever hooks can be", "check handlers", **BOUNDED)
def _(k, s):
    base = s.region(k, 2 << 20)
    k.put(base, 0xffff, 2)
    for family in ("ipv4", "ipv6"):
        for number in range(5):
            k.put(k.symbol("init_net") + k.offset("net", f"nf.hooks_{family}") + 8 * number, base)


@lie("a hundred thousand inodes, each with operations of its own", "check handlers", **BOUNDED)
def _(k, s):
    stride, size = 512, 50 << 20
    base = s.region(k, ARENA)
    content = bytearray(size)
    link, operations = k.offset("inode", "i_sb_list") % stride, k.offset("inode", "i_op") % stride
    for at in range(0, size, stride):
        struct.pack_into("<QQ", content, at + link, base + at + stride + link, base + at + stride + link)
        struct.pack_into("<Q", content, at + operations, base + at)
    k.memory.write(base, bytes(content))
    node, head = k.get(k.symbol("super_blocks")), k.symbol("super_blocks")
    while node != head:
        inodes = node - k.offset("super_block", "s_list") + k.offset("super_block", "s_inodes")
        k.memory.write(inodes, struct.pack("<QQ", base + link, base + link))
        node = k.get(node)


@lie("an inode that was removed", "check handlers", **BOUNDED)
def _(k, s):
    inode = s.inode(k)
    node = inode + k.offset("inode", "i_sb_list")
    k.memory.write(node, struct.pack("<QQ", node, node))


@lie("terminal drivers of four thousand million terminals", "check handlers", **BOUNDED)
def _(k, s):
    base = s.region(k, 32 << 20)
    k.memory.write(base, b"".join(struct.pack("<Q", base + at) for at in range(0, 8 << 20, 8)))
    head = k.symbol("tty_drivers")
    node = k.get(head)
    while node != head:
        driver = node - k.offset("tty_driver", "tty_drivers")
        k.set_member(driver, "tty_driver", "num", 0xffffffff, 4)
        k.set_member(driver, "tty_driver", "ttys", base)
        node = k.get(node)


@wild_pointers("line disciplines and terminals", "check handlers", **BOUNDED)
def _(k, s, address):
    for number in range(4):
        k.put(k.symbol("tty_ldiscs") + 8 * number, address)
    k.set_member(k.get(k.symbol("tty_drivers")) - k.offset("tty_driver", "tty_drivers"), "tty_driver", "ttys", address)


# ----------------------------------------------------------------------------------------------------------------------

class DoesNotApply(Exception):
    """This kernel has nothing of the kind."""


class Scene:
    """What the lies are about: some processes, a module, a socket, a BPF program."""

    def __init__(self, test):
        self.test = test
        self.processes = test.items("ps")
        by_pid = {item["pid"]: item for item in self.processes}
        self.pid = test.victim.pid
        self.exe = by_pid[self.pid]["exe"]
        self.task, self.other = (int(by_pid[job.pid]["task"], 16) for job in (test.victim, test.bystander))
        self.first_task = int(by_pid[1]["task"], 16)
        self.module = int(test.items("modules")[0]["module"], 16)
        self.mm = test.kernel.member(self.task, "task_struct", "mm")
        self.tcp_socket = next(int(item["socket"], 16) for item in test.items("sockets")
                               if item["protocol"] == "tcp" and item["state"] == "ESTABLISHED")
        programs = test.items_or("bpf", [])
        self.arena = test.memory.untouched(ARENA)  # memory that the guest never used; each lie has all of it
        self.program = next((int(item["program"], 16) for item in programs if item.get("kind") == "program"), None)

    def does_not_apply(self):
        raise DoesNotApply

    def physical_region(self, _, size):
        assert size <= ARENA
        return self.arena

    def region(self, k, size):
        """The kernel's address of memory that the guest never used; the same at each call."""
        return k.direct(self.physical_region(k, size))

    def page_table(self, k):
        """The physical address of the victim's top page table."""
        return k.memory.translate(k.member(self.mm, "mm_struct", "pgd"))

    def inode(self, k):
        return k.member(k.member(self.mm, "mm_struct", "exe_file"), "file", "f_inode")

    def widen_areas(self, k):
        """Makes all areas of the victim of 128 TiB: the tree's root holds one area that covers everything."""
        if not has_maple_tree(k):
            area = k.member(self.mm, "mm_struct", "mmap")
            k.set_member(area, "vm_area_struct", "vm_next", 0)
        else:
            place, root = maple_root(k, self)
            node = root & ~0xff
            while root & 0x78 != 8:  # down to a leaf
                root = k.get(node + 8 + (15 if root & 0x78 == 0x10 else 9) * 8)
                node = root & ~0xff
            area = next(entry for entry in (k.get(node + 8 + 15 * 8 + 8 * i) for i in range(16)) if entry >> 63)
            leaf = self.region(k, 4096)
            content = bytearray(256)
            struct.pack_into("<QQ", content, 0, k.get(node), (1 << 47) - 1 - 4096)
            struct.pack_into("<Q", content, 8 + 15 * 8, area)
            k.memory.write(leaf, bytes(content))
            k.put(place, leaf | 1 << 3 | 2)
        k.set_member(area, "vm_area_struct", "vm_start", 0)
        k.set_member(area, "vm_area_struct", "vm_end", (1 << 47) - 4096)
        k.set_member(self.mm, "mm_struct", "map_count", 1, 4)
        return area

    def flood_of_tasks(self, k):
        """A task list of as many elements as fit into some MiB, overlapping, each with the victim's memory, files and
        credentials. What lies at the same place modulo the stride is the same in all of them."""
        stride, size = 512, 40 << 20
        base = self.region(k, size + (64 << 10))
        pattern = bytearray(stride)
        taken = {}
        for member, width in (("tasks", 16), ("mm", 8), ("signal", 8), ("files", 8), ("real_cred", 8), ("nsproxy", 8),
                              ("pid", 4), ("tgid", 4), ("real_parent", 8), ("thread_pid", 8)):
            offset = k.offset("task_struct", member)
            place = offset % stride
            if any(place < end and begin < place + width for begin, end in taken.values()):
                continue  # that member would overlap one of more weight: leave it
            taken[member] = (place, place + width)
            if member != "tasks" and place + width <= stride:
                pattern[place:place + width] = k.memory.read(self.task + offset, width)
        node = k.offset("task_struct", "tasks") % stride
        content = bytearray(pattern * (size // stride))
        for i in range(size // stride):
            previous = base + stride * (i - 1) + node if i else task_node(k, self.task)
            struct.pack_into("<QQ", content, stride * i + node, base + stride * (i + 1) + node, previous)
        k.memory.write(base, bytes(content))
        k.put(task_node(k, self.task), base + node)
        # Long arguments, and a program whose path is as long as can be.
        k.set_member(self.mm, "mm_struct", "arg_end", (1 << 47) - 4096)
        k.set_member(self.mm, "mm_struct", "arg_start", k.member(self.mm, "mm_struct", "start_code"))
        self.deep_path(k)

    def deep_path(self, k):
        """Gives the victim's program a path of 500 components of 255 bytes each."""
        dentry = k.member(k.member(self.mm, "mm_struct", "exe_file"), "file", "f_path.dentry")
        size, base = k.size("dentry"), self.region(k, 60 << 20) + (48 << 20)
        original = k.memory.read(dentry, size)
        name = base + 500 * 512
        k.memory.write(name, b"n" * 255 + b"\0")
        for i in range(500):
            k.memory.write(base + 512 * i, original)
            k.set_member(base + 512 * i, "dentry", "d_parent", base + 512 * (i + 1))
            k.set_member(base + 512 * i, "dentry", "d_name.name", name)
            k.set_member(base + 512 * i, "dentry", "d_name.len", 255, 4)
        k.set_member(base + 512 * 499, "dentry", "d_parent", base + 512 * 499)
        k.set_member(k.member(self.mm, "mm_struct", "exe_file"), "file", "f_path.dentry", base)

    def flood_of_files(self, k):
        """A descriptor table of half a million files, each with the same long path."""
        self.deep_path(k)
        file = k.memory.read(k.member(self.mm, "mm_struct", "exe_file"), k.size("file"))
        stride = 64 if k.offset("file", "f_path.dentry") % 64 != k.offset("file", "f_inode") % 64 else 128
        count = (40 << 20) // stride
        base = self.region(k, 48 << 20)
        pattern = bytearray(stride)
        taken = set()
        for member in ("f_path.mnt", "f_path.dentry", "f_inode", "f_flags", "f_mode"):
            offset = k.offset("file", member)
            place = offset % stride & ~7
            if place not in taken:
                taken.add(place)
                pattern[place:place + 8] = file[offset & ~7:(offset & ~7) + 8]
        k.memory.write(base, bytes(pattern) * count)
        table = base + (42 << 20)
        slots = min(count, (5 << 20) // 8) - 64
        k.memory.write(table, b"".join(struct.pack("<Q", base + stride * i) for i in range(slots)))
        k.set_member(table_of(k, self), "fdtable", "fd", table)
        k.set_member(table_of(k, self), "fdtable", "max_fds", slots, 4)


class HostileGuest(harness.GuestTest):
    OPTIONS = {"backend": "memfd", "memory": f"{MEMORY >> 20}M", "cpus": 2}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.victim = cls.guest.start("workload threads 3 victim")
        cls.bystander = cls.guest.start("workload fds")
        for command in ("tcp 4 8080", "udp 4 5353", "unix", "container", "spawn 5"):
            cls.guest.start(f"workload {command}")
        try:
            cls.guest.start("workload bpf")
        except Exception:  # noqa: BLE001 - kernels differ in what of it they allow
            pass
        cls.guest.check("for m in loop dummy veth; do modprobe $m 2>/dev/null; done; true")
        cls.guest.qmp("stop")
        cls.memory = GuestMemory(cls.guest, MEMORY)
        cls.addClassCleanup(cls.memory.close)
        cls.folder = tempfile.TemporaryDirectory(prefix="lararium-hostile-")
        cls.addClassCleanup(cls.folder.cleanup)
        cls.kernel = GuestKernel(cls.memory, lambda command, *arguments: harness.run_lararium(
            command, cls.guest.pid, *arguments, cache=cls.cache.name).stdout)
        # The kernel's own table, not that of the process which happened to run.
        cls.memory.root = cls.memory.translate(cls.kernel.symbol("init_top_pgt"))

    def items_or(self, command, otherwise):
        completed = harness.run_lararium(command, self.guest.pid, "--json", cache=self.cache.name, check=False)
        return json.loads(completed.stdout)["items"] if completed.returncode == 0 else otherwise

    def commands(self):
        """What is run, by the key with which lies name it; without the VM, which comes second."""
        pid, folder = str(self.scene.pid), self.folder.name
        commands = {name: (name, "--json") for name in
                    ("info", "ps", "files", "modules", "sockets", "mounts", "interfaces", "dmesg", "bpf", "profile")}
        commands |= {name: (name, pid, "--json") for name in ("maps", "env")}
        commands |= {
            "ps --threads": ("ps", "--threads", "--json"),
            "ps --tree": ("ps", "--tree"),
            "ps for people": ("ps",),
            "files of it": ("files", pid, "--json"),
            "symbols": ("symbols", "--json"),
            "top": ("top", "--once", "--json", "--interval", "0.05"),
            "check handlers": ("check", "--only", ",".join(HANDLER_CHECKS), "--json"),
            "check tasks": ("check", "--only", ",".join(TASK_CHECKS), "--json"),
            "check kernel": ("check", "--only", ",".join(KERNEL_CHECKS), "--json"),
            "check processes": ("check", "--only", ",".join(PROCESS_CHECKS), "--json"),
            "hexdump": ("hexdump", "init_task", "64", "--json"),
            "procmem": ("procmem", pid, "--json", "--force", "-o", f"{folder}/core"),
            "recover": ("recover", self.scene.exe, "--json", "-o", f"{folder}/file"),
            "dump": ("dump", f"{folder}/dump", "--json", "--force"),
            RAW: ("ps", "--json"),
        }
        return commands

    def target_of(self, key):
        """The VM; for RAW its memory as a file, which tells of no registers."""
        if key != RAW:
            return str(self.guest.pid)
        path = pathlib.Path(self.folder.name, "raw")
        with open(path, "wb") as file:
            file.truncate(MEMORY)
            for begin, end in self.memory.data_ranges():
                file.seek(begin)
                file.write(self.memory.read_physical(begin, end - begin))
        return str(path)

    def run_one(self, key, cached=True):
        command = self.commands()[key]
        words = [str(harness.BINARY), command[0], self.target_of(key), *command[1:]]
        if not cached:
            words.append("--no-cache")

        def limits():
            resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
            resource.setrlimit(resource.RLIMIT_DATA, (OWN_MEMORY, OWN_MEMORY))
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
            resource.setrlimit(resource.RLIMIT_FSIZE, (4 * MEMORY, 4 * MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        began = time.monotonic()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(words, stdout=out, stderr=errors, stdin=subprocess.DEVNULL, preexec_fn=limits,
                                       env={**os.environ, "NO_COLOR": "1", "LARARIUM_CACHE": self.cache.name})
            while True:
                done, status, usage = os.wait4(process.pid, os.WNOHANG)
                if done:
                    break
                if time.monotonic() - began > SECONDS:
                    process.kill()
                    _, status, usage = os.wait4(process.pid, 0)
                    break
                time.sleep(0.002)
            process.returncode = code = os.waitstatus_to_exitcode(status)
            out.seek(0)
            errors.seek(0)
            return Outcome(command, code, usage.ru_utime + usage.ru_stime, out.read(), errors.read().decode(errors="replace"),
                           usage.ru_maxrss * 1024)

    def judge(self, outcome, lie, key):
        command = " ".join(outcome.command)
        if outcome.code in (-signal.SIGKILL, -signal.SIGXCPU):
            return f"{command}: does not end within {CPU_SECONDS} s of CPU time and {SECONDS} s in all"
        if outcome.code not in DOCUMENTED | ({FINDINGS} if outcome.command[0] == "check" else set()):
            return f"{command}: ended with {outcome.code}: {outcome.stderr[-300:]}"
        if outcome.resident > OWN_MEMORY + MEMORY:
            return f"{command}: took {outcome.resident >> 20} MiB"
        if outcome.code and outcome.stderr.count("\n") > 12:
            return f"{command}: an error of many lines: {outcome.stderr[:500]}"
        if b"\x1b" in outcome.stdout or "\x1b" in outcome.stderr:
            return f"{command}: lets escape sequences through"
        if "--json" in outcome.command:
            try:
                json.loads(outcome.stdout)
            except ValueError as error:
                return f"{command}: no JSON: {error}: {outcome.stdout[:200]}"
        if key in lie.about and not lie.silent and not outcome.told():
            return f"{command}: does not say that anything is wrong"
        return None

    def test_lies(self):
        self.scene = Scene(self)
        commands = self.commands()
        # A check says how long it took.
        changing = {"top", "dump", "procmem", "recover", *(key for key in commands if key.startswith("check"))}
        baseline = {key: self.run_one(key) for key in commands}
        missing = {key for key, outcome in baseline.items()
                   if outcome.code and not (outcome.command[0] == "check" and outcome.code == FINDINGS)}
        for key in sorted(missing):
            with self.subTest(lie="none", command=key):
                self.fail(f"{key}: without any lie: {baseline[key].code}: {baseline[key].stderr[-300:]}")
        for key, outcome in baseline.items():
            with self.subTest(lie="none", command=key):
                self.assertFalse("--json" in outcome.command and outcome.code == 0 and outcome.told(),
                                 f"{key}: warns without any lie: {outcome.stdout[:600]}")
        told = applied = runs = 0
        slowest = (0, "")
        largest = (0, "")
        for lie_ in LIES:
            if not CHOSEN.search(lie_.name):
                continue
            keys = [key for key in commands if key not in missing and (WHOLE or key in lie_.about or key in ("ps", "ps --tree"))]
            # Many checks of four looks each: a crowd of made-up processes or network namespaces takes them, all together,
            # longer than the bound for one command.
            keys = [key for key in keys if not key.startswith("check ") or key == "check handlers" or key in lie_.about]
            # Half a second each; they know of little that lies.
            keys = [key for key in keys if key not in ("dump", RAW) or key in lie_.about]
            with self.memory.undone():
                try:
                    lie_.tell(self.kernel, self.scene)
                except (DoesNotApply, NoSymbol):
                    continue
                applied += 1
                if TRACE:
                    print(f"# {lie_.name}", flush=True)
                for key in keys:
                    outcome = self.run_one(key, lie_.cached)
                    runs += 1
                    told += key in lie_.about
                    slowest = max(slowest, (outcome.seconds, f"{lie_.name}: {key}"))
                    largest = max(largest, (outcome.resident, f"{lie_.name}: {key}"))
                    with self.subTest(lie=lie_.name, command=key):
                        if lie_.harmless and key in lie_.about:
                            self.assertEqual(outcome.stdout, baseline[key].stdout, outcome.stderr)
                            continue
                        problem = self.judge(outcome, lie_, key)
                        if problem:
                            self.fail(problem)
            for key in {"ps", *lie_.about} - changing - missing:
                if key in commands and (WHOLE or key != "symbols"):
                    with self.subTest(lie=f"{lie_.name}, taken back", command=key):
                        self.assertEqual(self.run_one(key).stdout, baseline[key].stdout)
        print(f"{applied} lies, {runs} runs; the slowest {slowest[0]:.2f} s of CPU time ({slowest[1]}), "
              f"the largest {largest[0] >> 20} MiB ({largest[1]})")
        self.guest.qmp("cont")
        self.assertEqual(self.guest.check("echo alive").strip(), "alive")


if __name__ == "__main__":
    harness.main()
