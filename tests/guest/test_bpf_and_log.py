#!/usr/bin/env python3
"""dmesg and bpf, compared with the guest's /dev/kmsg and with what the guest knows of its BPF objects."""

import re

import harness


def unescape(text):
    """The bytes of a line of /dev/kmsg, which shows what is not printable as \\xNN."""
    return re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), text)


class KernelLog(harness.GuestTest):
    def records(self):
        # At its end a reader of /dev/kmsg waits for more.
        code, output = self.guest.run_bytes("""
            cat /dev/kmsg >/tmp/kmsg & p=$!; old=-1; new=0
            while [ $old != $new ]; do usleep 500000; old=$new; new=$(wc -c </tmp/kmsg); done
            kill $p; cat /tmp/kmsg""")
        records = {}
        for line in output.split(b"\n"):
            if match := re.match(rb"(\d+),(\d+),(\d+),[^;]*;(.*)", line):
                prefix, sequence, time = (int(match[i]) for i in (1, 2, 3))
                records[sequence] = (prefix & 7, prefix >> 3, time, unescape(match[4]))
        return records

    def compare(self):
        inside = self.records()
        document = self.json("dmesg")
        self.assertFalse(document["status"]["truncated"])
        seen = {item["sequence"]: (item["level"], item["facility"], item["time_ns"] // 1000,
                                   harness.bytes_of(item["text"])) for item in document["items"]}
        after = self.records()
        # What the guest logged, or gave up, between the looks is in one of them.
        self.assertEqual({s: r for s, r in inside.items() if s in after}, {s: r for s, r in seen.items()
                                                                           if s in inside and s in after})
        self.assertLessEqual(set(seen), set(inside) | set(after))
        return seen

    def test_records_agree(self):
        self.guest.check("echo '<3>lab: written by user space' >/dev/kmsg; printf 'a\\nb\\tc\\001\\xff' >/dev/kmsg")
        seen = self.compare()
        self.assertGreater(len(seen), 100)
        self.assertTrue(any(level == 3 and text == b"lab: written by user space" for level, _, _, text in seen.values()))
        self.assertTrue(any(text.startswith(b"Linux version ") for _, _, _, text in seen.values()))

    def test_when_the_buffer_went_round(self):  # after the test that wants the first record
        line = "lab: " + "x" * 700
        self.guest.check(f"i=0; while [ $i -lt 1500 ]; do echo $i {line}; i=$((i+1)); done | "
                         "while read l; do echo $l >/dev/kmsg; done", timeout=300)
        seen = self.compare()
        self.assertGreater(min(seen), 0, "the first record is still there: the buffer did not go round")
        self.assertTrue(any(text.startswith(b"1499 lab: ") for _, _, _, text in seen.values()))

    def test_while_the_guest_writes(self):
        job = self.guest.start("sh -c 'echo ready; while :; do echo lab: busy >/dev/kmsg; done'")
        for _ in range(5):
            items = self.items("dmesg")
            sequences = [item["sequence"] for item in items]
            self.assertEqual(sequences, sorted(set(sequences)))
            self.assertGreater(len(items), 50)
            for item in items[-40:]:
                if "busy" in item["text"]:
                    self.assertEqual(item["text"], "lab: busy")
        job.stop("KILL")


class Bpf(harness.GuestTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.job = cls.guest.start("workload bpf")
        cls.ready = cls.job.ready

    def setUp(self):
        self.document = self.json("bpf")
        self.programs = {item["id"]: item for item in self.document["items"] if item["kind"] == "program"}
        self.maps = {item["id"]: item for item in self.document["items"] if item["kind"] == "map"}
        self.links = {item["id"]: item for item in self.document["items"] if item["kind"] == "link"}

    def test_nothing_is_contradicted(self):
        self.assertEqual(self.document["status"]["warnings"], [])

    def test_programs_and_where_they_are_attached(self):
        expected = {"filter": ("socket_filter", "lab_filter", r"socket udp inode \d+"),
                    "kprobe": ("kprobe", "lab_kprobe", "kprobe " + self.ready["function"]),
                    "tracepoint": ("tracepoint", "lab_tracepoint", "tracepoint sched:sched_process_exec"),
                    "raw_tracepoint": ("raw_tracepoint", "lab_raw", "raw_tracepoint sched_process_exit"),
                    "cgroup_skb": ("cgroup_skb", "lab_egress", "cgroup / (cgroup_)?inet_egress"),
                    "xdp": ("xdp", "lab_xdp", "xdp lo")}
        for key, (kind, name, where) in expected.items():
            with self.subTest(program=key):
                self.assertNotEqual(self.ready[key], "0", "the guest could not make it")
                item = self.programs[int(self.ready[key])]
                self.assertEqual((item["type"], item["name"]), (kind, name))
                self.assertEqual(len(item["attached_to"]), 1)
                self.assertRegex(item["attached_to"][0], f"^{where}$")
                self.assertIn(self.job.pid, {owner["pid"] for owner in item["owners"]})

    def test_pinned_program(self):
        item = self.programs[int(self.ready["pinned"])]
        self.assertEqual(item["pinned"], [self.ready["pinned_program"]])
        self.assertEqual(item["owners"], [])
        self.assertEqual(item["attached_to"], [])

    def test_maps(self):
        hash_map, array = (self.maps[int(self.ready[key])] for key in ("hash_map", "array_map"))
        self.assertEqual([hash_map[key] for key in ("type", "name", "key_size", "value_size", "max_entries")],
                         ["hash", "lab_hash", 4, 8, 16])
        self.assertEqual([array[key] for key in ("type", "name", "key_size", "value_size", "max_entries")],
                         ["array", "lab_array", 4, 8, 8])
        self.assertEqual(self.programs[int(self.ready["filter"])]["map_ids"], [int(self.ready["hash_map"])])

    def test_descriptors_agree(self):
        """/proc/PID/fdinfo tells ids, tags and types of what a descriptor holds."""
        text = self.guest.check(f'for f in /proc/{self.job.pid}/fdinfo/*; do echo "=== ${{f##*/}}"; cat $f; done')
        kinds = {"prog_id": self.programs, "map_id": self.maps, "link_id": self.links}
        compared = 0
        for block in text.split("=== ")[1:]:
            number, _, body = block.partition("\n")
            facts = dict(re.findall(r"^(\w+):\s*(.*)$", body, re.M))
            for key in ("link_id", "map_id", "prog_id"):  # a link tells its program's id too
                if key not in facts:
                    continue
                item = kinds[key][int(facts[key])]
                with self.subTest(fd=number, **{key: facts[key]}):
                    self.assertIn({"pid": self.job.pid, "fd": int(number)},
                                  [{"pid": owner["pid"], "fd": owner["fd"]} for owner in item["owners"]])
                    if key == "prog_id":
                        self.assertEqual(item["tag"], facts["prog_tag"])
                    if key == "link_id":
                        self.assertEqual(item["type"], facts["link_type"])
                        self.assertEqual(item["program_id"], int(facts["prog_id"]))
                    if key == "map_id" and "max_entries" in facts:
                        self.assertEqual(item["flags"], int(facts["map_flags"], 16))
                compared += 1
                break
        self.assertGreaterEqual(compared, 8)

    def test_statistics(self):
        self.guest.check("echo 1 >/proc/sys/kernel/bpf_stats_enabled; for i in 1 2 3 4 5; do /bin/true; done; "
                         "echo 0 >/proc/sys/kernel/bpf_stats_enabled")
        for item in self.items("bpf"):
            if item["kind"] == "program" and item["name"] == "lab_tracepoint":
                self.assertGreater(item["run_count"], 0)
                self.assertGreater(item["run_time_ns"], 0)

    def test_load_time(self):
        uptime = float(self.guest.check("cat /proc/uptime").split()[0]) * 1e9
        for item in self.programs.values():
            self.assertLess(0, item["load_time_ns"])
            self.assertLess(item["load_time_ns"], uptime)

    def test_what_is_gone_is_gone(self):
        job = self.guest.start("workload bpf vfs_read")
        ids = {int(job.ready[key]) for key in ("kprobe", "tracepoint")}
        self.assertLessEqual(ids, {item["id"] for item in self.items("bpf") if item["kind"] == "program"})
        job.stop("KILL")
        self.guest.check("sleep 1")
        left = {item["id"] for item in self.items("bpf") if item["kind"] == "program"}
        self.assertFalse(ids & left)


if __name__ == "__main__":
    harness.main()
