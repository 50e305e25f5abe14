"""native.c as a shared library: compiled once with the machine's C compiler, and found again in the user's cache.

What is loaded runs as the user. So a library is taken from the cache only if nobody else can have written it, and if
its content has the hash in its name: a torn or changed one is compiled again. Where others may write to the cache,
each process compiles into a folder of its own.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from methods.engine.private import danger_in
from methods.paths import cache_dir

SOURCES = tuple(Path(__file__).with_name(name) for name in ("native.c", "linear.h", "int4.h", "native.h"))
COMPILERS = ("gcc", "cc", "clang")
# No contraction: the places that fuse a multiply and an add say so, and are the same for every number of rows.
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-fopenmp")
HASH = 16  # hexadecimal digits of the key of a build; of its content all


def build(flags: Sequence[str]) -> Path:
    """The shared library KEY-CONTENT.so, compiled unless the same source, compiler, flags and processor did so before.

    Processes may race: each compiles its own file and moves it into place whole."""
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        raise OSError(f"no C compiler found (looked for {', '.join(COMPILERS)})")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    sources = [path.read_text() for path in SOURCES]
    key = hashlib.sha256("\0".join([*sources, version, *flags, _processor()]).encode()).hexdigest()[:HASH]
    folder = _private_folder()
    for library in sorted(folder.glob(f"{key}-*.so")):
        if _is_intact(library, library.stem.removeprefix(f"{key}-")):
            return library
        library.unlink(missing_ok=True)  # torn, changed or planted; the folder is ours
    return _compile([compiler, *flags], folder, key)


def _private_folder() -> Path:
    """The cache's folder for libraries, or a temporary one where others may write to that."""
    folder = cache_dir() / "native"
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    danger = danger_in(folder)
    if danger is None:
        return folder
    warnings.warn(f"the native CPU operators are compiled anew for each process: {danger}", stacklevel=2)
    return Path(_temporary_folder().name)


@cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """This process's own, until it ends."""
    return tempfile.TemporaryDirectory(prefix="pearl-bench-")


def _compile(command: Sequence[str], folder: Path, key: str) -> Path:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        compiled, linked = f"{place}/native.o", Path(place) / "native.so"
        for step in (
            [*command, "-c", str(SOURCES[0]), "-o", compiled],
            [command[0], "-shared", compiled, "-o", str(linked), "-lm"],
        ):
            subprocess.run(step, capture_output=True, text=True, check=True)
        linked.chmod(0o700)
        with linked.open("rb") as file:
            os.fsync(file.fileno())  # else a crash could leave the name without the content
        library = folder / f"{key}-{_content(linked)}.so"
        os.replace(linked, library)
    return library


def _is_intact(library: Path, content: str) -> bool:
    """Whether it is ours alone, and as it was built."""
    try:
        return danger_in(library) is None and _content(library) == content
    except FileNotFoundError:  # another process has found it broken, and been faster
        return False


def _content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(line for line in lines if line.split(":")[0].strip() in ("model name", "flags", "Features"))
