#!/usr/bin/env python3
"""files, maps, mounts, env and recover, compared with what the guest's own /proc says."""

import hashlib
import os
import pathlib
import re
import subprocess
import tempfile

import harness
from lab.errors import Skip

SOURCE = pathlib.Path(__file__).with_name("vfs_workload.c")


def device_of(text):
    """"8:1" of "08:01"."""
    return ":".join(str(int(part, 16)) for part in text.split(":"))


def unescape(text):
    """The kernel shows newlines (and, in mountinfo, blanks and backslashes) as octal numbers."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), text)


def shown(item):
    """The path of a file as /proc shows it."""
    return harness.bytes_of(item["path"] or "") + (b" (deleted)" if item["deleted"] else b"")


class VfsViews(harness.GuestTest):
    OPTIONS = {"backend": "memfd", "memory": "768M"}

    @classmethod
    def setUpClass(cls):
        # The program comes to the guest as a disk: that is quicker than typing it, and nothing gets lost.
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        program = pathlib.Path(folder.name) / "vfs_workload"
        try:
            subprocess.run(["gcc", "-std=gnu11", "-O1", "-static", "-pthread", "-s", "-o", program, SOURCE], check=True)
        except FileNotFoundError:
            raise Skip("gcc is not installed") from None
        with program.open("ab") as file:
            file.truncate((program.stat().st_size + 511) // 512 * 512)
        cls.OPTIONS = {**cls.OPTIONS, "extra": ["-drive", f"file={program},format=raw,if=virtio,readonly=on"]}
        super().setUpClass()
        cls.guest.check("for i in $(seq 50); do [ -e /dev/vda ] && break; usleep 100000; done; "
                        "dd if=/dev/vda of=/bin/vfs_workload bs=64k 2>/dev/null && chmod +x /bin/vfs_workload")
        cls.areas = cls.guest.start("vfs_workload areas 3000")
        cls.files = cls.guest.start("vfs_workload files 600")
        cls.threads = cls.guest.start("vfs_workload threads 0")
        cls.leaderless = cls.guest.start("vfs_workload leaderless")
        cls.odd = cls.guest.start("workload arguments")
        cls.memfd_exec = cls.guest.start("workload memfd_exec hidden")
        cls.deleted_exec = cls.guest.start("workload deleted_exec")
        cls.container = cls.guest.start("workload container")

    # --- maps

    def assert_maps(self, pid):
        before = self.guest.run_bytes(f"cat /proc/{pid}/maps")[1]
        seen = self.items("maps", pid)
        after = self.guest.run_bytes(f"cat /proc/{pid}/maps")[1]
        if before != after:
            return 0  # it changed meanwhile
        inside = []
        for line in before.splitlines():
            span, rights, offset, device, inode, *path = line.split(None, 5)
            begin, end = (int(part, 16) for part in span.split(b"-"))
            inside.append((begin, end, rights.decode(), int(offset, 16), device_of(device.decode()), int(inode),
                           unescape(path[0]) if path else b""))
        outside = [(int(item["begin"], 16), int(item["end"], 16),
                    "".join(letter if item[right] else "-" for right, letter in
                            (("readable", "r"), ("writable", "w"), ("executable", "x"))) + "ps"[item["shared"]],
                    int(item["file_offset"], 16), item["device"], item["inode"], shown(item)) for item in seen]
        self.assertEqual(outside, inside)
        return len(inside)

    def test_maps_of_every_kind(self):
        self.assertGreater(self.assert_maps(self.areas.pid), 3000)

    def test_maps_of_all_processes(self):
        for pid in map(int, self.guest.check("ls /proc | grep '^[0-9]'").split()):
            if self.guest.run(f"test -e /proc/{pid}/exe").code == 0:
                with self.subTest(pid=pid):
                    self.assert_maps(pid)
        self.assertEqual(self.items("maps", 2), [], "a kernel thread")

    def test_overlay(self):
        # What overlayfs maps is another file than the one that was opened.
        if self.guest.run("modprobe overlay").code:
            self.skipTest("this kernel comes without overlayfs")
        self.guest.check("mkdir -p /mnt/o && mount -t tmpfs o /mnt/o && cd /mnt/o && mkdir lower upper work merged && "
                         "cp /bin/workload lower && mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work "
                         "over merged")
        job = self.guest.start("/mnt/o/merged/workload sleep")
        self.assertGreater(self.assert_maps(job.pid), 5)
        self.assert_recovered("/mnt/o/lower/workload", "cat /bin/workload")
        with self.assertRaises(harness.LarariumError):
            self.recover("/mnt/o/merged/workload")
        job.stop("KILL")

    def test_maps_without_leader(self):
        # /proc/PID/maps of a process whose first thread ended is empty; that of its other thread is not.
        pid = self.leaderless.pid
        tid = next(int(tid) for tid in self.guest.check(f"ls /proc/{pid}/task").split() if int(tid) != pid)
        inside = self.guest.check(f"cat /proc/{pid}/task/{tid}/maps").splitlines()
        self.assertEqual([int(item["begin"], 16) for item in self.items("maps", pid)],
                         [int(line.split("-")[0], 16) for line in inside])

    def test_maps_while_they_change(self):
        job = self.guest.start("vfs_workload restless")
        try:
            for _ in range(20):
                document = self.json("maps", job.pid)
                begins = [int(item["begin"], 16) for item in document["items"]]
                self.assertEqual(begins, sorted(set(begins)))
                self.json("files", job.pid)
        finally:
            job.stop("KILL")

    # --- files

    def assert_files(self, pid, seen, task=None):
        folder = f"/proc/{pid}/task/{task}" if task else f"/proc/{pid}"
        script = (f"cd {folder}/fd && for n in *; do printf '\\001%s\\002' $n; readlink $n; printf '\\002'; "
                  f"stat -L -c '%i %s %h %D %f' $n; printf '\\002'; cat {folder}/fdinfo/$n; done")
        text = self.guest.run_bytes(script, timeout=300)[1]
        inside, outside = {}, {}
        for part in text.split(b"\x01")[1:]:
            number, link, status, info = part.split(b"\x02")
            inode, size, _, device, _ = status.split()
            about = dict(re.findall(rb"^(\w+):\s*(.*)$", info, re.M))
            inside[int(number)] = {"path": link[:-1], "inode": int(inode), "flags": int(about[b"flags"], 8),
                                   "position": int(about[b"pos"]), "device": int(device, 16)}
        for item in seen:
            major, minor = map(int, item["device"].split(":"))
            outside[item["fd"]] = {"path": shown(item), "inode": item["inode"], "flags": item["flags"],
                                   "position": item["position"],
                                   "device": (minor & 0xff) | major << 8 | (minor & ~0xff) << 12}
        self.maxDiff = None
        self.assertEqual(outside, inside)
        return len(inside)

    def test_files_of_every_kind(self):
        seen = self.items("files", self.files.pid)
        self.assertGreater(self.assert_files(self.files.pid, seen), 600)
        by_number = {item["fd"]: item for item in seen}
        file = by_number[int(self.files.ready["file"])]
        self.assertEqual((file["type"], file["access"], file["size"], file["position"]), ("file", "rw", 10, 7))
        types = {item["type"] for item in seen}
        self.assertEqual(types, {"file", "directory", "character", "fifo", "socket", "link", "anon"})
        for item in seen:
            self.assertEqual(item["close_on_exec"], item["flags"] & 0o2000000 != 0)
            if item["flags"] & 0o10000000:
                self.assertEqual(item["access"], "path")

    def test_files_of_all_processes(self):
        everything = self.items("files")
        pids = {self.files.pid, self.areas.pid, self.odd.pid, self.container.pid, 1}
        for pid in pids:
            with self.subTest(pid=pid):
                self.assert_files(pid, [item for item in everything if item["pid"] == pid])
        self.assertEqual([item for item in everything if item["pid"] == 2], [])

    def test_files_without_leader(self):
        pid = self.leaderless.pid
        tid = next(int(tid) for tid in self.guest.check(f"ls /proc/{pid}/task").split() if int(tid) != pid)
        self.assertGreater(self.assert_files(pid, self.items("files", pid), tid), 3)

    # --- mounts

    def assert_mounts(self, pid, arguments):
        before = self.guest.run_bytes(f"cat /proc/{pid}/mountinfo")[1]
        seen = self.items("mounts", *arguments)
        inside = []
        for line in before.splitlines():
            own, _, rest = line.partition(b" - ")
            number, parent, device, root, point, options, *propagation = own.split(b" ")
            kind, source, super_options = rest.split(b" ")
            propagation = [word for word in propagation if not word.startswith(b"propagate_from")]
            general = [word for word in super_options.split(b",")
                       if word in (b"ro", b"rw", b"sync", b"dirsync", b"mand", b"lazytime")]
            inside.append({"id": int(number), "parent_id": int(parent), "device": device.decode(),
                           "root": unescape(root), "mount_point": unescape(point), "options": options.decode(),
                           "filesystem": kind.decode(), "source": unescape(source),
                           "super_options": b",".join(general).decode(), "propagation": b" ".join(propagation).decode()})
        outside = []
        for item in seen:
            mount = {key: item.get(key) for key in inside[0]}
            for key in ("root", "mount_point", "source"):
                mount[key] = harness.bytes_of(item[key] or "")
            mount["propagation"] = item.get("propagation") or ""
            outside.append(mount)
        self.maxDiff = None
        self.assertEqual(outside, inside)
        number = self.guest.check(f"readlink /proc/{pid}/ns/mnt")
        for item in seen:
            self.assertEqual(item["mount_namespace"], int(re.search(r"\[(\d+)\]", number)[1]))
        return len(inside)

    def test_mounts(self):
        self.guest.check(
            "mkdir -p '/mnt/a b' /mnt/ro /mnt/stack /mnt/shared /mnt/slave /mnt/gone /mnt/sub/deep; "
            "mount -t tmpfs -o nosuid,nodev,noexec,noatime,size=1m 'a source' '/mnt/a b'; "
            "mount -t tmpfs -o nodiratime,sync,lazytime none /mnt/ro; mount -o remount,ro /mnt/ro; "
            "mount -t tmpfs one /mnt/stack; mount -t tmpfs two /mnt/stack; mkdir /mnt/stack/over; "
            "mount -t tmpfs three /mnt/stack/over; "
            "mount -t tmpfs shared /mnt/shared; mount --make-shared /mnt/shared; "
            "mount --bind /mnt/shared /mnt/slave; mount --make-slave /mnt/slave; "
            "mkdir /mnt/shared/below; mount -t tmpfs below /mnt/shared/below; "
            "mount --bind /mnt/sub/deep /mnt/gone; rmdir /mnt/sub/deep; "
            "touch /run/ns; mount --bind /proc/self/ns/uts /run/ns; "
            "mount --bind /bin/busybox /mnt/sub; true")
        self.guest.run("mkdir -p /mnt/unbind; mount -t tmpfs u /mnt/unbind && mount --make-unbindable /mnt/unbind")
        job = self.guest.start("workload sleep")
        other = self.guest.start("unshare -m sh -c 'mount -t tmpfs inner /mnt/ro; workload sleep'")
        inner = next(int(pid) for pid in self.guest.check("pidof workload").split()
                     if self.guest.check(f"readlink /proc/{pid}/ns/mnt") == self.guest.check(
                         f"readlink /proc/{other.pid}/ns/mnt"))
        self.guest.check("mkdir -p /mnt/jail; mount -t tmpfs jail /mnt/jail; mkdir /mnt/jail/bin /mnt/jail/sub; "
                         "cp /bin/workload /mnt/jail/bin; mount -t tmpfs inside /mnt/jail/sub")
        jail = self.guest.start("chroot /mnt/jail /bin/workload sleep")
        try:
            self.assertGreater(self.assert_mounts(1, []), 20)
            for pid in (job.pid, inner, jail.pid, int(self.container.ready["child"])):
                with self.subTest(pid=pid):
                    self.assert_mounts(pid, ["--pid", pid])
        finally:
            for each in (job, other, jail):
                each.stop("KILL")

    # --- env

    def test_environment(self):
        for job in (self.odd, self.files, self.memfd_exec):
            inside = self.guest.run_bytes(f"cat /proc/{job.pid}/environ")[1].split(b"\0")[:-1]
            outside = [harness.bytes_of(item["name"]) + (b"" if item["value"] is None else
                                                         b"=" + harness.bytes_of(item["value"]))
                       for item in self.items("env", job.pid)]
            self.assertEqual(outside, inside)
            self.assertGreater(len(inside), 2)
        self.assertEqual(self.items("env", 2), [])

    # --- recover

    def recover(self, what):
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, "content")
            item = self.json("recover", what, "-o", file)["item"]
            return item, pathlib.Path(file).read_bytes()

    def assert_recovered(self, what, command, whole=True):
        inside = self.guest.check(f"{command} | sha256sum").split()[0]
        item, content = self.recover(what)
        self.assertEqual(hashlib.sha256(content).hexdigest(), inside, what)
        self.assertEqual(item["size"], len(content))
        self.assertEqual(sum(hole["end"] - hole["begin"] for hole in item["holes"]) + item["cached_bytes"], len(content))
        if whole:
            self.assertEqual(item["holes"], [])
        return item

    def test_recover(self):
        self.guest.check("mkdir -p /tmp/r && cd /tmp/r && dd if=/dev/urandom of=big bs=1M count=20 2>/dev/null && "
                         "printf x >one && : >empty && head -c 4096 /dev/urandom >page && head -c 4097 /dev/urandom >more && "
                         "ln -sf ../r/big link && ln -sf /tmp/r/link link2 && mkdir -p far && mount -t tmpfs far far && "
                         "head -c 100000 /dev/urandom >far/file && cat * >/dev/null 2>&1; "
                         "dd if=/dev/urandom of=sparse bs=4k seek=5000 count=3 2>/dev/null && "
                         "dd if=/dev/urandom of=sparse bs=4k seek=70 count=9 conv=notrunc 2>/dev/null")
        for name in ("big", "one", "empty", "page", "more", "far/file"):
            self.assert_recovered(f"/tmp/r/{name}", f"cat /tmp/r/{name}")
        # Not by cat: it sends the file to the pipe, for which older kernels fill the holes with pages.
        item = self.assert_recovered("/tmp/r/sparse", "dd if=/tmp/r/sparse bs=4k 2>/dev/null", whole=False)
        self.assertEqual([(hole["begin"], hole["end"]) for hole in item["holes"]],
                         [(0, 70 * 4096), (79 * 4096, 5000 * 4096)])
        self.assert_recovered("/tmp/r/link2", "cat /tmp/r/big")
        self.assert_recovered("/tmp/../tmp/r/./far/../big", "cat /tmp/r/big")
        self.assert_recovered("/bin/busybox", "cat /bin/busybox")
        self.assert_recovered("/bin/sh", "cat /bin/busybox")
        number, device = self.guest.check("stat -c '%i %d' /tmp/r/big").split()
        major, minor = int(device) >> 8 & 0xfff, int(device) & 0xff
        self.assert_recovered(f"inode:{major}:{minor}:{number}", "cat /tmp/r/big")

    def test_recover_deleted(self):
        self.guest.check("mkdir -p /tmp/d/e; head -c 300000 /dev/urandom >/tmp/d/gone; cp /tmp/d/gone /tmp/d/copy; "
                         "cp /tmp/d/gone /tmp/d/e/inside")
        job = self.guest.start("sh -c 'exec 7</tmp/d/gone 8</tmp/d/e/inside; rm -r /tmp/d/gone /tmp/d/e; "
                               "exec workload sleep'")
        for what in ("/tmp/d/gone", "/tmp/d/gone (deleted)", f"fd:{job.pid}:7", "/tmp/d/e/inside"):
            self.assert_recovered(what, "cat /tmp/d/copy")
        self.guest.check("echo new >/tmp/d/gone")  # the name is in use again
        self.assert_recovered("/tmp/d/gone", "cat /tmp/d/gone")
        self.assert_recovered("/tmp/d/gone (deleted)", "cat /tmp/d/copy")
        self.assert_recovered("/memfd:hidden", f"cat /proc/{self.memfd_exec.pid}/exe")
        self.assert_recovered("/tmp/workload.exec", f"cat /proc/{self.deleted_exec.pid}/exe")
        memory = self.files.ready["memory"]
        self.assert_recovered("/memfd:a name (deleted)", f"cat /proc/{self.files.pid}/fd/{memory}", whole=False)
        with self.assertRaises(harness.LarariumError):
            self.recover("/tmp/d/never")
        job.stop("KILL")

    def test_recover_large_pages(self):
        if self.guest.run("mkdir -p /mnt/huge && mount -t tmpfs -o huge=always,size=100m huge /mnt/huge").code:
            self.skipTest("this kernel has no huge pages for tmpfs")
        self.guest.check("head -c 25000001 /dev/urandom >/mnt/huge/file; vfs_workload touch /mnt/huge/file; "
                         "dd if=/dev/urandom of=/mnt/huge/holes bs=2M seek=3 count=2 2>/dev/null")
        self.assertRegex(self.guest.check("grep ShmemHugePages /proc/meminfo"), r" [1-9]\d* kB")
        self.assert_recovered("/mnt/huge/file", "cat /mnt/huge/file")
        self.assert_recovered("/mnt/huge/holes", "cat /mnt/huge/holes", whole=False)

    def test_recover_block_device(self):
        self.guest.check("dd if=/dev/urandom of=/tmp/image bs=1M count=4 2>/dev/null; modprobe loop; "
                         "losetup /dev/loop0 /tmp/image && cat /dev/loop0 >/dev/null")
        job = self.guest.start("sh -c 'exec 7</dev/loop0; cat /dev/loop0 >/dev/null; exec workload sleep'")
        self.assert_recovered(f"fd:{job.pid}:7", "cat /tmp/image")
        job.stop("KILL")


if __name__ == "__main__":
    harness.main()
