#!/usr/bin/env python3
"""sockets and interfaces, compared with the guest's own /proc/net, /proc/PID/fd and /sys/class/net."""

import collections
import ipaddress
import re
import struct

import harness

TCP_STATES = ["", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "CLOSED", "CLOSE_WAIT",
              "LAST_ACK", "LISTEN", "CLOSING", "SYN_RECV"]
TYPES = {1: "stream", 2: "dgram", 3: "raw", 4: "rdm", 5: "seqpacket", 10: "packet"}
NETLINK = ["route", "unused", "usersock", "firewall", "sock_diag", "nflog", "xfrm", "selinux", "iscsi", "audit",
           "fib_lookup", "connector", "netfilter", "ip6_fw", "dnrtmsg", "kobject_uevent", "generic"]
INTERNET = ("tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6", "icmp", "icmp6")


def endpoint(text):
    """An address as /proc/net prints it: words in the machine's byte order."""
    words, _, port = text.partition(":")
    packed = b"".join(struct.pack("<I", int(words[i:i + 8], 16)) for i in range(0, len(words), 8))
    return ipaddress.ip_address(packed), int(port, 16)


def internet_sockets(protocol, text):
    for line in text.splitlines()[1:]:
        part = line.split()
        (local, local_port), (remote, remote_port) = endpoint(part[1]), endpoint(part[2])
        state, (sent, received) = int(part[3], 16), (int(word, 16) for word in part[4].split(":"))
        number = 0
        if protocol.startswith("tcp"):
            state = TCP_STATES[state]
        else:
            state = "ESTABLISHED" if state == 1 else "UNCONNECTED"
        if protocol.startswith("raw"):
            local_port, number = 0, local_port
        inode = int(part[9])
        # A socket that nobody holds any more belongs to nobody in older kernels.
        uid = int(part[7]) if inode else None
        yield (local, local_port, remote, remote_port, state, number, sent, received, uid, inode)


def seen_internet(item):
    address = {side: ipaddress.ip_address(item[f"{side}_address"]) for side in ("local", "remote")}
    return (address["local"], item["local_port"], address["remote"], item["remote_port"], item["state"],
            item["netlink_port"], item["send_queue"], item["receive_queue"], item["uid"] if item["inode"] else None,
            item["inode"])


class NetworkViews(harness.GuestTest):
    OPTIONS = {"backend": "memfd", "nic": "virtio", "modules": ("veth", "dummy", "bridge", "tun")}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        start = cls.guest.start
        cls.jobs = {line: start(f"workload {line}") for line in
                    ("tcp 4", "tcp 6", "udp 4", "udp 6", "raw 4", "raw 6", "packet lo promisc", "unix", "netlink",
                     "remote_shell", "fds", "container", "setuid 1234")}
        cls.container = cls.jobs["container"].ready["child"]
        listener = cls.jobs["tcp 4"].ready["port"]
        # A connection that nobody accepted, with bytes in it; TIME_WAIT; a wildcard and a v6 socket that takes v4
        # connections. (The workload leaves a datagram unread.)
        cls.guest.check(f"""
            (echo unread; sleep 10000) | nc 127.0.0.1 {listener} >/dev/null 2>&1 &
            nc -l -p 4999 >/dev/null 2>&1 </dev/null & sleep 10000 | nc -ll -s :: -p 4998 >/dev/null 2>&1 &
            workload connect 3 >/dev/null
            ip link add v0 type veth peer name v1; ip link add d0 type dummy; ip link add br0 type bridge
            for i in v0 v1 d0 br0; do ip link set $i up; done; ip link set v1 master br0
            ip addr add 10.9.8.7/24 dev d0; ip addr add fd00:9::7/64 dev d0; ip addr add 10.9.9.1/29 dev br0
            ip link set d0 promisc on
            sleep 3; ping -c 3 -W 1 10.9.8.99 >/dev/null; ping -c 2 10.0.2.2 >/dev/null; true""")

    def inside(self, name, pid):
        """/proc/PID/net/NAME, '' where the kernel has none."""
        return self.guest.run(f"cat /proc/{pid}/net/{name} 2>/dev/null").output

    def spaces(self):
        """Namespaces: a process in each, and its number."""
        for pid in (1, self.container):
            yield pid, int(re.search(r"\d+", self.guest.check(f"readlink /proc/{pid}/ns/net"))[0])

    def listed(self, items, protocol, space):
        """What Lararium lists that /proc/net lists too: no unbound sockets."""
        return [item for item in items
                if item["protocol"] == protocol and item["net_namespace"] == space and item["state"] != "CLOSED"]

    def test_internet_sockets_agree(self):
        document = self.json("sockets")
        self.assertEqual(document["status"]["warnings"], [])
        total = 0
        for pid, space in self.spaces():
            for protocol in INTERNET:
                inside = collections.Counter(internet_sockets(protocol, self.inside(protocol, pid)))
                seen = collections.Counter(map(seen_internet, self.listed(document["items"], protocol, space)))
                with self.subTest(protocol=protocol, space=space):
                    self.assertEqual(seen, inside)
                total += len(inside)
        self.assertGreater(total, 14)
        states = {item["state"] for item in document["items"] if item["protocol"] == "tcp"}
        self.assertLessEqual({"LISTEN", "ESTABLISHED"}, states)

    def test_what_is_queued_is_counted(self):
        items = self.items("sockets")
        udp = next(item for item in items if item["inode"] == int(self.jobs["udp 4"].ready["inode"]))
        self.assertGreater(udp["receive_queue"], 0)
        listening = next(item for item in items if item["inode"] == int(self.jobs["tcp 4"].ready["listen_inode"]))
        self.assertEqual(listening["receive_queue"], 1)
        self.assertTrue(any(item["protocol"] == "tcp" and item["inode"] == 0 and item["receive_queue"] == 7
                            for item in items), "the bytes of the connection that was not accepted")

    def test_unix_sockets_agree(self):
        items = self.items("sockets")
        for pid, space in self.spaces():
            inside = collections.Counter()
            for line in self.inside("unix", pid).splitlines()[1:]:
                part = line.split(maxsplit=7)
                listening = int(part[3], 16) & 0x10000
                state = "LISTEN" if listening else "ESTABLISHED" if part[5] in ("02", "03") else "UNCONNECTED"
                inside[TYPES[int(part[4])], state, int(part[6]), part[7] if len(part) > 7 else ""] += 1
            seen = collections.Counter((item["type"], item["state"], item["inode"], item["local_address"] or "")
                                       for item in self.listed(items, "unix", space))
            with self.subTest(space=space):
                self.assertEqual(seen, inside)
        ready = self.jobs["unix"].ready
        by_inode = {item["inode"]: item for item in items}
        first, second = map(int, ready["pair_inodes"].split(","))
        self.assertEqual(by_inode[first]["peer_inode"], second)
        self.assertEqual(by_inode[int(ready["client_inode"])]["remote_address"], ready["stream"])

    def test_packet_and_netlink_sockets_agree(self):
        items = self.items("sockets")
        for pid, space in self.spaces():
            names = {}
            if pid == 1:
                for line in self.guest.check("cd /sys/class/net; grep . */ifindex").splitlines():
                    names[line.split(":")[1]] = line.split("/")[0]
            inside = collections.Counter()
            for line in self.inside("packet", pid).splitlines()[1:]:
                part = line.split()
                inside[TYPES[int(part[2])], int(part[3], 16), names.get(part[4]), int(part[6]), int(part[7]),
                       int(part[8])] += 1
            seen = collections.Counter((item["type"], item["netlink_port"], item["interface"], item["receive_queue"],
                                        item["uid"], item["inode"]) for item in self.listed(items, "packet", space))
            with self.subTest(protocol="packet", space=space):
                self.assertEqual(seen, inside)
            inside = collections.Counter()
            for line in self.inside("netlink", pid).splitlines()[1:]:
                part = line.split()
                inside[NETLINK[int(part[1])], int(part[2]), int(part[4]), int(part[5]), int(part[9])] += 1
            seen = collections.Counter((item["local_address"], item["netlink_port"], item["receive_queue"],
                                        item["send_queue"], item["inode"])
                                       for item in self.listed(items, "netlink", space))
            with self.subTest(protocol="netlink", space=space):
                self.assertEqual(seen, inside)

    def test_owners_agree(self):
        text = self.guest.check("for f in /proc/[0-9]*/fd/*; do echo $f $(readlink $f); done 2>/dev/null; true")
        inside = set()
        for match in re.finditer(r"/proc/(\d+)/fd/(\d+) socket:\[(\d+)\]", text):
            inside.add(tuple(map(int, match.groups())))
        seen = {(owner["pid"], owner["fd"], item["inode"]) for item in self.items("sockets")
                for owner in item["owners"]}
        self.assertEqual(seen, inside)
        self.assertGreater(len(inside), 20)

    def test_interfaces_agree(self):
        items = [item for item in self.items("interfaces")
                 if item["net_namespace"] == next(space for pid, space in self.spaces() if pid == 1)]
        by_name = {item["name"]: item for item in items}
        text = self.guest.check("cd /sys/class/net; for i in *; do echo $i $(cat $i/ifindex $i/address $i/flags $i/mtu "
                                "$i/operstate $i/type) $(basename $(readlink $i/master) 2>/dev/null); done")
        self.assertEqual({line.split()[0] for line in text.splitlines()}, set(by_name))
        for line in text.splitlines():
            name, index, address, flags, mtu, operstate, kind, *master = line.split()
            item = by_name[name]
            with self.subTest(interface=name):
                self.assertEqual(item["index"], int(index))
                self.assertEqual(item["mac"], address)
                computed = 0x40 | 0x10000 | 0x20000  # IFF_RUNNING, IFF_LOWER_UP, IFF_DORMANT
                self.assertEqual(item["flags"] & ~computed, int(flags, 16) & ~computed)
                self.assertEqual(item["up"], bool(int(flags, 16) & 1))
                self.assertEqual(item["running"], bool(int(flags, 16) & 1) and operstate in ("up", "unknown"))
                self.assertEqual(item["mtu"], int(mtu))
                self.assertEqual(item["master"], master[0] if master else None)
                self.assertEqual(item["promiscuous"], bool(int(flags, 16) & 0x100))
                if kind == "772":
                    self.assertEqual(item["kind"], "loopback")
        self.assertTrue(by_name["lo"]["promiscuous"], "a packet socket asked for it")
        self.assertTrue(by_name["d0"]["promiscuous"])
        self.assertEqual([by_name[name]["kind"] for name in ("v0", "d0", "br0")], ["veth", "dummy", "bridge"])

    def test_addresses_agree(self):
        inside = collections.defaultdict(set)
        name = None
        for line in self.guest.check("ip addr").splitlines():
            if match := re.match(r"\d+: ([^:@]+)", line):
                name = match[1]
            elif match := re.match(r"\s+inet6? ([0-9a-f.:]+)/(\d+)", line):
                inside[name].add((match[1], int(match[2])))
        space = next(space for pid, space in self.spaces() if pid == 1)
        seen = {item["name"]: {(a["address"], a["prefix_length"]) for a in item["addresses"]}
                for item in self.items("interfaces") if item["net_namespace"] == space and item["addresses"]}
        self.assertEqual(seen, dict(inside))

    def test_counters_agree(self):
        text = self.guest.check("cat /proc/net/dev")
        document = self.json("interfaces")
        space = next(space for pid, space in self.spaces() if pid == 1)
        unknown = {match[1] for warning in document["status"]["warnings"]
                   if (match := re.match(r"the counters of (\S+) are not known", warning))}
        self.assertLessEqual(unknown, {"eth0", "br0"})  # no types of the driver of one, nor of 5.10's bridges
        by_name = {item["name"]: item for item in document["items"] if item["net_namespace"] == space}
        for line in text.splitlines()[2:]:
            name, _, rest = line.strip().partition(":")
            if name in unknown:
                continue
            numbers = list(map(int, rest.split()))
            with self.subTest(interface=name):
                item = by_name[name]
                self.assertEqual([item["received_bytes"], item["received_packets"], item["sent_bytes"],
                                  item["sent_packets"]], [numbers[0], numbers[1], numbers[8], numbers[9]])


if __name__ == "__main__":
    harness.main()
