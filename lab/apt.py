"""Downloads Debian packages with apt's own signature checks, and without touching the machine's apt configuration.

The mirror is whatever the machine's apt sources name. Other suites are taken from the same mirror, through a private
apt root in the cache.
"""

import os
import pathlib
import re
import shutil
import subprocess
import tempfile

from . import paths
from .errors import LabError, Skip

APT_FOLDER = pathlib.Path("/etc/apt")
KEYRING = pathlib.Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SUITES = ("bullseye", "bookworm", "trixie", "forky", "duke", "sid", "oldoldstable", "oldstable", "stable", "testing",
          "unstable")


def sources() -> list[tuple[str, str, list[str]]]:
    """What the machine's apt sources name, as (address, suite, components)."""
    found = []
    lists = [APT_FOLDER / "sources.list", *sorted((APT_FOLDER / "sources.list.d").glob("*.list"))]
    for path in filter(pathlib.Path.is_file, lists):
        for line in path.read_text(errors="replace").splitlines():
            match = re.match(r"\s*deb\s+(?:\[[^]]*\]\s*)?(\S+)\s+(\S+)\s*([^#]*)", line)
            if match:
                found.append((match[1], match[2], match[3].split()))
    for path in sorted((APT_FOLDER / "sources.list.d").glob("*.sources")):
        lines = [line for line in path.read_text(errors="replace").splitlines() if not line.startswith("#")]
        for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
            fields = {key.lower(): value.split() for key, value in
                      re.findall(r"^([A-Za-z-]+):((?:.*)(?:\n[ \t].*)*)", stanza, re.M)}
            if "deb" not in fields.get("types", []) or fields.get("enabled") == ["no"]:
                continue
            found += [(uri, suite, fields.get("components", []))
                      for uri in fields.get("uris", []) for suite in fields.get("suites", [])]
    return found


def mirrors() -> tuple[str, str | None]:
    """The addresses of the Debian mirror and of the security mirror (None if the machine names none)."""
    main = security = None
    for uri, suite, components in sources():
        if "main" not in components:
            continue  # another vendor's repository
        if suite in SUITES:
            main = main or uri.rstrip("/")
        elif suite.removesuffix("-security") in SUITES or suite.removesuffix("/updates") in SUITES:
            security = security or uri.rstrip("/")
    if main is None:
        raise Skip(f"no Debian mirror in {APT_FOLDER}/sources.list or {APT_FOLDER}/sources.list.d")
    return main, security


class Root:
    """A private apt root that knows the given suites only. Nothing is downloaded before it is asked for something."""

    def __init__(self, *suites: str, arch: str = "amd64"):
        self.suites = suites
        self.arch = arch
        self.folder = paths.cache_dir() / "apt" / "+".join((*suites, arch))
        self.updated = False

    def depends(self, package: str) -> dict[str, str]:
        """The exact versions (name to version) that the newest PACKAGE depends on."""
        return dict(re.findall(r"([a-z0-9][a-z0-9+.-]*) \(= ([^)]+)\)", self.field(package, "Depends")))

    def field(self, package: str, name: str) -> str:
        """The field NAME of the newest PACKAGE, or an empty string."""
        shown = self._run("apt-cache", "show", "--no-all-versions", package, check=False)
        match = re.search(rf"^{name}: (.*)$", shown, re.M)
        return match[1] if match else ""

    def search(self, pattern: str) -> list[str]:
        """Names of the packages that match PATTERN."""
        return sorted(line.split(" ", 1)[0] for line in
                      self._run("apt-cache", "search", "--names-only", pattern).splitlines())

    def download(self, *packages: str) -> list[pathlib.Path]:
        """Downloads the newest of each package (without what it depends on)."""
        target = self.folder / "packages"
        target.mkdir(exist_ok=True)
        files = []
        for package in packages:
            with tempfile.TemporaryDirectory(dir=self.folder) as fresh:
                self._run("apt-get", "-q", "download", package, cwd=fresh)
                (file,) = pathlib.Path(fresh).glob("*.deb")
                files.append(target / file.name)
                os.replace(file, files[-1])
        return files

    def download_with_depends(self, package: str, release: str) -> list[pathlib.Path]:
        """Downloads PACKAGE as of suite RELEASE and all that it needs, as if nothing were installed."""
        archives = self.folder / "cache" / "archives"
        shutil.rmtree(archives, ignore_errors=True)
        (archives / "partial").mkdir(parents=True)
        self._run("apt-get", "-q", "-y", "--download-only", "--no-install-recommends", "-t", release, "install",
                  package)
        return sorted(archives.glob("*.deb"))

    def update(self):
        """Fetches the package lists once in this process's life."""
        if self.updated:
            return
        main, security = mirrors()
        lines = [f"deb [arch={self.arch} signed-by={KEYRING}] {main} {suite} main" for suite in self.suites]
        if security:
            lines += [f"deb [arch={self.arch} signed-by={KEYRING}] {security} {suite}-security main"
                      for suite in self.suites if "-" not in suite and suite != "sid"]
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        (self.folder / "sources.list").write_text("\n".join(lines) + "\n")
        self.updated = True
        try:
            self._run("apt-get", "-q", "--error-on=any", "update")
        except LabError as error:
            self.updated = False
            raise Skip(f"cannot update the package lists of {', '.join(self.suites)}: {error}") from error

    def _run(self, *command: str, cwd=None, check=True) -> str:
        self.update()
        options = {
            "Dir::State": self.folder / "state",
            "Dir::State::status": self.folder / "status",
            "Dir::Cache": self.folder / "cache",
            "Dir::Etc::sourcelist": self.folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::Log": self.folder,
            "APT::Architecture": self.arch,
            "Acquire::Languages": "none",
            # Old suites and slow mirrors have lists past their date. A lab wants old kernels, so that is no attack
            # on it; the signatures are checked all the same.
            "Acquire::Check-Valid-Until": "false",
            # The cache may lie where apt's own user cannot go, in somebody's home for example.
            "APT::Sandbox::User": "",
        }
        # The machine's apt.conf is kept, as it may name a proxy; its hooks are not, as they act on the machine.
        config = self.folder / "apt.conf"
        config.write_text("#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n"
                          "#clear DPkg::Pre-Install-Pkgs;\n#clear DPkg::Post-Invoke;\n"
                          + "".join(f'{key} "{value}";\n' for key, value in options.items()))
        with paths.locked(f"apt-{self.folder.name}"):
            done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                  env={**os.environ, "APT_CONFIG": str(config), "LC_ALL": "C.UTF-8",
                                       "DEBIAN_FRONTEND": "noninteractive"})
        if check and done.returncode:
            tail = "; ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
            raise LabError(f"{' '.join(command)}: {tail}")
        return done.stdout


def extract(package: pathlib.Path, folder: pathlib.Path):
    """Unpacks PACKAGE into FOLDER."""
    done = subprocess.run(["dpkg-deb", "-x", package, folder], capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"cannot unpack {package}: {done.stderr.strip()}")
