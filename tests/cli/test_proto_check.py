"""`onelane proto --check` and `--against`: each method has its key, and no key is another one than it was."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from onelane.cli.main import main
from onelane.cli.protoc import descriptors_of

from tests.bounds import BOUND_S

pytestmark = pytest.mark.slow
HEAD = 'syntax = "proto3";\npackage shop.v1;\nimport "onelane/v1/options.proto";\n'
KEY = "[(onelane.v1.key) = true]"
FINE = HEAD + f"service Shop {{ rpc Buy(Order) returns (Order); }}\nmessage Order {{ string cart = 1 {KEY}; }}\n"
FAULTY = f"""{HEAD}
service Shop {{
  rpc Buy(Order) returns (Order);
  rpc Look(Nothing) returns (Nothing);
  rpc Pay(Price) returns (Price);
  rpc List(Page) returns (Cart) {{ option (onelane.v1.route) = ANY; }}
  rpc Find(Carts) returns (Carts) {{ option (onelane.v1.route) = ANY; }}
}}
message Order {{ Cart cart = 1; }}
message Cart {{ string id = 1 {KEY}; }}
message Nothing {{ message Deep {{ string id = 1 {KEY}; }} }}
message Price {{
  double amount = 1 {KEY};
}}
message Page {{ string id = 1 {KEY}; }}
message Carts {{ repeated Cart carts = 1; }}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes proto/shop/v1/shop.proto in an empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    path = Path("proto/shop/v1/shop.proto")
    path.parent.mkdir(parents=True)

    def write_text(text: str) -> Path:
        path.write_text(text)
        return path

    return write_text


def proto(*arguments: str) -> Result:
    run = CliRunner().invoke(main, ["proto", *arguments])
    assert run.exception is None or isinstance(run.exception, SystemExit), run.exception
    return run


def test_protos_whose_methods_have_their_keys_have_no_fault_and_nothing_is_generated(
    write: Callable[[str], Path],
) -> None:
    write(FINE)
    run = proto("--check")
    assert (run.exit_code, run.stdout) == (0, "1 proto(s) checked, no fault\n")
    assert [path.name for path in Path().iterdir()] == ["proto"]


def test_each_fault_of_a_key_is_told_with_file_line_and_method(write: Callable[[str], Path]) -> None:
    write(FAULTY)
    run = proto("--check")
    assert run.exit_code == 3
    look, pay, deep, page = run.stderr.splitlines()
    assert look.startswith("proto/shop/v1/shop.proto:7: shop.v1.Shop/Look: has no key; annotate a field")
    assert pay.startswith("proto/shop/v1/shop.proto:8: shop.v1.Shop/Pay: shop.v1.Price.amount: a key is a string,")
    assert deep.startswith("proto/shop/v1/shop.proto:14: shop.v1.Nothing.Deep.id: is annotated as a key that no method")
    assert page.startswith("proto/shop/v1/shop.proto:18: shop.v1.Page.id: is annotated as a key that no method reads")
    faults = json.loads(proto("--check", "--json").stdout)["faults"]
    assert [fault["line"] for fault in faults] == [7, 8, 14, 18]


def test_keys_of_the_settings_file_count_too(write: Callable[[str], Path]) -> None:
    write(HEAD + "service Shop { rpc Buy(Order) returns (Order); }\nmessage Order { string cart = 1; }\n")
    assert proto("--check").exit_code == 3
    app = '[apps.shop]\nservices = ["shop:Shop"]\nlisten = "127.0.0.1:0"\n'
    Path("onelane.toml").write_text(f'{app}keys = {{ "shop.v1.Shop/*" = "cart" }}\n')
    assert proto("--check").exit_code == 0
    Path("other.toml").write_text(app)
    assert proto("--check", "--file", "other.toml").exit_code == 3


def requests(*fields: str) -> str:
    """A proto with a method for each request, whose fields are given."""
    rpcs = [f"rpc M{number}(R{number}) returns (E);" for number in range(len(fields))]
    messages = [f"message R{number} {{ {text} }}" for number, text in enumerate(fields)]
    return "\n".join([HEAD, "service S {", *rpcs, "}", "message E {}", "enum K { ZERO = 0; }", *messages])


CHANGES = [
    (f"string a = 1 {KEY};", f"string renamed = 1 {KEY}; string b = 2;", ""),
    (f"int32 a = 1 {KEY};", f"int64 a = 1 {KEY};", ""),
    (f"string a = 1 {KEY};", f"bytes a = 1 {KEY};", ""),
    (f"K a = 1 {KEY};", f"int32 a = 1 {KEY};", ""),
    (f"int64 a = 1 {KEY};", f"int32 a = 1 {KEY};", "its key was a (int64 1), and is a (int32 1)"),
    (f"string a = 1 {KEY};", f"string a = 2 {KEY};", "its key was a (string 1), and is a (string 2)"),
    (f"string a = 1 {KEY};", f"string a = 1 {KEY}; string b = 2 {KEY};", "and is a (string 1), b (string 2)"),
    (f"string a = 1 {KEY}; string b = 2;", f"string a = 1; string b = 2 {KEY};", "and is b (string 2)"),
    (f"string a = 1 {KEY};", "string a = 1;", "its key was a (string 1), and it has none now"),
]
BEFORE = requests(*(before for before, _, _ in CHANGES))
AFTER = requests(*(after for _, after, _ in CHANGES))


def assert_changes(run: Result) -> None:
    lines = run.stderr.splitlines()
    for number, (_, _, text) in enumerate(CHANGES):
        faults = [line for line in lines if f": shop.v1.S/M{number}: " in line and "its key" in line]
        assert [text in line for line in faults] == ([True] if text else [])
    assert run.exit_code == 3


def test_a_key_that_has_changed_since_a_descriptor_file_is_told(write: Callable[[str], Path]) -> None:
    """A request goes to another shard then, and its state is not there."""
    Path("before.binpb").write_bytes(descriptors_of([write(BEFORE)], root=Path("proto")))
    assert proto("--against", "before.binpb").exit_code == 0
    write(AFTER)
    assert_changes(proto("--against", "before.binpb"))


def test_a_method_without_a_key_that_needs_one_now_is_told(write: Callable[[str], Path]) -> None:
    any_shard = FINE.replace("(Order);", "(Order) { option (onelane.v1.route) = ANY; }").replace(KEY, "")
    Path("before.binpb").write_bytes(descriptors_of([write(any_shard)], root=Path("proto")))
    write(FINE)
    run = proto("--against", "before.binpb")
    assert "shop.v1.Shop/Buy: its calls had no key, and now need cart (string 1)" in run.stderr


def git(*arguments: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", *who, *arguments], check=True, capture_output=True, timeout=BOUND_S)


def test_a_key_that_has_changed_since_a_git_revision_is_told(write: Callable[[str], Path]) -> None:
    git("init", "-q")
    Path("other").touch()
    git("add", "other")
    git("commit", "-qm", "without protos")
    write(BEFORE)
    git("add", "proto")
    git("commit", "-qm", "before")
    git("tag", "release")
    assert proto("--against", "release").exit_code == 0
    write(AFTER)
    assert_changes(proto("--against", "release"))
    write(FINE)
    assert "has no folder proto" in proto("--against", "HEAD~1").stderr
    for wrong in ("nothing", "--output=stolen", "HEAD:other"):
        run = proto(f"--against={wrong}")
        assert (run.exit_code, f"{wrong!r} is neither a file nor a revision" in run.stderr) == (1, True)
    assert not Path("stolen").exists()


def test_what_is_no_descriptor_file_is_refused(write: Callable[[str], Path]) -> None:
    write(FINE)
    for content in (b"", b"\xff\xff", b"syntax"):
        Path("before.binpb").write_bytes(content)
        run = proto("--against", "before.binpb")
        assert (run.exit_code, "before.binpb is no descriptor file" in run.stderr) == (1, True)
    write(FINE.replace("string cart", "strin cart"))
    assert '"strin" is not defined' in proto("--check").stderr
