"""Builds what is compiled of onelane: the modules that `[tool.onelane.compiled]` in pyproject.toml lists, by mypyc, and
the wire on libnghttp2 (`onelane/wire/_nghttp2.pyx`), by Cython.

The same sources run interpreted, and the wire on the package ngh2, where nothing compiled is there. So each part is
optional: one that cannot be built is left out, and a line says so. An editable install is never compiled.
ONELANE_PURE=1 builds a wheel for every platform; with ONELANE_PURE=0 a part that cannot be built is an error.
ONELANE_REPOSITORY is the address of the repository for the metadata's links, set by the workflow that publishes.
"""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

REPOSITORY = os.environ.get("ONELANE_REPOSITORY", "").rstrip("/")
PAGES = {
    "Source": "",
    "Documentation": "/blob/main/README.md",
    "Changelog": "/blob/main/CHANGELOG.md",
    "Issues": "/issues",
    "Security": "/security/policy",
}
"""The metadata's links, below the address of the repository."""
HERE = Path(__file__).parent.resolve()
PURE = os.environ.get("ONELANE_PURE", "")
BUILDS = {"bdist_wheel", "build", "build_ext", "install"}
"""Commands of setuptools that need the C sources; `sdist` and `editable_wheel` do without."""
LIBRARY = "onelane._compiled"
"""The library that has the code of all modules; the extension beside each module only points to it."""
OLDEST_NGHTTP2 = "1.52"
DEPRECATED_THROW = "PyObject_CallFunctionObjArgs(_m, type, value, traceback, NULL)"
"""How mypyc's runtime passes an exception on to what a compiled coroutine awaits. Its issue 1214 is open."""
THROW = "PyObject_CallOneArg(_m, value)"
"""The same without a DeprecationWarning of CPython 3.12 and later. The value has its type and its traceback."""


def left_out(part: str, reason: object) -> None:
    """Say that a part is not built, or fail where it must be."""
    if PURE == "0":
        raise SystemExit(f"onelane: {part} cannot be built: {reason}")
    sys.stderr.write(f"onelane: {part} is left out, Python takes its place: {reason}\n")


def compiled_modules() -> list[Extension]:
    """The extensions of the modules that mypyc compiles."""
    from mypyc.build import mypycify

    with (HERE / "pyproject.toml").open("rb") as file:
        modules = tomllib.load(file)["tool"]["onelane"]["compiled"]["modules"]
    # Not our own settings of mypy: packages without types, or that are not installed now, are no error here; nor is
    # what modules that stay interpreted do with these.
    settings = ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent"]
    options = [*settings, f"--cache-dir={HERE / 'build'}"]
    # From the folder of the package: tracebacks have the names of files as they are given here.
    os.chdir(HERE / "runtime")
    try:
        paths = [module.replace(".", "/") + ".py" for module in modules]
        extensions = list(
            mypycify([*options, *paths], group_name=LIBRARY, debug_level="0", target_dir=str(HERE / "build"))
        )
    finally:
        os.chdir(HERE)
    for extension in extensions:
        extension.include_dirs.insert(0, mended_runtime())
    return extensions


def mended_runtime() -> str:
    """A folder with the file of mypyc's runtime that has DEPRECATED_THROW, which is replaced. Nothing is in a release
    of mypyc that does not have it."""
    from mypyc.build import include_dir

    folder = HERE / "build" / "runtime"
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(include_dir(), "misc_ops.c").read_text()
    (folder / "misc_ops.c").write_text(source.replace(DEPRECATED_THROW, THROW))
    return str(folder)


def wire() -> list[Extension]:
    """The extension of the wire, on the libnghttp2 that pkg-config knows."""
    from Cython.Build import cythonize

    asked = [f"--atleast-version={OLDEST_NGHTTP2}", "--print-errors", "libnghttp2"]
    subprocess.run(["pkg-config", *asked], check=True)
    flags = pkg_config("--cflags").split()
    # A function that this libnghttp2 lacks ends the build, and not the first import.
    flags += ["-O2", "-g0", "-fno-strict-aliasing", "-Werror=implicit-function-declaration"]
    extension = Extension(
        "onelane.wire._nghttp2",
        ["runtime/onelane/wire/_nghttp2.pyx"],
        extra_compile_args=flags,
        extra_link_args=pkg_config("--libs").split(),
    )
    return list(cythonize([extension], language_level=3))


def pkg_config(asked: str) -> str:
    return subprocess.run(
        ["pkg-config", asked, "libnghttp2"], check=True, capture_output=True, text=True
    ).stdout.strip()


class BuildParts(build_ext):
    """Builds each part whole or not at all: the extension of a module would hide it, also where the library is not."""

    def build_extensions(self) -> None:
        built = []
        for part, extensions in PARTS.items():
            self.extensions = extensions
            try:
                super().build_extensions()
                built += extensions
            except Exception as error:
                left_out(part, error)
                for extension in extensions:
                    Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
        self.extensions = built


PARTS: dict[str, list[Extension]] = {}
if PURE != "1" and BUILDS.intersection(sys.argv):
    for name, extensions_of in (("the compiled code", compiled_modules), ("the wire on libnghttp2", wire)):
        try:
            PARTS[name] = extensions_of()
        except (Exception, SystemExit) as error:
            left_out(name, error)

setup(
    project_urls={page: REPOSITORY + path for page, path in PAGES.items()} if REPOSITORY else {},
    ext_modules=[extension for extensions in PARTS.values() for extension in extensions],
    cmdclass={"build_ext": BuildParts},
)
