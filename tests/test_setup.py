"""scripts/setup.sh, eval.sh and test.sh on a miniature repository: real venvs, real pip, two tiny packages."""

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from methods.paths import ROOT

BACKEND = """
import zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(f"{folder}/mini-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("mini-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: mini\\nVersion: 1\\n")
        wheel.writestr("mini-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("mini-1.dist-info/RECORD", "")
    return "mini-1-py3-none-any.whl"
"""
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "mini"
version = "1"
"""
RUN = "import sys, torch; print('ran', torch.__version__, sys.argv[1:], sys.prefix)"


def write_wheel(folder: Path, name: str, version: str, module: str) -> None:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        info = f"{name}-{version}.dist-info"
        wheel.writestr(f"{name}.py", module)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def mini(tmp_path: Path) -> Path:
    """A repository with our scripts and a lock of two packages, of which `small` is still missing from the index."""
    root = tmp_path / "a b"  # a path with a blank in it
    (root / "scripts").mkdir(parents=True)
    (root / "evaluation").mkdir()
    for name in ("scripts/setup.sh", "eval.sh", "test.sh"):
        shutil.copy(ROOT / name, root / name)
    (root / "requirements.lock").write_text("# a comment\nsmall==1\ntorch==2\n")
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "backend.py").write_text(BACKEND)
    (root / "evaluation/run.py").write_text(RUN)
    write_wheel(tmp_path / "wheels", "torch", "2", "__version__ = '2'")
    return root


def environment(root: Path, **more: str) -> dict[str, str]:
    without = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    pip = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": (root.parent / "wheels").as_uri(), "PIP_CONFIG_FILE": os.devnull}
    return {**without, **pip, **more}


def call(root: Path, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [root / command[0], *command[1:]], env=environment(root, **more), capture_output=True, text=True, timeout=120
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def test_life_of_a_venv(mini: Path) -> None:
    """A killed set-up starts afresh; a failure says why; two at once make one; then silence, until the lock changes."""
    killed = subprocess.Popen(
        [mini / "scripts/setup.sh"], env=environment(mini), stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(mini / ".venv/bin/python")
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    torn = mini / ".venv/torn"
    torn.touch()  # a file that the killed set-up left behind

    failed = call(mini, "eval.sh", "pld")
    assert failed.returncode == 2 and failed.stdout == ""
    assert "No matching distribution found for small==1" in failed.stderr
    assert "error: installing the dependencies failed" in failed.stderr and "Traceback" not in failed.stderr
    assert not torn.exists()

    write_wheel(mini.parent / "wheels", "small", "1", "")
    first = subprocess.Popen(
        [mini / "eval.sh", "1"], env=environment(mini), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(mini / ".venv.lock")
    second = call(mini, "eval.sh", "two words", "--x")
    out, err = first.communicate(timeout=120)
    assert first.returncode == second.returncode == 0, err + second.stderr
    assert (err + second.stderr).count("done in") == 1, "one of the two installs, the other waits"
    assert out.startswith("ran 2 ['1']") and second.stdout.startswith("ran 2 ['two words', '--x']")

    quiet = call(mini, "eval.sh")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert str(mini / ".venv") in quiet.stdout

    write_wheel(mini.parent / "wheels", "torch", "3", "__version__ = '3'")
    (mini / "requirements.lock").write_text("small==1\ntorch==3\n")
    assert "ran 3" in call(mini, "eval.sh").stdout, "a new lock is installed"


def test_given_interpreter_is_used_as_it_is(mini: Path) -> None:
    (mini / "torch.py").write_text("__version__ = 'own'")
    ran = call(mini, "eval.sh", "x", PYTHON=sys.executable)
    assert ran.stdout.startswith("ran own ['x']"), ran.stderr
    assert not (mini / ".venv").exists()
    (mini / "evaluation/calibrate.py").write_text("import sys; print('calibrates', sys.argv[1:])")
    assert call(mini, "eval.sh", "--calibrate", "a b", PYTHON=sys.executable).stdout == "calibrates ['a b']\n"
    version = call(mini, "test.sh", "--version", PYTHON=sys.executable)
    assert version.returncode == 0 and "pytest" in version.stdout + version.stderr


def test_no_python_is_one_sentence(mini: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "readlink", "cat", "sha256sum", "cut", "flock", "touch", "rm", "grep", "env"):
        (tools / tool).symlink_to(shutil.which(tool) or pytest.skip(f"{tool} is not here"))
    failed = call(mini, "eval.sh", "pld", PATH=str(tools))
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: Python 3.11 or newer") and failed.stderr.count("\n") == 1
