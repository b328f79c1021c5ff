"""Kernel modules of our own for the guests' kernels, built against Debian's headers.

The headers are unpacked in the cache, not installed. Kernels come from several suites, so two things are adapted: the
tools that come with the headers run with their own suite's C library, and the configuration loses the options that the
machine's compiler does not know (how code is aligned, for example; nothing that changes the layout of data).
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

from . import apt, kernels, paths
from .errors import LabError, Skip

RECIPE = 2  # raise it when the headers are unpacked in another way
SOURCES = paths.LAB / "attacks" / "kernel"
HEADERS = (paths.LAB.parent / "src" / "gate" / "trampoline_layout.h",)  # what attacks know of Lararium
COMPILER = "gcc"
# What later compilers can and this one cannot: the kernel was built with these, a module can do without.
UNKNOWN_OPTIONS = ("CC_HAS_MIN_FUNCTION_ALIGNMENT", "CC_HAS_TYPEOF_UNQUAL", "CC_HAS_COUNTED_BY", "CC_HAS_COUNTED_BY_PTR",
                   "CC_HAS_MULTIDIMENSIONAL_NONSTRING", "CC_HAS_BROKEN_COUNTED_BY_REF", "CC_HAS_ASSUME")
# The parts that run while a module is built. Some are fronts that look for the real one by their own path.
TOOLS = {"scripts/basic/fixdep": (), "scripts/mod/modpost": ("scripts/mod/modpost.real-lsb-64",),
         "tools/objtool/objtool": ("tools/objtool/objtool.real-x86",), "scripts/genksyms/genksyms": ()}


def build(kernel: kernels.Kernel | str, name: str = "lararium_attack", source: pathlib.Path = SOURCES) -> pathlib.Path:
    """The module NAME, made of all files in SOURCE, for KERNEL; from the cache if nothing changed."""
    if isinstance(kernel, str):
        kernel = kernels.fetch(kernel)
    if not shutil.which(COMPILER) or not shutil.which("make"):
        raise Skip(f"{COMPILER} and make are needed to build kernel modules")
    sources = [*sorted(path for path in source.iterdir() if path.suffix in (".c", ".h", ".S")), *HEADERS]
    digest = hashlib.sha256(f"{RECIPE} {kernel.release} {kernel.version} {UNKNOWN_OPTIONS}".encode())
    for path in sources:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    folder = paths.cache_dir() / "modules" / kernel.name
    file = folder / f"{name}-{digest.hexdigest()[:16]}.ko"
    with paths.locked(f"module-{kernel.name}"):
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _compile(headers(kernel), sources, name, file)
    return file


def headers(kernel: kernels.Kernel) -> pathlib.Path:
    """The folder to build modules in, unpacked if it is not there."""
    folder = paths.cache_dir() / "headers" / kernel.name
    wanted = {"release": kernel.release, "version": kernel.version, "recipe": RECIPE}
    with paths.locked(f"headers-{kernel.name}"):
        try:
            known = json.loads((folder / "headers.json").read_text())
        except (OSError, ValueError):
            known = None
        if known != wanted:
            _unpack(kernel, folder, wanted)
    return folder / "usr/src" / f"linux-headers-{kernel.release}"


def _unpack(kernel: kernels.Kernel, folder: pathlib.Path, wanted: dict):
    root = apt.Root(kernel.suite, arch=kernel.arch)
    package = f"linux-headers-{kernel.release}"
    if root.field(package, "Version") != kernel.version:
        raise Skip(f"{package} {kernel.version} is no longer in {kernel.suite}: lab/lab fetch --refresh {kernel.name}")
    packages = _needs(root, package, r"linux-(headers|kbuild)-\d")
    (kbuild,) = [name for name in packages if name.startswith("linux-kbuild-")]
    libraries = _needs(root, kbuild, r"libc6$|libelf1|zlib1g$|libzstd1$") - {kbuild}
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{kernel.name}-"))
    try:
        for names, target in ((packages, fresh), (libraries, fresh / "libraries")):
            for file in root.download(*sorted(names)):
                apt.extract(file, target)
                file.unlink()
        tree = fresh / "usr/src" / package
        makefile = tree / "Makefile"
        # The path of an installed system becomes one that is right wherever the cache is.
        content = re.sub(r"^KBUILD_OUTPUT=/usr/src/.*", "KBUILD_OUTPUT := $(abspath $(dir $(lastword $(MAKEFILE_LIST))))",
                         makefile.read_text(), flags=re.M)
        makefile.write_text(re.sub(r"^include /usr/src/", "include $(dir $(lastword $(MAKEFILE_LIST)))../", content,
                                   flags=re.M))
        _forget_options(tree)
        (tree / "vmlinux").unlink(missing_ok=True)  # for modules' BTF, which would need pahole too
        _wrap_tools(fresh / "usr/lib" / kbuild, fresh / "libraries")
        (fresh / "headers.json").write_text(json.dumps(wanted) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        os.chmod(fresh, 0o755)
        os.replace(fresh, folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _needs(root: apt.Root, package: str, pattern: str) -> set[str]:
    """PACKAGE and all packages that match PATTERN which it depends on, however indirectly."""
    found, waiting = {package}, [package]
    while waiting:
        for name in re.findall(r"(?:^|, )([a-z0-9][a-z0-9+.-]*)", root.field(waiting.pop(), "Depends")):
            if re.match(pattern, name) and name not in found:
                found.add(name)
                waiting.append(name)
    return found


def _forget_options(tree: pathlib.Path):
    for name, line in (("include/config/auto.conf", r"^CONFIG_{}=.*\n"),
                       ("include/generated/autoconf.h", r"^#define CONFIG_{} .*\n")):
        path = tree / name
        content = path.read_text()
        for option in UNKNOWN_OPTIONS:
            content = re.sub(line.format(option), "", content, flags=re.M)
        path.write_text(content)


def _wrap_tools(kbuild: pathlib.Path, libraries: pathlib.Path):
    """Makes each tool a script that runs it with the loader and the libraries of its own suite."""
    loaders = sorted(libraries.rglob("ld-linux-x86-64.so.2"))
    if not loaders:
        raise LabError(f"no loader among the libraries of {kbuild.name}")
    real_loader = loaders[0].parent / os.readlink(loaders[0]) if loaders[0].is_symlink() else loaders[0]
    if not real_loader.is_file():  # an absolute link, or one across the merged /usr
        (real_loader, *_) = [path for path in libraries.rglob(real_loader.name) if path.is_file()]
    for name, others in TOOLS.items():
        tool = kbuild / name
        if not tool.is_file():
            continue
        real = next((kbuild / other for other in others if (kbuild / other).is_file()), tool)
        moved = tool.with_name(f"{tool.name}.program")
        shutil.copy(real, moved)
        tool.unlink()
        base = pathlib.PurePath(*[".."] * len(tool.parent.relative_to(libraries.parent).parts))
        folders = sorted({path.parent for path in libraries.rglob("*.so*")})
        inside = [f"$here/{base}/{folder.relative_to(libraries.parent)}" for folder in folders]
        tool.write_text("#!/bin/sh\n"
                        'here=$(cd "$(dirname "$0")" && pwd -P)\n'
                        f'exec "$here/{base}/{real_loader.relative_to(libraries.parent)}" '
                        f'--library-path "{":".join(inside)}" "$here/{moved.name}" "$@"\n')
        tool.chmod(0o755)


def _compile(tree: pathlib.Path, sources: list[pathlib.Path], name: str, file: pathlib.Path):
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        work = pathlib.Path(folder)
        for source in sources:
            shutil.copy(source, work)
        objects = " ".join(f"{source.stem}.o" for source in sources if source.suffix in (".c", ".S"))
        (work / "Makefile").write_text(f"obj-m := {name}.o\n{name}-y := {objects}\n"
                                       "ccflags-y := -std=gnu11 -Wno-declaration-after-statement\n")
        done = subprocess.run(["make", "-C", tree, f"M={work}", f"CC={COMPILER}", f"HOSTCC={COMPILER}",
                               "CROSS_COMPILE=", "DEBIAN_KERNEL_NO_CC_VERSION_CHECK=y", "modules"],
                              capture_output=True, text=True, env={**os.environ, "LC_ALL": "C.UTF-8"})
        if done.returncode:
            raise LabError(f"cannot build {name}:\n{done.stdout[-4000:]}{done.stderr[-8000:]}")
        stripped = subprocess.run(["strip", "--strip-debug", work / f"{name}.ko"], capture_output=True, text=True)
        if stripped.returncode:
            raise LabError(f"cannot strip {name}: {stripped.stderr}")
        os.chmod(work / f"{name}.ko", 0o644)
        os.replace(work / f"{name}.ko", file)
