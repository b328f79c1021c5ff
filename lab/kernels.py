"""The guest kernels: Debian's own, by short names."""

import dataclasses
import json
import lzma
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

from . import apt, paths
from .errors import LabError, Skip

RECIPE = 3  # raise it when what is extracted changes; cached kernels are then extracted again
MODULES = ("virtio_net", "virtio_blk", "virtio_pci", "virtio_mmio", "qemu_fw_cfg", "e1000", "e1000e", "dummy", "af_packet", "loop",
           "ext4", "overlay", "veth", "bridge", "tun", "nf_tables", "br_netfilter", "kheaders", "binfmt_misc",
           "unix_diag", "tcp_diag", "udp_diag", "raw_diag", "packet_diag", "netlink_diag", "inet_diag", "tls")


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a kernel comes from: the first of SUITES whose META package has the version that the name promises."""
    name: str
    suites: tuple[str, ...]
    meta: str
    arch: str = "amd64"

    @property
    def version(self) -> str:
        return self.name.split("-")[0]


SOURCES = {source.name: source for source in (
    Source("5.10-cloud", ("bullseye",), "linux-image-cloud-amd64"),
    Source("5.10", ("bullseye",), "linux-image-amd64"),
    Source("6.1-cloud", ("bookworm",), "linux-image-cloud-amd64"),
    Source("6.1", ("bookworm",), "linux-image-amd64"),
    Source("6.1-rt", ("bookworm",), "linux-image-rt-amd64"),
    Source("6.12-cloud", ("trixie", "bookworm-backports"), "linux-image-cloud-amd64"),
    Source("6.12-rt", ("trixie", "bookworm-backports"), "linux-image-rt-amd64"),
    Source("6.12", ("trixie", "bookworm-backports"), "linux-image-amd64"),
    Source("7-cloud", ("sid", "forky", "trixie-backports"), "linux-image-cloud-amd64"),
    Source("7", ("sid", "forky", "trixie-backports"), "linux-image-amd64"),
)}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel in the cache."""
    name: str
    arch: str
    release: str        # as `uname -r` says
    version: str        # of the package
    packages: list[str]
    suite: str
    recipe: int
    folder: pathlib.Path = dataclasses.field(default=None, compare=False)

    @property
    def image(self) -> pathlib.Path:
        return self.folder / "vmlinuz"

    @property
    def config(self) -> pathlib.Path:
        return self.folder / "config"

    @property
    def system_map(self) -> pathlib.Path:
        """Debian ships a stand-in that says so; a guest's /proc/kallsyms has the symbols."""
        return self.folder / "System.map"

    @property
    def modules(self) -> pathlib.Path:
        """The modules (decompressed) and modules.dep, as the guest has them in /lib/modules/RELEASE."""
        return self.folder / "modules"


def source(name: str) -> Source:
    if name not in SOURCES:
        raise LabError(f"no kernel is called {name}; known: {', '.join(SOURCES)}")
    return SOURCES[name]


def cached(name: str) -> Kernel | None:
    """The kernel, if it is in the cache."""
    folder = _folder(source(name))
    try:
        kernel = Kernel(**json.loads((folder / "kernel.json").read_text()), folder=folder)
    except (OSError, ValueError, TypeError):
        return None
    return kernel if kernel.recipe == RECIPE else None


def fetch(name: str, refresh: bool = False) -> Kernel:
    """The kernel from the cache, downloaded first where that is needed (or asked for by REFRESH)."""
    with paths.locked(f"kernel-{name}"):
        return (not refresh and cached(name)) or _download(source(name))


def debug_package(name: str) -> tuple[apt.Root, str, int]:
    """Where the kernel's debug symbols are: the apt root, the package's name and its size in bytes."""
    kernel = fetch(name)
    root = _root(kernel.suite, kernel.arch)
    package = f"linux-image-{kernel.release}-dbg"
    size = root.field(package, "Size")
    if not size:
        raise LabError(f"{package} is no longer in {kernel.suite}: lab/lab fetch --refresh {name}")
    return root, package, int(size)


def _folder(source: Source) -> pathlib.Path:
    return paths.cache_dir() / "kernels" / source.arch / source.name


def _root(suite: str, arch: str) -> apt.Root:
    return apt.Root(suite, arch=arch)


def _download(source: Source) -> Kernel:
    reasons = []
    for suite in source.suites:
        root = _root(suite, source.arch)
        try:
            packages = _packages(root, source)
        except Skip as error:
            reasons.append(f"{suite}: {error}")
            continue
        if packages:
            files = root.download(*packages)
            try:
                return _build(source, suite, packages, files)
            finally:
                for file in files:
                    file.unlink()
        reasons.append(f"{suite}: has no {source.version}")
    raise Skip(f"kernel {source.name} is not in the cache and cannot be downloaded: {'; '.join(reasons)}")


def _packages(root: apt.Root, source: Source) -> dict[str, str]:
    """The packages (name to version) with the kernel's files. Since 7.x the image depends on two that hold them."""
    found, waiting = {}, [source.meta]
    if not root.field(source.meta, "Version").startswith(f"{source.version}."):
        flavour = source.meta.removeprefix("linux-image-")
        named = root.search(rf"^linux-image-{re.escape(source.version)}\.[0-9.]+[^ ]*-{re.escape(flavour)}$")
        named = [name for name in named if ("-cloud-" in name) == ("cloud" in flavour)
                 and ("-rt-" in name) == flavour.startswith("rt")]
        if not named:
            return {}
        named.sort(key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
        waiting = [named[-1]]
        found[named[-1]] = root.field(named[-1], "Version")
    while waiting:
        for name, version in root.depends(waiting.pop()).items():
            if re.match(r"linux-(image|binary|modules)-\d", name) and name not in found:
                found[name] = version
                waiting.append(name)
    return found


def _build(source: Source, suite: str, packages: dict[str, str], files: list[pathlib.Path]) -> Kernel:
    folder = _folder(source)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{source.name}-"))
    try:
        tree = fresh / "tree"
        for file in files:
            apt.extract(file, tree)
        images = [path for path in tree.rglob("vmlinuz*") if path.is_file()]
        modules = [path for path in tree.rglob("modules/*") if path.is_dir() and (path / "kernel").is_dir()]
        if len(images) != 1 or len(modules) != 1:
            raise LabError(f"cannot tell image and modules apart in {', '.join(packages)}: {images} {modules}")
        release = modules[0].name
        shutil.move(images[0], fresh / "vmlinuz")
        for name in ("config", "System.map"):
            for path in [path for path in tree.rglob(f"{name}*") if path.is_file() and path.parent.name != "build"][:1]:
                shutil.move(path, fresh / name)
        _extract_modules(modules[0], fresh / "modules")
        shutil.rmtree(tree)
        (fresh / "kernel.json").write_text(json.dumps({
            "name": source.name, "arch": source.arch, "release": release, "version": next(iter(packages.values())),
            "packages": list(packages), "suite": suite, "recipe": RECIPE}, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        os.chmod(fresh, 0o755)
        os.replace(fresh, folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return cached(source.name)


def _extract_modules(tree: pathlib.Path, target: pathlib.Path):
    """Copies the wanted modules and what they depend on, decompressed, and writes their modules.dep.

    The packages hold no modules.dep (depmod makes it when they are installed), so a module's own list is read.
    """
    files = {re.sub(r"\.ko(\.\w+)?$", "", path.name).replace("-", "_"): path for path in tree.rglob("*.ko*")}
    depends, waiting = {}, [name for name in MODULES if name in files]
    while waiting:
        name = waiting.pop()
        if name in depends:
            continue
        content = _decompress(files[name])
        match = re.search(rb"\0depends=([^\0]*)\0", content)
        depends[name] = [other.replace("-", "_") for other in match[1].decode().split(",")] if match and match[1] else []
        depends[name] = [other for other in depends[name] if other in files]
        waiting += depends[name]
        copy = target / files[name].relative_to(tree).with_name(f"{files[name].name.split('.ko')[0]}.ko")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
        files[name] = copy
    target.mkdir(exist_ok=True)
    lines = []
    for name in sorted(depends):
        needed = []  # modprobe loads from the end of the list, so a module stands before those that it needs

        def visit(module):
            for other in depends[module]:
                if other not in needed:
                    visit(other)
                    needed.insert(0, other)

        visit(name)
        lines.append(f"{files[name].relative_to(target)}:" +
                     "".join(f" {files[other].relative_to(target)}" for other in needed))
    (target / "modules.dep").write_text("".join(f"{line}\n" for line in lines))
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        if (tree / name).is_file():
            shutil.copy(tree / name, target / name)


def _decompress(path: pathlib.Path) -> bytes:
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dcq", path], check=True, capture_output=True).stdout
    return path.read_bytes()
