"""The Go and JavaScript of the page on stock clients, run as it stands there.

Its Python and its Java have their tests in `house/test_readme`.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc_tools
import pytest
from onelane import protos

from tests import tools
from tests.docs import pages
from tests.running_app import ROOT, RunningApp, running

pytestmark = pytest.mark.slow
PAGE = "docs/how-to/stock-clients.md"
PROTOS = ["onelane/v1/options.proto", "counter/v1/counter.proto"]
MODULE = "onelane.test/stock"
GO = """package main

import (
\t"context"
\t"fmt"
\t"log"
\t"os"

\tcounterpb "onelane.test/stock/counter/v1"
)

%s

func main() {
\tctx, serviceConfig, key := context.Background(), os.Args[1], os.Args[2]
%s
\tif err != nil {
\t\tlog.Fatal(err)
\t}
\tfmt.Println(reply.Total)
}
"""
"""A program around the imports and the statements of the page."""
JS = """const path = require("node:path");
const [modules, ...includeDirs] = process.argv.slice(2);
const grpc = require(path.join(modules, "@grpc/grpc-js"));
const loader = require(path.join(modules, "@grpc/proto-loader"));
const { Counter } = grpc.loadPackageDefinition(loader.loadSync("counter/v1/counter.proto", { includeDirs })).counter.v1;
%s
client.waitForReady(Date.now() + 20000, () => client.close());
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock")
    pages.write(pages.files_of("README.md"), folder)
    pages.generate(folder)
    return folder


@pytest.fixture(scope="module")
def counter(folder: Path) -> Iterator[RunningApp]:
    toml = (folder / "onelane.toml").read_text().replace("127.0.0.1:50051", "127.0.0.1:0")
    with running(folder, toml, "--app-dir", str(folder)) as app:
        yield app


def block(language: str) -> str:
    [text] = [block.text for block in pages.blocks(PAGE) if block.language == language]
    return text


def replaced(text: str, values: dict[str, str]) -> str:
    """The text with values of this run in place of its examples, each of which it must have."""
    for example, value in values.items():
        assert example in text
        text = text.replace(example, value)
    return text


def test_its_go_calls_the_owner_of_each_key_without_a_hop(folder: Path, counter: RunningApp, tmp_path: Path) -> None:
    app = counter.status()["apps"]["counter"]
    first, second = (shard["address"] for shard in app["shards"])
    values = {'"apples"': "key", "127.0.0.1:50151": first, "127.0.0.1:50251": second}
    program = built(folder, replaced(block("go"), values), tmp_path)
    environment = os.environ | {"GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY": "true"}
    for key in ("pears", "plums", "figs", "kiwis", "limes", "dates"):
        command = [str(program), json.dumps(app["service_config"]), key]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.stdout == "1\n", done.stderr
    metrics = counter.scrape()
    assert (metrics.metric("counter_adds_total"), metrics.metric("onelane_forwards_total")) == (6, 0)


def built(folder: Path, text: str, target: Path) -> Path:
    """The program of the page, beside the generated code of the README's proto."""
    modules = tools.go_modules()
    for name in ("go.mod", "go.sum"):
        shutil.copy(modules / name, target)
    environment = os.environ | {"GOWORK": "off", "GOPROXY": "off", "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"}

    def go(*arguments: str) -> str:
        command = ["go", *arguments]
        done = subprocess.run(command, cwd=target, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    generate(folder, target, [go("tool", "-n", name) for name in ("protoc-gen-go", "protoc-gen-go-grpc")])
    imports, _, statements = text.partition("\n)\n")
    (target / "main.go").write_text(GO % (imports + "\n)", statements))
    go("build", "-o", "stock", ".")
    return target / "stock"


def generate(folder: Path, target: Path, plugins: list[str]) -> None:
    """The Go code of the protos. plugins: the programs that make messages and stubs."""
    includes = [folder / "proto", Path(protos.__path__[0]), Path(grpc_tools.__path__[0]) / "_proto"]
    command = [sys.executable, "-m", "grpc_tools.protoc", *(f"-I{include}" for include in includes)]
    for name, plugin in zip(("go", "go-grpc"), plugins, strict=True):
        command += [f"--plugin=protoc-gen-{name}={plugin}", f"--{name}_out={target}", f"--{name}_opt=module={MODULE}"]
        command += [f"--{name}_opt=M{proto}={MODULE}/{Path(proto).parent}" for proto in PROTOS]
    subprocess.run([*command, *PROTOS], check=True, timeout=60)


def test_its_javascript_calls_by_the_shared_port(folder: Path, counter: RunningApp, tmp_path: Path) -> None:
    node, _ = tools.node_client()
    text = replaced(block("js"), {"127.0.0.1:50051": counter.listen["counter"], "apples": "cherries"})
    (tmp_path / "stock.js").write_text(JS % text)
    modules, includes = ROOT / "tests" / "node" / "node_modules", [folder / "proto", protos.__path__[0]]
    command = [node, str(tmp_path / "stock.js"), str(modules), *map(str, includes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "cherries: 1\n", done.stderr
