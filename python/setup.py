"""Builds the C library with cargo, from the repository that this folder lies in, and puts it into the package."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
ADAPTERS = ("tools-lora", "sentiment-lora")


def version() -> str:
    """The version of the workspace."""
    manifest = REPOSITORY / "Cargo.toml"
    if not manifest.is_file():
        sys.exit("graftwork is built from a checkout of its repository: pip install ./python")
    found = re.search(r'\[workspace\.package\][^[]*?^version = "([^"]*)"', manifest.read_text(encoding="utf-8"), re.M | re.S)
    if not found:
        sys.exit(f"{manifest}: no version")
    return found[1]


def library() -> Path:
    """The C library: the one that GRAFTWORK_LIBRARY names, or else what cargo makes."""
    given = os.environ.get("GRAFTWORK_LIBRARY")
    if given:
        return Path(given)
    cargo = os.environ.get("CARGO", "cargo")
    if not shutil.which(cargo):
        sys.exit("graftwork needs Rust to be built: no cargo was found; or name a libgraftwork in GRAFTWORK_LIBRARY")
    command = [cargo, "build", "--release", "-p", "graftwork-ffi", "--message-format=json-render-diagnostics"]
    print(*command, flush=True)
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True)
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message["target"]["name"] == "graftwork_ffi":
            for name in message["filenames"]:
                if name.endswith((".so", ".dylib", ".dll")):
                    return Path(name)
    sys.exit("cargo built no library")


class BuildPackage(build_py):
    """The package, with the library and the adapters of the demo in it."""

    def run(self) -> None:
        super().run()
        package = HERE / "graftwork" if self.editable_mode else Path(self.build_lib) / "graftwork"
        self.copy_library(package)
        if not self.editable_mode:
            for name in ADAPTERS:
                source = REPOSITORY / "examples" / "adapters" / name
                shutil.copytree(source, package / "adapters" / name, dirs_exist_ok=True)

    def copy_library(self, package: Path) -> None:
        built = library()
        name = "graftwork.dll" if built.suffix == ".dll" else f"libgraftwork{built.suffix}"
        package.mkdir(parents=True, exist_ok=True)
        # By another name first: a process may have the old one mapped.
        partial = package / f"{name}.partial"
        shutil.copyfile(built, partial)
        strip = shutil.which("strip")
        if sys.platform.startswith("linux") and strip:
            subprocess.run([strip, "--strip-debug", str(partial)], check=False)
        os.replace(partial, package / name)


class Wheel(bdist_wheel):
    """A wheel of one platform, for any Python 3."""

    def get_tag(self) -> "tuple[str, str, str]":
        return "py3", "none", super().get_tag()[2]


class Binary(Distribution):
    """A package with a library of one platform."""

    def has_ext_modules(self) -> bool:
        return True


setup(version=version(), cmdclass={"build_py": BuildPackage, "bdist_wheel": Wheel}, distclass=Binary)
