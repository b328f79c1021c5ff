#!/usr/bin/env python3
"""The lie detector: a guest that leaves something out of its own tools' answers, or adds something, is found out; one
that does not lie gives no finding, however busy it is; and whatever comes in place of an answer costs little."""

import contextlib
import json
import os
import pathlib
import re
import shlex
import tempfile
import threading
import time

import harness

from lab import guest_agent
from lab.attack import Attacker, Unsupported
from test_clean import LOADS

ROUNDS = int(os.environ.get("LARARIUM_ROUNDS", "5"))


class Bridge:
    """Runs what Lararium asks in the guest, by its console. TAMPER gets each answer's text and gives what comes of it."""

    def __init__(self, guest, tamper=lambda text: text):
        self.guest, self.tamper = guest, tamper
        self.asked = 0

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="lararium-lies-")
        self.path = pathlib.Path(self.folder.name)
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()
        place = shlex.quote(str(self.path))
        self.command = (f"cat >{place}/new && mv {place}/new {place}/script && "
                        f"while [ ! -e {place}/answer ]; do sleep 0.05; done; cat {place}/answer; rm {place}/answer")
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()
        self.folder.cleanup()

    def answer(self, script):
        self.guest.put(script.encode(), "/tmp/lies.sh")
        return self.guest.run("sh /tmp/lies.sh", timeout=120).output

    def _serve(self):
        script = self.path / "script"
        while not self.ended.wait(0.02):
            if not script.exists():
                continue
            text = script.read_text()
            script.unlink()
            self.asked += 1
            (self.path / "done").write_text(self.tamper(self.answer(text)), errors="surrogateescape")
            (self.path / "done").rename(self.path / "answer")


def without(section, pattern):
    """Leaves lines of a section out."""
    def tamper(text):
        result, current = [], ""
        for line in text.splitlines():
            if line.startswith("@@lararium "):
                current = line.split()[1]
            if current != section or not re.search(pattern, line):
                result.append(line)
        return "\n".join(result) + "\n"
    return tamper


def with_line(section, line_of):
    """Adds a line, that LINE_OF gives, to a section's end."""
    def tamper(text):
        head, _, tail = text.partition(f"@@lararium {section}\n")
        body, _, rest = tail.partition("@@lararium ")
        return f"{head}@@lararium {section}\n{body}{line_of()}\n@@lararium {rest}"
    return tamper


class Lies(harness.GuestTest):
    OPTIONS = {"backend": "memfd", "modules": ["dummy"]}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.attacker = Attacker(cls.guest)
        cls.script = harness.run_lararium("check", "--lies-script").stdout

    def ask(self, tamper=lambda text: text):
        """The findings, and how often the guest was asked."""
        with Bridge(self.guest, tamper) as bridge:
            completed = harness.run_lararium("check", self.guest.pid, "--lies-command", bridge.command, "--json",
                                             cache=self.cache.name, check=False, timeout=300)
            self.assertIn(completed.returncode, (0, 20), completed.stderr)
            return json.loads(completed.stdout)["items"], bridge.asked

    def assert_found(self, tamper, pattern, severity=None):
        findings, _ = self.ask(tamper)
        matching = [finding for finding in findings if re.search(pattern, finding["sentence"])]
        self.assertEqual(len(matching), 1, [finding["sentence"] for finding in findings])
        self.assertEqual(len(findings), 1, [finding["sentence"] for finding in findings])
        if severity:
            self.assertEqual(matching[0]["severity"], severity)
        return matching[0]

    @contextlib.contextmanager
    def job(self, command):
        job = self.guest.start(command)
        try:
            yield job
        finally:
            job.stop()

    @contextlib.contextmanager
    def technique(self, name, argument=""):
        try:
            self.attacker.on(name, argument)
        except Unsupported as error:
            self.skipTest(str(error))
        try:
            yield
        finally:
            self.attacker.off(name)

    # An honest guest

    def test_an_honest_guest_tells_no_lie(self):
        for _ in range(ROUNDS):
            findings, asked = self.ask()
            self.assertEqual(findings, [])
            self.assertLessEqual(asked, 2)  # what came and went meanwhile asks again

    def test_nor_does_a_busy_one(self):
        for name in ("processes", "programs", "network", "modules", "containers"):
            command, afterwards = LOADS[name]
            with self.subTest(load=name), self.job(command) as job:
                for _ in range(ROUNDS):
                    self.assertEqual(self.ask()[0], [])
                self.guest.run(f"kill -TERM -{job.pid}; usleep 200000; kill -KILL -{job.pid}; {afterwards}")

    # One that hides

    def test_hidden_processes(self):
        for name in ("process_not_in_pids", "process_hidden"):
            with self.subTest(technique=name), self.job("workload setuid 1000") as job, \
                    self.technique(name, str(job.pid)):
                finding = self.assert_found(lambda text: text, rf"process {job.pid} \(workload\) runs, and the guest's "
                                            "/proc and ps leave it out", "critical")
                self.assertEqual(finding["process"]["pid"], job.pid)
        self.assertEqual(self.ask()[0], [])

    def test_a_hidden_module(self):
        with self.technique("module_unlisted"):
            self.assert_found(lambda text: text, "the module lararium_attack is loaded, and the guest's /proc/modules and "
                              "lsmod leave it out", "critical")
        self.assertEqual(self.ask()[0], [])

    def test_a_process_that_only_ps_leaves_out(self):
        with self.job("workload sleep") as job:
            self.assert_found(without("ps", rf"^ *{job.pid} "), rf"process {job.pid} .* the guest's ps leaves it out")

    def test_a_process_with_another_name_or_user(self):
        with self.job("workload setuid 1000") as job:
            self.assert_found(lambda text: re.sub(rf"(?m)^{job.pid} (\d+) (\d+) workload$", rf"{job.pid} \1 \2 sshd", text),
                              rf"the name of process {job.pid} .* is workload, and the guest says sshd")
            self.assert_found(lambda text: re.sub(rf"(?m)^{job.pid} 1000 ", f"{job.pid} 0 ", text),
                              rf"the user of process {job.pid} .* is 1000, and the guest says 0")

    def test_hidden_sockets(self):
        with self.job("workload tcp 4 4321") as job:
            inode = job.ready["listen_inode"]
            finding = self.assert_found(without("net.tcp", rf" {inode} "), r"tcp socket .*:4321 that listens.*/proc/net/tcp")
            self.assertEqual(finding["process"]["pid"], job.pid)
            self.assert_found(without("net.tcp", rf" {job.ready['client_inode']} "), r"tcp socket")
            self.assert_found(lambda text: text.replace("0100007F:10E1 00000000:0000 0A", "0100007F:0016 00000000:0000 0A"),
                              r"4321 that listens, and the guest says its ports are 22 and 0")
        with self.job("workload packet lo") as job:
            self.assert_found(without("net.packet", rf" {job.ready['inode']} *$"), "packet socket")

    # One that adds

    def test_what_the_guest_adds(self):
        self.assert_found(with_line("proc", lambda: "31313 0 1234 auditd"), r"lists process 31313 \(auditd\), which there is not")
        self.assert_found(lambda text: with_line("sysfs", lambda: "99999 /sys/module/lime")(
            with_line("modules", lambda: "lime 16384 0 - Live 0x0000000000000000")(text)), "lists a module lime")

    def test_what_is_told_once_is_no_lie(self):
        numbers = iter(range(31000, 32000))
        findings, asked = self.ask(with_line("proc", lambda: f"{next(numbers)} 0 1234 short"))
        self.assertEqual(findings, [])
        self.assertEqual(asked, 2)

    # Answers in files

    def check_file(self, path, **options):
        return harness.run_lararium("check", self.guest.pid, "--lies", path, "--json", cache=self.cache.name, check=False,
                                    timeout=300, **options)

    def test_an_old_answer_tells_of_older_processes_only(self):
        with tempfile.TemporaryDirectory() as folder, self.job("workload sleep") as hidden:
            time.sleep(3)  # the answer tells its time, a second more or less
            path = pathlib.Path(folder, "answer")
            text = Bridge(self.guest).answer(self.script)
            path.write_text(without("proc", rf"^{hidden.pid} ")(without("modules", "^dummy")(text)))
            with self.job("workload tcp 4 4322"):
                completed = self.check_file(path)
        self.assertEqual(completed.returncode, 20, completed.stderr)
        findings = json.loads(completed.stdout)["items"]
        self.assertEqual([finding["subject"].split()[1] for finding in findings], [str(hidden.pid)])
        self.assertIn("older", completed.stderr)

    def test_an_answer_that_comes_later_tells_all(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "answer")
            completed = []
            thread = threading.Thread(target=lambda: completed.append(self.check_file(path)))
            thread.start()
            time.sleep(6)  # Lararium looks, and waits for the guest's clock
            text = without("modules", "^dummy")(Bridge(self.guest).answer(self.script))
            path.write_text(text[:len(text) // 2])
            time.sleep(0.5)
            path.write_text(text)
            thread.join()
        findings = json.loads(completed[0].stdout)["items"]
        self.assertEqual(len(findings), 1, findings)
        self.assertIn("the module dummy is loaded, and the guest's /proc/modules leaves it out", findings[0]["sentence"])

    # No answers

    def test_what_is_no_answer_costs_little(self):
        cases = {
            "yes '@@lararium begin'": "more than",
            "yes": "more than",
            "head -c 20000000 /dev/urandom": "no whole answer",
            "true": "no whole answer",
            "exit 3": "ended with 3",
            "printf '@@lararium begin\\n0\\n1.0 1.0\\npid:[1]\\nnet:[1]\\n@@lararium proc\\n@@lararium modules\\n"
            "@@lararium end\\n2.0 1.0\\n@@lararium done\\n'": "container",
            "sed 's/^id -u/echo 1000/' | sh -s": "root",
        }
        for command, message in cases.items():
            with self.subTest(command=command):
                began = time.monotonic()
                completed = harness.run_lararium("check", self.guest.pid, "--lies-command", f"ulimit -t 20; {command}",
                                                 cache=self.cache.name, check=False, timeout=60)
                self.assertNotIn(completed.returncode, (0, 20), completed.stdout)
                self.assertIn(message, completed.stderr)
                self.assertLess(time.monotonic() - began, 30)


class ThroughTheGuestAgent(harness.GuestTest):
    """--lies-agent: QEMU's guest agent, as Debian has it, on a serial port of the guest."""

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="lararium-agent-")
        cls.addClassCleanup(folder.cleanup)
        cls.socket = pathlib.Path(folder.name, "agent.sock")
        cls.OPTIONS = {"backend": "memfd", "extra": guest_agent.options(cls.socket, harness.KERNEL)}
        super().setUpClass()
        cls.attacker = Attacker(cls.guest)
        cls.agent = guest_agent.start(cls.guest)

    def ask(self, *options, **how):
        return harness.run_lararium("check", self.guest.pid, "--lies-agent", self.socket, "--json", *options,
                                    cache=self.cache.name, check=False, timeout=300, **how)

    def findings(self):
        completed = self.ask()
        self.assertIn(completed.returncode, (0, 20), completed.stderr)
        return [finding["sentence"] for finding in json.loads(completed.stdout)["items"]]

    def test_an_honest_guest(self):
        self.assertEqual(self.findings(), [])

    def test_a_hidden_process(self):
        job = self.guest.start("workload setuid 1000")
        self.addCleanup(job.stop)
        self.attacker.on("process_hidden", str(job.pid))
        try:
            (sentence,) = self.findings()
            self.assertRegex(sentence, f"{job.pid}.*workload")
        finally:
            self.attacker.off("process_hidden")
        self.assertEqual(self.findings(), [])

    def test_no_agent(self):
        self.agent.stop()
        self.guest.run("killall qemu-ga")
        try:
            completed = self.ask()
            self.assertNotIn(completed.returncode, (0, 20))
            self.assertIn("no guest agent answers", completed.stderr)
        finally:
            type(self).agent = guest_agent.start(self.guest)
        self.assertEqual(self.findings(), [])


if __name__ == "__main__":
    harness.main()
