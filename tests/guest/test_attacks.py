#!/usr/bin/env python3
"""Every attack is found by its check, and its end clears the finding.

An attack is a line of ATTACKS: a technique of lab/attacks/kernel or a program, the check that must find it, and what the
finding must say. An attack whose check does not exist, or that the guest's kernel has no object for, is skipped by
name. $LARARIUM_ATTACKS is a regular expression of those to run; $LARARIUM_ATTACK_TABLE names a file that gets one JSON
line for each attack: technique, check, kernel, found in how many milliseconds. $LARARIUM_QEMU is the version of QEMU.
"""

import dataclasses
import json
import os
import re
import time
import typing

import harness
from guest_memory import GuestKernel, GuestMemory

from lab.attack import CONTROL, Attacker, Unsupported
from lab.errors import LabError

CHOSEN = re.compile(os.environ.get("LARARIUM_ATTACKS", ""))
TABLE = os.environ.get("LARARIUM_ATTACK_TABLE")
MEMORY = 512 << 20
LOOKS = 3  # a look that raced with the guest drops what it saw


@dataclasses.dataclass
class Attack:
    name: str
    check: str    # that must find it
    pattern: str  # of the finding's subject, a space, and its sentence
    begin: typing.Callable  # of (test); gives the function that ends it
    unseen: str = ""  # why no check can find it yet
    reference: bool = False  # the check has the files of the guest's kernel and modules
    guarded: bool = False    # in a guest with SELinux, which is locked down at the end


def technique(name, check, pattern, argument="orphan", **options):
    """A technique of the module. ARGUMENT says where the code lies that is put in the way."""
    def begin(test):
        test.attacker.on(name, argument)
        return lambda: test.attacker.off(name)
    label = f"{name}.{argument}" if argument else name
    return Attack(f"{label}.reference" if options.get("reference") else label, check, pattern, begin, **options)


def both(name, check, pattern, **options):
    """Once with code in memory that belongs to nobody, once with code of a module."""
    return [technique(name, check, pattern, argument, **options) for argument in ("orphan", "module")]


def process(name, check, pattern, command="workload setuid 1000", label="", **options):
    """A technique that is about a process: one that belongs to an ordinary user."""
    def begin(test):
        job = test.guest.start(command)
        try:
            test.attacker.on(name, str(job.pid))
        except BaseException:
            job.stop()
            raise

        def end():
            test.attacker.off(name)
            job.stop()
        return end
    return Attack(f"{name}.{label}" if label else name, check, pattern, begin, **options)


def opened(name, check, pattern, argument, **options):
    """A technique that gives the process that asks for it an open file."""
    def begin(test):
        job = test.guest.start(f"sh -c 'echo on {name} {argument} >{CONTROL} && echo ready; while :; do sleep 1; done'")

        def end():
            test.attacker.off(name)
            job.stop()
        return end
    return Attack(f"{name}.{argument}", check, pattern, begin, **options)


def program(name, command, check, pattern, afterwards="true", **options):
    """A program that runs until the attack ends. AFTERWARDS takes back what outlives it."""
    def begin(test):
        job = test.guest.start(command)

        def end():
            job.stop()
            test.guest.check(afterwards)
        return end
    return Attack(name, check, pattern, begin, **options)


def bpf(command, pattern, name="", afterwards="true"):
    """A BPF program; with NAME a technique is carried out on it."""
    def begin(test):
        try:
            job = test.guest.start(f"/tmp/bpf_program {command}")
        except LabError as error:
            if re.search(r"bpf_program: (not loaded|not attached|the kernel has no)", str(error)):
                raise Unsupported(f"{harness.KERNEL} does not have it: {error}") from error
            raise
        if name:
            test.attacker.on(name, job.ready["id"])

        def end():
            if name:
                test.attacker.off(name)
            job.stop()
            test.guest.check(afterwards)
        return end
    return Attack(name or f"bpf_{command}", "bpf", pattern, begin)


def hardened(name, setting, value, check, pattern, **options):
    """A technique that undoes what an administrator switched on by a file in /proc."""
    def begin(test):
        before = test.guest.check(f"cat {setting}").strip()
        test.guest.check(f"echo {value} >{setting}")
        test.attacker.on(name)

        def end():
            test.attacker.off(name)
            test.guest.check(f"echo {before} >{setting}")
        return end
    return Attack(name, check, pattern, begin, **options)


def guarded(name, before, pattern):
    """A technique that undoes what BEFORE switched on, for good."""
    def begin(test):
        test.guest.check(before)
        test.attacker.on(name)
        return lambda: test.attacker.off(name)
    return Attack(name, "defences", pattern, begin, guarded=True)


def audited(name, check, pattern):
    """The same for auditing, which has a daemon."""
    def begin(test):
        job = test.guest.start("/tmp/attack_program audit_daemon")
        try:
            test.attacker.on(name)
        except BaseException:
            job.stop()
            raise

        def end():
            test.attacker.off(name)
            job.stop()
        return end
    return Attack(name, check, pattern, begin)


FIRST_LOOK = "one look does not know what was there before"
MODULE_DATA = "only beside the files of its modules"
ORDINARY = "workload as 1000 sleep"
CONTAINED = "workload own_namespace"
ATTACKS = [
    # the way into the kernel
    *both("syscall_table", "system_calls", r"sys_call_table\[62\]"),
    *both("syscall_table_32", "system_calls", r"ia32_sys_call_table\[37\]"),
    *both("syscall_dispatch", "system_calls", r"x64_sys_call\+"),
    *both("syscall_dispatch_32", "system_calls", r"ia32_sys_call\+"),
    *both("syscall_entry_call", "system_calls", r"do_syscall_64\+"),
    *both("lstar", "system_calls", r"LSTAR of CPU"),
    *both("cstar", "system_calls", r"CSTAR of CPU"),
    *both("sysenter", "system_calls", r"SYSENTER_EIP of CPU"),
    technique("fmask", "system_calls", r"FMASK of CPU", ""),
    *both("idt_entry", "interrupts", r"idt_table\[4\]"),
    technique("own_idt", "interrupts", r"IDTR of CPU", ""),
    technique("own_gdt", "interrupts", r"GDTR of CPU", ""),
    technique("gdt_entry", "interrupts", r"(?i)gdt|descriptor", ""),
    # text and data that nobody may change
    *both("text_inline_jump", "kernel_text", r"__x64_sys_sethostname"),
    *both("text_call", "kernel_text", r"vfs_statfs"),
    *both("module_text_jump", "kernel_text", r"dummy"),
    technique("text_byte", "kernel_text", r"sethostname", "", unseen=FIRST_LOOK),
    technique("rodata_byte", "kernel_text", r"banner", "", unseen=FIRST_LOOK),
    technique("text_byte", "kernel_text", r"bytes of code from .* reference", "", reference=True),
    technique("rodata_byte", "kernel_text", r"read-only data from .*banner.* reference", "", reference=True),
    technique("module_text_byte", "kernel_text", r"dummy", "", unseen=FIRST_LOOK),
    technique("module_rodata_byte", "kernel_text", r"dummy", "", unseen=MODULE_DATA),
    technique("module_text_byte", "kernel_text", r"bytes of code from .*dummy.* reference", "", reference=True),
    technique("module_rodata_byte", "kernel_text", r"read-only data from dummy_ethtool_ops .* reference", "",
              reference=True),
    # modules and code outside of modules
    technique("module_unlisted", "modules", r"lararium_attack.*not in the list of modules", ""),
    technique("module_not_in_sysfs", "modules", r"lararium_attack.*not in sysfs", ""),
    technique("module_not_in_tree", "modules", r"lararium_attack.*not in the tree", ""),
    technique("module_hidden", "orphan_code", r"executable kernel memory", ""),
    technique("module_hidden", "modules", r"lararium_attack.*may warn.*not in the list of modules", "named"),
    technique("module_in_no_list", "modules", r"dummy.*with types.*not in the list of modules", "dummy"),
    technique("orphan_code", "orphan_code", r"executable kernel memory", ""),
    technique("orphan_code_vmalloc", "orphan_code", r"executable kernel memory", ""),
    # processes
    process("process_unlisted", "processes", r"not in the list of tasks"),
    process("process_not_in_pids", "processes", r"not in the table of pids"),
    process("process_without_pid_links", "processes", r"not in the table of pids"),
    process("process_hidden", "processes", r"workload.*not in the list of tasks"),
    process("process_without_control_groups", "processes", r"workload.*not in the control groups"),
    process("process_in_no_record", "processes", r"workload.*is in the memory of tasks and not in"),
    process("process_feigns_death", "processes", r"workload.*is in the memory of tasks and not in"),
    process("thread_unlisted", "processes", r"not in the list of tasks", "workload threads 3"),
    # functions that the kernel calls
    *both("ftrace", "tracing", r"ftrace"),
    *both("kprobe", "tracing", r"kprobe at vfs_statfs"),
    *both("kretprobe", "tracing", r"return handler of the kprobe at vfs_statfs"),
    *both("tracepoint", "tracing", r"sched_process_exec"),
    *both("keyboard_notifier", "notifiers", r"keyboard"),
    technique("reboot_notifier", "notifiers", r"reboot"),
    *both("input_handler", "notifiers", r"input handler"),
    technique("timer", "timers", r"the timer at"),
    technique("hrtimer", "timers", r"the high-resolution timer at"),
    technique("work", "timers", r"the delayed work at"),
    technique("work_running", "work_items", r"work that the worker at"),
    technique("work_waiting", "work_items", r"the queued work at"),
    *both("netfilter_hook", "network_handlers", r"netfilter hook.*ipv4 PRE_ROUTING"),
    *both("packet_type", "network_handlers", r"packets of type 0x88b5"),
    *both("packet_type_all", "network_handlers", r"packets of type 0x0003"),
    *both("socket_protocol", "network_handlers", r"recvmsg of the proto tcp_prot"),
    technique("proc_file", "proc_files", r"lararium_attack_file"),
    *both("proc_operations", "proc_files", r"proc_open of the proc_ops stat_proc_ops"),
    *both("proc_root_iterate", "proc_files", r"iterate_shared of the file_operations proc_root_operations"),
    *both("seq_operations", "proc_files", r"show of the seq_operations tcp4_seq_ops"),
    *both("seq_operations_udp", "proc_files", r"show of the seq_operations udp_seq_ops"),
    *both("line_discipline", "line_disciplines", r"receive_buf2 of the tty_ldisc_ops n_tty_ops"),
    *both("own_line_discipline", "line_disciplines", r"line discipline of tty\w+ is none that is registered"),
    *both("folder_operations", "file_operations", r"iterate_shared of the file_operations"),
    *both("inode_operations", "file_operations", r"lookup of the inode_operations"),
    technique("own_operations", "file_operations", r"iterate_shared of the file_operations .* of /etc"),
    technique("own_operations", "file_operations", r"file_operations .* of /etc .*outside the kernel's tree", "module"),
    *both("own_operations_allocated", "file_operations", r"file_operations .* of /etc .*memory of neither"),
    *[opened("own_operations_of_open_file", "file_operations", r"of /etc/passwd .*outside the kernel's tree", argument)
      for argument in ("orphan", "module")],
    *both("own_operations_of_proc_entry", "proc_files", r"proc_ops of /proc/stat .*outside the kernel's tree"),
    *both("binary_format", "binary_formats", r"load_binary of the binary format"),
    technique("kernel_thread", "kernel_threads", r"lab_thread"),
    # defences
    technique("lsm_hook_removed", "defences", r"ptrace_access_check", ""),
    *both("lsm_hook_replaced", "defences", r"ptrace_access_check"),
    hardened("kptr_restrict", "/proc/sys/kernel/kptr_restrict", 2, "defences", r"kptr_restrict", unseen=FIRST_LOOK),
    technique("ftrace_off", "defences", r"ftrace", ""),
    technique("ftrace_killed", "defences", r"ftrace", ""),
    technique("taint_reset", "defences", r"taint", ""),
    technique("write_protection_off", "defences", r"CR0\.WP", ""),
    technique("protection_off", "defences", r"CR4 of CPU", "smep"),
    technique("protection_off", "defences", r"CR4 of CPU", "smap"),
    technique("log_record_changed", "defences", r"log", "", unseen=FIRST_LOOK),
    technique("log_record_removed", "defences", r"log", "", unseen=FIRST_LOOK),
    audited("audit_off", "defences", r"audit_enabled auditing was on and is off"),
    guarded("selinux_permissive", "mkdir -p /sys/fs/selinux; mount -t selinuxfs selinuxfs /sys/fs/selinux; "
            "grep -q 1 /sys/fs/selinux/enforce; head -c 1 /sys/fs/selinux/status >/dev/null",
            r"SELinux lets everything pass"),
    guarded("lockdown_lifted", "mount -t securityfs securityfs /sys/kernel/security; "
            "echo integrity >/sys/kernel/security/lockdown", r"lockdown was lifted"),
    # credentials
    process("credentials_shared", "credentials", r"workload"),
    process("credentials_uid", "credentials", r"workload"),
    process("credentials_capabilities", "credentials", r"workload.*every capability"),
    process("credentials_uid", "credentials", r"workload", ORDINARY, "ordinary"),
    process("credentials_euid", "credentials", r"workload.*is user 0, but", ORDINARY, "ordinary"),
    process("credentials_capabilities", "credentials", r"workload.*has capabilities, but", ORDINARY, "ordinary"),
    process("credentials_granted", "credentials", r"workload.*is user 0, but", ORDINARY, "ordinary"),
    process("credentials_granted", "credentials", r"workload.*escaped", CONTAINED, "contained"),
    process("credentials_namespace", "credentials", r"workload.*(escaped|namespace)", CONTAINED, "contained"),
    # BPF
    bpf("write_user", r"getdents64.*writes to the memory"),
    bpf("read_user_in_flight", r"reads the memory of programs, and nobody has it"),
    bpf("modify_return", r"decides what security_settime64 returns"),
    bpf("link_in_flight", r"link.*no process has it"),
    bpf("lsm_in_flight", r"decides what the system allows, and no process"),
    bpf("xdp", r"xdp dummy0.*no process has it", afterwards="/tmp/bpf_program xdp_off"),
    bpf("plain", r"program.*table of programs: it is hidden", "bpf_hidden"),
    bpf("plain", r"decides what functions of the kernel return", "bpf_override"),
    # programs
    program("deleted_executable", "workload deleted_exec", "process_memory", r"deleted"),
    program("memfd_executable", "workload memfd_exec", "process_memory", r"memfd"),
    program("writable_code", "/tmp/attack_program writable_code", "process_memory", r"attack_program"),
    program("changed_text", "/tmp/attack_program changed_text", "process_memory", r"attack_program"),
    program("hollowed", "/tmp/attack_program hollowed", "process_memory", r"main image"),
    program("remote_shell", "workload remote_shell", "process_behaviour", r"shell|socket"),
    program("kernel_name", "workload disguise [kworker/0:7]", "process_behaviour", r"kworker/0:7"),
    program("ptrace", "workload ptrace", "process_behaviour", r"trace"),
    program("preload", "/tmp/attack_program preload", "preload", r"LD_PRELOAD"),
    program("preload_file", "/tmp/attack_program preload_file", "preload", r"/etc/ld.so.preload.*libattack",
            "rm /etc/ld.so.preload"),
    program("miner", "/tmp/attack_program miner", "miners", r"mine"),
    program("miner_memory", "/tmp/attack_program miner_memory", "miners", r"RandomX"),
    program("ring_work", "/tmp/attack_program ring_work", "io_uring", r"requests"),
    program("ring_sockets", "/tmp/attack_program ring_sockets", "io_uring", r"sockets"),
    program("raw_socket", "workload raw", "sockets", r"raw"),
    program("packet_socket", "workload packet lo", "sockets", r"packet"),
    program("promiscuous", "workload promisc dummy0", "sockets", r"promiscuous",
            "ip link set dummy0 promisc off; ip link set dummy0 down"),
]


class Attacked(harness.GuestTest):
    OPTIONS = {"backend": "memfd", "memory": f"{MEMORY >> 20}M", "modules": ["dummy"],
               "qemu": os.environ.get("LARARIUM_QEMU", "7.2")}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.attacker = Attacker(cls.guest)
        listed = json.loads(harness.run_lararium("check", "--list", "--json").stdout)
        cls.checks = {check["check"] for check in listed["items"]}
        cls.rows = []
        cls.addClassCleanup(cls.print_table)

    def setUp(self):
        if self.guest.run("true", timeout=30).code:
            self.fail("the guest does not answer")

    def findings(self, check, reference=False):
        files = [self.guest.kernel.image, self.guest.kernel.modules] if reference else []
        reference = [word for path in files for word in ("--reference", path)]
        return self.items("check", "--only", check, *reference, check=False)

    def carry_out(self, attack):
        if attack.check not in self.checks:
            self.skipTest(f"there is no check {attack.check}")
        self.assertEqual(self.findings(attack.check, attack.reference), [], "findings before the attack")
        began = time.monotonic()
        try:
            end = attack.begin(self)
        except Unsupported as error:
            self.skipTest(str(error))
        try:
            for _ in range(LOOKS):
                findings = self.findings(attack.check, attack.reference)
                milliseconds = (time.monotonic() - began) * 1000
                matching = [finding for finding in findings
                            if re.search(attack.pattern, f"{finding['subject']} {finding['sentence']}")]
                if matching:
                    break
        finally:
            end()
        self.rows.append({"attack": attack.name, "check": attack.check, "kernel": harness.KERNEL,
                          "found_ms": round(milliseconds) if matching else None, "unseen": attack.unseen})
        if attack.unseen:
            self.assertFalse(matching, f"it is found: {attack.name} is no longer unseen")
            self.skipTest(f"not found: {attack.unseen}")
        self.assertTrue(matching, f"not found; the check says {[f['sentence'] for f in findings]}")
        for _ in range(LOOKS):
            left = self.findings(attack.check, attack.reference)
            if not left:
                break
        self.assertEqual(left, [], "findings after the attack was taken back")

    @classmethod
    def print_table(cls):
        if not cls.rows:
            return
        print(f"\n{'attack':32} {'check':20} found on {harness.KERNEL} in")
        for row in cls.rows:
            found = f"not found: {row['unseen']}" if row["found_ms"] is None else f"{row['found_ms']} ms"
            print(f"{row['attack']:32} {row['check']:20} {found}")
        if TABLE:
            with open(TABLE, "a") as file:
                file.writelines(json.dumps(row) + "\n" for row in cls.rows)


class Attacks(Attacked):
    def test_severity_leaves_lesser_findings_out(self):
        job = self.guest.start("workload raw")
        try:
            found = self.items("check", "--only", "sockets", check=False)
            self.assertEqual([finding["severity"] for finding in found], ["low"])
            graver = harness.run_lararium("check", self.guest.pid, "--only", "sockets", "--severity", "medium", "--json",
                                          cache=self.cache.name)
            self.assertEqual(json.loads(graver.stdout)["items"], [])
        finally:
            job.stop()


class AttacksOnGuarded(Attacked):
    OPTIONS = {**Attacked.OPTIONS, "append": "security=selinux selinux=1 enforcing=1"}

    def test_policy_that_is_not_used(self):
        # There is no policy in this guest; it stands still while it seems to have one.
        memory = GuestMemory(self.guest, MEMORY)
        self.addCleanup(memory.close)
        kernel = GuestKernel(memory, lambda command, *arguments: harness.run_lararium(
            command, self.guest.pid, *arguments, cache=self.cache.name).stdout)
        state = kernel.symbol("selinux_state")
        self.guest.qmp("stop")
        try:
            with memory.undone():
                kernel.put(state + kernel.offset("selinux_state", "policy"), state)
                self.assertRegex(str(self.findings("defences")), "has a policy and does not use it")
            self.assertEqual(self.findings("defences"), [])
        finally:
            self.guest.qmp("cont")


def add(attack, tests):
    method = f"test_{re.sub(r'[^a-z0-9]+', '_', attack.name)}"
    assert not hasattr(tests, method), f"two attacks are called {attack.name}"
    setattr(tests, method, lambda self: self.carry_out(attack))


for each in ATTACKS:
    if CHOSEN.search(each.name):
        add(each, AttacksOnGuarded if each.guarded else Attacks)

if __name__ == "__main__":
    harness.main()
