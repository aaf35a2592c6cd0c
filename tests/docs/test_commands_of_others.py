"""What pages show of others: each command is run by a test or stands in a list; links go where they are meant to."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.docs import pages
from tests.docs.pages import WRITTEN
from tests.running_app import ROOT, running
from tests.web import Response, by_http1

pytestmark = pytest.mark.slow
PAGES = ["README.md", *WRITTEN]
RUN = {
    "README.md": ("python", "curl", "pytest"),
    "docs/tutorial.md": ("cd", "python", "pytest"),
    "docs/how-to/stock-clients.md": ("python",),
    "docs/how-to/browsers-and-curl.md": ("curl",),
}
"""By page, programs whose commands a test runs as they stand: `house/test_readme`, `docs/test_tutorial`, and below."""
NOT_RUN = {
    "docs/tutorial.md": (
        "pip install 'onelane[proto]' pytest",
        "docker run --rm -p 16686:16686 -p 4318:4318 jaegertracing/jaeger:2.13.0",
    ),
    "docs/how-to/kubernetes.md": (
        "kubectl create secret generic onelane-admin --from-literal=token=$(openssl rand -hex 16)",
        "kubectl apply --kustomize deploy/kubernetes/machine",
        "kubectl rollout status statefulset/onelane",
        "kubectl exec onelane-0 -- onelane status",
        "kubectl rollout undo statefulset/onelane",
        "kubectl delete pod onelane-2",
    ),
    "docs/how-to/tracing.md": ("curl -s localhost:9464/metrics",),
}
"""Commands that no test runs: they need the package index, a engine of containers, Kubernetes or a free port."""
CURL = "docs/how-to/browsers-and-curl.md"
TEXTS = [*PAGES, "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "deploy/README.md"]
HOSTS = {
    *("connectrpc.com", "developers.cloudflare.com", "docs.dapr.io", "docs.ray.io", "docs.restate.dev"),
    *("docs.temporal.io", "dotnet.github.io", "etcd.io", "github.com", "jcristharif.com", "keepachangelog.com"),
    *("protobuf.dev", "semver.org", "www.npmjs.com"),
}
"""Hosts of other people that pages link to."""
EXAMPLES = re.compile(r"localhost(:\d+)?|(127|10)(\.\d+){3}(:\d+)?|host:port|[a-z.]*\bexample(\.com)?")


def others(page: str) -> Iterator[str]:
    """The commands of a page that are none of onelane's, without their comments."""
    for block in pages.blocks(page):
        for line in block.text.replace("\\\n", " ").splitlines():
            shown = line if block.language == "sh" else line[2:] if line.startswith("$ ") else ""
            if block.language in ("sh", "console") and shown:
                command = re.sub(r"\s+# .*", "", shown)
                if not re.match(r"(?:[A-Z_]+=\S+ )*onelane\b", command):
                    yield command


@pytest.mark.parametrize("page", PAGES)
def test_each_command_of_another_program_is_run_or_stands_in_the_list(page: str) -> None:
    unknown = [command for command in others(page) if shlex.split(command)[0] not in RUN.get(page, ())]
    assert unknown == list(NOT_RUN.get(page, ()))


def test_the_container_of_jaeger_is_the_one_that_is_built_and_composed_here() -> None:
    [command] = [command for command in NOT_RUN["docs/tutorial.md"] if command.startswith("docker")]
    image = shlex.split(command)[-1]
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    release = re.search(r"^release=v(\S+)", (ROOT / "tests/jaeger/build.sh").read_text(), re.MULTILINE)
    assert release is not None
    assert image == compose["services"]["jaeger"]["image"] == f"jaegertracing/jaeger:{release[1]}"
    assert re.findall(r"-p (\S+)", command) == ["16686:16686", "4318:4318"]
    page = (ROOT / "docs" / "tutorial.md").read_text()
    assert "OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318" in page
    # What Jaeger's own configuration has where nothing says otherwise, as ours in tests/jaeger.
    ports = (ROOT / "tests" / "jaeger" / "config.yaml").read_text()
    assert "4318" in ports
    assert "16686" in ports


def test_the_curls_of_the_page_on_browsers_get_what_it_shows(tmp_path: Path) -> None:
    file = ROOT / "services" / "examples" / "counter" / "onelane.toml"
    toml = re.sub(r'listen = "[^"]*"', 'listen = "127.0.0.1:0"', file.read_text())
    first, failing = (command for command in others(CURL))
    shown = [block.text for block in pages.blocks(CURL) if block.language == "text"]
    with running(tmp_path, toml) as app:
        answer = asked(first, app.listen["counter"])
        assert (answer.status, answer.body.decode()) == (200, shown[0].strip())
        answer = asked(failing, app.listen["counter"])
        head, _, body = shown[1].partition("\n\n")
        lines = [f"HTTP/1.1 {answer.status}", *(f"{name}: {value}" for name, value in answer.headers.items())]
        assert (lines, answer.body.decode()) == (head.splitlines(), body.strip())


def asked(curl: str, address: str) -> Response:
    """What a command of curl gets, by the same request of this process: curl is not everywhere."""
    words = [word for word in shlex.split(curl)[1:] if word != "-i"]
    options: dict[str, Any] = dict(zip(words[0:-1:2], words[1:-1:2], strict=True))
    assert set(options) == {"-H", "-d"}
    headers = dict([options["-H"].split(": ")])
    return by_http1(address, urlsplit(words[-1]).path, options["-d"].encode(), headers=headers)


@pytest.mark.parametrize("text", TEXTS)
def test_links_to_others_are_https_and_to_hosts_that_are_meant(text: str) -> None:
    for url in re.findall(r"https?://[^\s)>\"'`\]]+", (ROOT / text).read_text()):
        parts = urlsplit(url)
        if not EXAMPLES.fullmatch(parts.netloc):
            assert parts.scheme == "https", url
            assert parts.netloc in HOSTS, url
