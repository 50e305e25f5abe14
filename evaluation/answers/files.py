"""Where the files of a run lie, and their bytes, compressed or not."""

import gzip
import os
import zlib
from pathlib import Path

from methods.errors import UserError, nearest

GZIP = ".gz"


def answers_of(folder: Path, method: str) -> Path:
    """The answer file of a method, or of a variant, whose draft may be a path or hub id."""
    return folder / f"{method.replace('/', '--')}.jsonl"


def launch_folder(output: Path, number: int) -> Path:
    """Where the files of a launch lie, which are numbered from 1."""
    return output / f"launch-{number}" if number > 1 else output


def header_path(path: str | Path) -> Path:
    """Where the run header of the answer file `path` lies."""
    return uncompressed(path).with_suffix(".run.json")


def uncompressed(path: str | Path) -> Path:
    """The name of an answer file where it may lie compressed: `read_file` takes FILE.gz for FILE that is not there."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(GZIP)) if path.name.endswith(GZIP) else path


def compressed(path: Path) -> Path:
    """The name that an answer file has where it is compressed."""
    return path.with_name(path.name + GZIP)


def any_path(text: str) -> Path:
    """The path that an argument of a command names, be it there or not. UserError where none can have that name, or
    where it lies in a folder that may not be looked into."""
    if not text:
        raise UserError("expected a path, got an empty text; name a file or a folder")
    try:
        os.stat(text)
    except (FileNotFoundError, NotADirectoryError):
        return Path(text)  # who writes it makes it, who reads it says that it is not there
    except PermissionError as error:
        raise UserError(f"cannot look at {told(text)}: {error.strerror}; check the path and its permissions") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"'{told(text[:60])}' cannot be a path ({reason}); name a file or a folder") from None
    return Path(text)


def told(words: object) -> str:
    """What stands in a file or a path, within a sentence: on one line."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(words))


def read_file(path: Path) -> bytes:
    """The bytes of a file, or of what is compressed beside it. Raises UserError where neither can be read."""
    try:
        if not path.exists() and compressed(path).exists():
            return gzip.decompress(compressed(path).read_bytes())
        return path.read_bytes()
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.glob("*.jsonl")] if path.parent.is_dir() else []
        hint = nearest(path.name, siblings) if siblings else "; check the path"
        raise UserError(f"{path} does not exist{hint}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name one answer file in it, such as {path / 'pld.jsonl'}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{compressed(path)} is not a whole gzip file ({error}); restore it") from None
    except ValueError as error:  # a null byte
        raise UserError(f"cannot read {told(path)}: {error}; check the path") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from None


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or leave the old one: a reader never sees half of it."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}; make room or choose another --output") from None
