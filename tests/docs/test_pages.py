"""What a page of the documentation shows is so: its files run, its settings are valid, its names exist."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from onelane import config
from onelane.cli.main import main

from docs.generator.blocks import INLINE
from tests.docs import pages
from tests.docs.pages import WRITTEN, blocks, files_of
from tests.running_app import ROOT

pytestmark = pytest.mark.slow
PAGES = ["README.md", *WRITTEN]
LANGUAGES = {"python", "proto", "toml", "sh", "console", "text", "output", "go", "java", "js"}
OF_GRPC = {"hash_key", "maximum_concurrent_rpcs", "migration_thread_pool", "wait_for_termination"}
"""Names that pages tell of gRPC, and the sources do not have."""
SNAKE = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)+")
WITH_TESTS = [page for page in WRITTEN if any(name.startswith("test_") for name in files_of(page))]
BASE = "README.md"
"""The files of the five minutes, from which other pages go on."""
DEFAULTS = {"services": ["service:Service"], "listen": "127.0.0.1:50051"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    files = {file: text for page in WITH_TESTS for file, text in files_of(page).items() if file.endswith(".proto")}
    own = {file: text for file, text in files.items() if page_of_commands(file) is None}
    pages.write(files_of(BASE) | own, folder)
    pages.generate(folder)
    return folder


def page_of_commands(file: str) -> str | None:
    """The page that makes the modules of this proto by its own commands."""
    return next((page for page in pages.RUN_BY_COMMANDS if file in files_of(page)), None)


@pytest.mark.parametrize("page", [page for page in WITH_TESTS if page not in pages.RUN_BY_COMMANDS])
async def test_the_tests_of_a_page_pass(page: str, base: Path, tmp_path: Path) -> None:
    modules = lay_out(page, base, tmp_path)
    with pages.importable(tmp_path):
        assert await pages.run_tests(tmp_path) > 0
        assert modules - set(pages.modules_in(tmp_path)) == set()


def lay_out(page: str, base: Path, folder: Path) -> set[str]:
    """Write the files of a page beside the modules of the protos; the names of its modules."""
    for generated in base.iterdir():
        if generated.is_dir() and generated.name != "proto":
            (folder / generated.name).symlink_to(generated)
    files = {name: text for name, text in files_of(page).items() if not name.endswith(".proto")}
    pages.write({"service.py": files_of(BASE)["service.py"]} | files, folder)
    return {name.removesuffix(".py") for name in files if name.endswith(".py")}


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_a_language_and_every_python_block_a_file(page: str) -> None:
    assert [block.line for block in blocks(page) if block.language not in LANGUAGES | {""}] == []
    assert [block.line for block in blocks(page) if block.language in ("python", "proto") and not block.file] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_file_of_settings_is_valid(page: str) -> None:
    for block in blocks(page):
        if block.language == "toml":
            config.parse(whole(tomllib.loads(block.text)))


def whole(data: dict[str, Any]) -> dict[str, Any]:
    """A part of a file with what it leaves out: services, addresses, and apps that it names."""
    apps = {name: DEFAULTS | app for name, app in data["apps"].items()}
    named = {name for app in apps.values() for name in (*app.get("stubs", ()), *app.get("auth", {}).get("apps", ()))}
    if any(app.get("auth", {}).get("mtls") for app in apps.values()):
        apps = {name: {"tls": {"cert": "c", "key": "k", "client_ca": "a"}} | app for name, app in apps.items()}
    return data | {"apps": dict.fromkeys(named, DEFAULTS) | apps}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_exists_with_its_options(page: str) -> None:
    for words in pages.commands(page):
        name, command, rest = resolved(words)
        try:
            command.make_parser(click.Context(command)).parse_args(rest)
        except click.UsageError as error:
            pytest.fail(f"onelane {' '.join(words)}: {name}: {error.message}")


def resolved(words: list[str]) -> tuple[str, click.Command, list[str]]:
    command: click.Command = main
    for count, word in enumerate(words):
        if not isinstance(command, click.Group):
            return " ".join(words[:count]), command, words[count:]
        assert word in command.commands, f"onelane {' '.join(words)}"
        command = command.commands[word]
    return " ".join(words), command, []


@pytest.fixture(scope="module")
def known_words() -> set[str]:
    """Every word with an underscore in the sources and the protos."""
    folders = [ROOT / name for name in ("runtime/onelane", "proto", "services", "tests/java/src", "tests/bench")]
    sources = [file for folder in folders for file in folder.rglob("*") if file.suffix in (".py", ".proto", ".java")]
    return OF_GRPC | {word for file in sources for word in SNAKE.findall(file.read_text())}


def names_of(page: str) -> Iterator[str]:
    text = re.sub(r"^ *```.*?^ *```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for code in INLINE.finditer(text):
        yield from SNAKE.findall(code[0])


@pytest.mark.parametrize("page", PAGES)
def test_every_name_in_code_style_is_in_the_sources(page: str, known_words: set[str]) -> None:
    own = {word for block in blocks(page) for word in SNAKE.findall(block.text)}
    assert set(names_of(page)) - known_words - own == set()
