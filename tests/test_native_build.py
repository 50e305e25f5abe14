"""The native operators are built safely, and dispensable."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from methods.engine.backends import build as compiler
from methods.engine.backends import cpu as native
from methods.engine.backends.build import FLAGS
from methods.engine.private import danger_in
from methods.models import Models
from methods.paths import ROOT

HAS_COMPILER = any(map(shutil.which, compiler.COMPILERS))
LIBRARY = native.library  # as it is

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler")


def python(code: str, cache: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PEARL_BENCH_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_racing_processes_build_one_library_and_pytorchs_openmp_is_the_only_one(tmp_path: Path) -> None:
    code = (
        "from methods.engine.backends.cpu import library; print(library().tile())\n"
        "print(len({line.split()[-1] for line in open('/proc/self/maps') if 'omp' in line.split('/')[-1]}))"
    )
    racers = [python(code, tmp_path) for _ in range(2)]
    for racer in racers:
        out, err = racer.communicate(timeout=120)
        assert racer.returncode == 0, err
        tile, openmps = map(int, out.split())
        assert tile > 0 and openmps == 1
    assert [path.suffix for path in (tmp_path / "native").iterdir()] == [".so"]


QUICK = [flag for flag in FLAGS if flag != "-O3"] + ["-O0"]


@pytest.fixture(scope="module")
def quick_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a library in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PEARL_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        return compiler.build(QUICK).parent


@pytest.fixture
def native_cache(quick_build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of its folder for libraries, in use."""
    monkeypatch.setenv("PEARL_BENCH_CACHE", str(tmp_path))
    return Path(shutil.copytree(quick_build, tmp_path / "native"))


def content_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_library_is_compiled_once_for_its_owner_alone(native_cache: Path) -> None:
    (library,) = native_cache.iterdir()
    assert native_cache.stat().st_mode & 0o777 == library.stat().st_mode & 0o777 == 0o700
    assert library.stem.partition("-")[2] == content_of(library)
    before = library.stat()
    assert compiler.build(QUICK) == library and library.stat() == before


@pytest.mark.parametrize("content", [b"", b"\x7fELF", None], ids=["empty", "torn", "changed"])
def test_a_library_of_other_content_is_compiled_again(native_cache: Path, content: bytes | None) -> None:
    (library,) = native_cache.iterdir()
    whole = library.read_bytes()
    library.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if content is None else content)
    assert native.built(QUICK).tile() > 0
    assert [path.read_bytes() for path in native_cache.iterdir()] == [whole]


def test_a_library_that_cannot_be_loaded_is_compiled_again(native_cache: Path) -> None:
    """One of the right hash: such as of another system's C library, in a home that several machines share."""
    (library,) = native_cache.iterdir()
    library.write_bytes(b"\x7fELF of another system")
    key = library.stem.partition("-")[0]
    library.rename(native_cache / f"{key}-{content_of(library)}.so")
    assert native.built(QUICK).tile() > 0
    assert len(list(native_cache.iterdir())) == 1


@pytest.mark.parametrize("shared", ["folder", "library"])
@pytest.mark.parametrize("how", ["writable", "foreign"])
def test_what_others_may_have_written_is_not_loaded(native_cache: Path, shared: str, how: str) -> None:
    """Planted with the right names and hashes."""
    (library,) = native_cache.iterdir()
    assert danger_in(library, native_cache) is None
    place = native_cache if shared == "folder" else library
    if how == "writable":
        place.chmod(0o722)
    elif os.geteuid() == 0:
        os.chown(place, 65534, 65534)
    else:
        pytest.skip("only root can give files away")
    if shared == "folder":
        with pytest.warns(UserWarning, match="anew for each process: .*(by others|another user)"):
            found = compiler.build(QUICK)
        assert found.parent != native_cache
    else:
        found = compiler.build(QUICK)
    assert danger_in(found, found.parent) is None
    assert content_of(found) == found.stem.partition("-")[2]


@pytest.mark.parametrize("cause", ["switched off", "no compiler", "broken compiler", "read-only cache"])
def test_without_the_operators_pytorchs_take_over(
    tmp_path: Path, tiny: Path, cause: str, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    environment = {"PEARL_BENCH_CACHE": str(tmp_path)}
    if cause == "switched off":
        environment["PEARL_BENCH_NATIVE"] = "0"
    elif cause == "read-only cache":
        environment["PEARL_BENCH_CACHE"] = "/proc"
    else:
        (tmp_path / "bin").mkdir()
        environment["PATH"] = str(tmp_path / "bin")
        if cause == "broken compiler":
            (tmp_path / "bin/gcc").write_text("#!/bin/sh\necho cannot do that >&2; exit 1\n")
            (tmp_path / "bin/gcc").chmod(0o755)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(native, "library", LIBRARY.__wrapped__)
    decoder = Models(str(tiny), None, "bfloat16", [torch.device("cpu")]).target
    assert (decoder.model.stack.operators, decoder.row_invariant) == ("torch", True)
    err = "".join(str(warning.message) for warning in recwarn)
    reason = {"no compiler": "no C compiler found", "broken compiler": "cannot do that", "read-only cache": "/proc"}
    assert ("not available" in err) == (cause != "switched off")
    assert reason.get(cause, "") in err
