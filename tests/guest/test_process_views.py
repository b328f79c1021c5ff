#!/usr/bin/env python3
"""info, ps, modules and symbols, compared with what the guest's own /proc says."""

import gzip
import json
import os
import re
import subprocess
import time

import harness


def status_files(text):
    """The contents of many /proc/PID/status, each after a line "=== PID", as one dictionary a process."""
    processes = {}
    for block in text.split("=== ")[1:]:
        head, _, body = block.partition("\n")
        if not body.strip():
            continue  # it ended while it was listed
        processes[int(head)] = dict(re.findall(r"^(\w+):\t?(.*)$", body, re.M))
    return processes


def proc_files(name, pids="[0-9]*"):
    return f'for d in /proc/{pids}; do echo "=== ${{d##*/}}"; cat $d/{name} 2>/dev/null; done'


class ProcessViews(harness.GuestTest):
    OPTIONS = {"backend": "memfd", "modules": ("dummy", "loop")}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.jobs = {name: cls.guest.start(f"workload {name}{arguments}") for name, arguments in
                    {"arguments": "", "threads": " 5 worker", "spawn": " 20 sleeper", "zombie": " 2", "setuid": " 1234",
                     "capabilities": "", "container": "", "deleted_exec": "", "memfd_exec": ""}.items()}

    def test_every_process_is_there_and_no_other(self):
        # What comes and goes between the looks is in neither or one of the guest's two lists; what comes and goes just
        # around ours is in neither, and another look does not see it.
        strangers = None
        for _ in range(4):
            before = set(map(int, self.guest.check("ls /proc | grep '^[0-9]'").split()))
            seen = {item["pid"] for item in self.items("ps")}
            after = set(map(int, self.guest.check("ls /proc | grep '^[0-9]'").split()))
            self.assertEqual(before & after - seen, set(), "in the guest's /proc, not seen from outside")
            new = seen - before - after
            strangers = new if strangers is None else strangers & new
            if not strangers:
                break
        self.assertEqual(strangers, set(), "seen from outside, never in the guest's /proc")
        self.assertGreater(len(before & after), 40)

    def test_arguments_look_after_look(self):
        """One attached Lararium remembers where arguments lie; programs change, end and come meanwhile."""
        program = harness.BINARY.parent / "list_again"
        if not program.exists():
            self.skipTest(f"{program} is not built")
        self.guest.check("mkfifo /tmp/go")
        changing = self.guest.start("sh -c 'echo ready; read word </tmp/go; exec sleep 4321'")
        self.addCleanup(changing.stop, "KILL")
        ending = self.guest.start("sh -c 'echo ready; exec sleep 1111'")
        with subprocess.Popen([program, str(self.guest.pid)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              env={**os.environ, "LARARIUM_CACHE": self.cache.name}) as lister:
            def look():
                lister.stdin.write("\n")
                lister.stdin.flush()
                return {int(pid): words for pid, words in json.loads(lister.stdout.readline()).items()}

            def assert_all():
                inside = {pid: words.split(b"\0")[:-1] for pid, words in self.command_lines().items()}
                outside = {pid: list(map(harness.bytes_of, words)) for pid, words in look().items()}
                compared = [pid for pid in inside.keys() & outside.keys() if inside[pid] and inside[pid][0] != b"cat"]
                self.assertGreater(len(compared), 25)
                for pid in compared:
                    self.assertEqual(outside[pid], inside[pid], pid)

            assert_all()
            self.assertEqual(look()[changing.pid][0], "sh")
            self.guest.check(f"echo >/tmp/go; until grep -q 4321 /proc/{changing.pid}/cmdline; do usleep 20000; done")
            self.assertEqual(look()[changing.pid], ["sleep", "4321"])
            ending.stop("KILL")
            self.addCleanup(self.guest.start("sh -c 'echo ready; exec sleep 2222'").stop, "KILL")
            for _ in range(20):  # more than a place is trusted for
                found = look()
            self.assertNotIn(ending.pid, found)
            self.assertIn(["sleep", "2222"], found.values())
            assert_all()
            lister.stdin.close()
        self.assertEqual(lister.returncode, 0)

    def command_lines(self):
        """What the guest's /proc says, as bytes."""
        text = self.guest.run_bytes('for d in /proc/[0-9]*; do echo "=== ${d##*/}"; cat $d/cmdline; echo; done')[1]
        blocks = re.split(rb"(?:^|\n)=== (\d+)\n", text)  # what stands between, the numbers among it
        return {int(pid): words for pid, words in zip(blocks[1::2], blocks[2::2])}

    def test_status_agrees(self):
        text = self.guest.check(proc_files("status"))
        outside = {item["pid"]: item for item in self.items("ps")}
        compared = 0
        for pid, inside in status_files(text).items():
            if pid not in outside or inside["Name"] in ("cat", "sh"):
                continue  # the shell that lists, and what it runs
            item = outside[pid]
            with self.subTest(pid=pid, name=inside["Name"]):
                if item["kernel_thread"]:  # /proc makes a longer name up, from what a worker does at the moment
                    self.assertTrue(inside["Name"].startswith(item["comm"]), item["comm"])
                else:
                    self.assertEqual(item["comm"], inside["Name"])
                self.assertEqual(item["tgid"], int(inside["Tgid"]))
                self.assertEqual(item["ppid"], int(inside["PPid"]))
                self.assertEqual(item["threads"], int(inside["Threads"]))
                for key, name in (("uids", "Uid"), ("gids", "Gid")):
                    self.assertEqual([item[key][part] for part in ("real", "effective", "saved", "filesystem")],
                                     list(map(int, inside[name].split())))
                self.assertEqual(item["groups"], list(map(int, inside["Groups"].split())))
                for key, name in (("inheritable", "CapInh"), ("permitted", "CapPrm"), ("effective", "CapEff"),
                                  ("bounding", "CapBnd"), ("ambient", "CapAmb")):
                    self.assertEqual(int(item["capabilities"][key], 16), int(inside[name], 16), name)
                self.assertEqual(item["namespace_pid"], int(inside["NSpid"].split()[-1]))
                if "Kthread" in inside:
                    self.assertEqual(item["kernel_thread"], inside["Kthread"] == "1")
                if "VmSize" in inside:
                    self.assertEqual(item["virtual_bytes"], int(inside["VmSize"].split()[0]) * 1024)
                    rss = int(inside["VmRSS"].split()[0]) * 1024
                    # The kernel may report per-CPU counters that were not added up yet: up to 32 pages a CPU and counter.
                    self.assertAlmostEqual(item["rss_bytes"], rss, delta=2 * 3 * 32 * 4096)
                compared += 1
        self.assertGreater(compared, 40)

    def test_stat_agrees(self):
        pids = " ".join(str(job.pid) for job in self.jobs.values())
        text = self.guest.check(f'for p in 1 2 {pids}; do cat /proc/$p/stat; done; cat /proc/stat | grep btime')
        outside = {item["pid"]: item for item in self.items("ps")}
        boot_time = int(re.search(r"btime (\d+)", text)[1])
        for line in text.splitlines():
            if line.startswith("btime"):
                continue
            pid, rest = int(line.split(" ", 1)[0]), line.rpartition(")")[2].split()
            item = outside[pid]
            with self.subTest(pid=pid, comm=item["comm"]):
                self.assertEqual(item["state"], rest[0])
                self.assertEqual(item["pgrp"], int(rest[2]))
                self.assertEqual(item["session"], int(rest[3]))
                self.assertEqual(item["nice"], int(rest[16]))
                self.assertAlmostEqual(item["user_time_ns"] + item["system_time_ns"],
                                       (int(rest[11]) + int(rest[12])) * 10**7, delta=5 * 10**7)
                started = int(rest[19]) / 100
                self.assertAlmostEqual(item["start_since_boot_ns"] / 1e9, started, delta=0.02)
                self.assertAlmostEqual(harness.seconds_of(item["start_time"]), boot_time + started, delta=2.1)

    def test_arguments_and_executables(self):
        for name, job in self.jobs.items():
            pid = job.pid
            inside = self.guest.run_bytes(f"cat /proc/{pid}/cmdline")[1]
            exe = self.guest.run(f"readlink /proc/{pid}/exe").output.strip()
            item = self.items("ps", "--pid", pid)[0]
            with self.subTest(name=name):
                self.assertEqual([harness.bytes_of(part) for part in item["arguments"]], inside.split(b"\0")[:-1])
                self.assertEqual(harness.bytes_of(item["exe"]).decode() + (" (deleted)" if item["exe_deleted"] else ""), exe)

    def test_odd_arguments_are_escaped_for_people(self):
        text = self.lararium("ps")
        self.assertNotIn("\x1b", text)
        self.assertNotIn("\xff", text)
        self.assertIn("line\\nbreak", text)

    def test_threads(self):
        pid = self.jobs["threads"].pid
        inside = set(map(int, self.guest.check(f"ls /proc/{pid}/task").split()))
        mine = [item for item in self.items("ps", "--threads") if item["tgid"] == pid]
        self.assertEqual({item["pid"] for item in mine}, inside)
        names = dict(line.split(" ", 1) for line in self.guest.check(
            f'for t in /proc/{pid}/task/*; do echo "${{t##*/}} $(cat $t/comm)"; done').splitlines())
        self.assertEqual({str(item["pid"]): item["comm"] for item in mine}, names)

    def test_zombies_container_and_namespaces(self):
        outside = {item["pid"]: item for item in self.items("ps")}
        zombies = [item for item in outside.values() if item["ppid"] == self.jobs["zombie"].pid]
        self.assertEqual([item["state"] for item in zombies], ["Z", "Z"])

        job = self.jobs["container"]
        child = next(item for item in outside.values() if item["ppid"] == job.pid)
        cgroup = self.guest.check(f"cat /proc/{child['pid']}/cgroup").strip().splitlines()[-1].split(":", 2)[2]
        self.assertEqual(child["cgroup"], cgroup)
        self.assertRegex(child["container_id"], "^[0-9a-f]{64}$")
        self.assertIn(child["container_id"], cgroup)
        for name in ("mnt", "pid", "net", "uts", "ipc", "user", "cgroup"):
            link = self.guest.run(f"readlink /proc/{child['pid']}/ns/{name}").output.strip()
            if not link:
                continue  # not in this kernel
            self.assertEqual(child["namespaces"][name], int(re.search(r"\[(\d+)\]", link)[1]), name)

    def test_tree_holds_every_process(self):
        text = self.lararium("ps", "--tree")
        for item in self.items("ps"):
            self.assertRegex(text, rf"(?m)^\s*{item['pid']}\b", item["comm"])

    def test_info_agrees(self):
        info = self.json("info")["item"]
        guest = lambda command: self.guest.check(command).strip()  # noqa: E731
        self.assertEqual(info["release"], guest("uname -r"))
        self.assertEqual(info["version"], guest("uname -v"))
        self.assertEqual(info["machine"], guest("uname -m"))
        self.assertEqual(info["hostname"], guest("hostname"))
        self.assertEqual(info["banner"], guest("cat /proc/version"))
        self.assertEqual(info["command_line"], guest("cat /proc/cmdline"))
        self.assertEqual(info["taint"], int(guest("cat /proc/sys/kernel/tainted")))
        self.assertEqual(info["cpus"]["online"], 2)
        notes = self.guest.run_bytes("cat /sys/kernel/notes")[1]
        self.assertIn(bytes.fromhex(info["build_id"]), notes)
        meminfo = dict(re.findall(r"^(\w+):\s+(\d+)", guest("cat /proc/meminfo"), re.M))
        self.assertEqual(info["memory"]["total_bytes"], int(meminfo["MemTotal"]) * 1024)
        for key, name in (("free_bytes", "MemFree"), ("available_bytes", "MemAvailable"), ("cached_bytes", "Cached"),
                          ("shared_bytes", "Shmem")):
            self.assertAlmostEqual(info["memory"][key], int(meminfo[name]) * 1024, delta=16 << 20, msg=name)
        self.assertEqual(info["memory"]["swap_total_bytes"], int(meminfo["SwapTotal"]) * 1024)
        load = list(map(float, guest("cat /proc/loadavg").split()[:3]))
        for seen, said in zip(info["load"], load):
            self.assertAlmostEqual(seen, said, delta=0.3)
        uptime = float(guest("cut -d' ' -f1 /proc/uptime"))
        self.assertAlmostEqual(info["uptime_ns"] / 1e9, uptime, delta=15)
        lsm = self.guest.run("mount -t securityfs none /sys/kernel/security 2>/dev/null; cat /sys/kernel/security/lsm")
        if lsm.code == 0:
            self.assertEqual(",".join(info["security_modules"]), lsm.output.strip())
        lockdown = self.guest.run("cat /sys/kernel/security/lockdown")
        if lockdown.code == 0:
            self.assertEqual(info["lockdown"], re.search(r"\[(\w+)\]", lockdown.output)[1])

    def test_modules_agree(self):
        inside = {}
        for line in self.guest.check("cat /proc/modules").splitlines():
            name, size, references, users, state, base = line.split()[:6]
            inside[name] = (int(size), int(references), sorted(u for u in users.split(",") if u not in ("-", "")),
                            state.lower(), int(base, 16))
        outside = {item["name"]: (item["size"], item["references"], sorted(item["used_by"]), item["state"],
                                  int(item["base"], 16)) for item in self.items("modules")}
        self.assertEqual(outside, inside)
        self.assertGreater(len(inside), 0)

    def test_symbols_agree(self):
        inside = {}
        code, packed = self.guest.run_bytes("gzip -1c /proc/kallsyms", timeout=240)  # ten megabytes, by a slow console
        self.assertEqual(code, 0)
        for line in gzip.decompress(packed).decode().splitlines():
            address, _, rest = line.partition(" ")
            kind, _, name = rest.partition(" ")
            inside.setdefault((int(address, 16), name.split("\t")[0]), kind)
        outside = {(int(item["address"], 16), item["name"]) for item in self.items("symbols", timeout=120)}
        # eBPF's and ftrace's generated symbols come and go and are no part of kallsyms' tables.
        generated = {key for key in inside if key[1].startswith(("bpf_prog_", "bpf_trampoline_", "ftrace_trampoline"))
                     or key[1].startswith("__builtin__")}
        missing = set(inside) - outside - generated
        self.assertEqual(sorted(missing)[:10], [], f"{len(missing)} symbols of {len(inside)} are missing")
        self.assertGreater(len(inside), 50000)


class KaslrAndTime(harness.GuestTest):
    """A second boot: another KASLR base, page table isolation, and the clock of a guest that has run a while."""

    OPTIONS = {"backend": "memfd", "pti": True}

    def test_info_of_another_boot(self):
        info = self.json("info")["item"]
        inside = self.guest.check("grep -w -m1 _text /proc/kallsyms").split()[0]
        self.assertEqual(int(info["kernel_base"], 16), int(inside, 16))
        if "pti=on" in self.guest.check("cat /proc/cmdline"):
            self.assertTrue(info["page_table_isolation"])
        time.sleep(2)
        self.assertEqual(self.items("ps", "--pid", 1)[0]["comm"], "init")


if __name__ == "__main__":
    harness.main()
