"""Generated code is what its protos make: fresh, and typed."""

import subprocess
import sys
from pathlib import Path

import pytest
from onelane.cli.protoc import generate
from onelane.errors import Invalid

from tests.running_app import ROOT

pytestmark = pytest.mark.slow
UNUSED = {"options_pb2_grpc.py", "options_pb2_grpc.pyi", "control_pb2_grpc.py", "control_pb2_grpc.pyi"}
UNUSED |= {"xds_pb2_grpc.py", "xds_pb2_grpc.pyi"}


@pytest.mark.parametrize(
    ("root", "sources", "home"),
    [
        ("runtime/onelane/protos", "runtime/onelane/protos", "runtime"),
        ("proto", "proto/services", "."),
        ("tests/protos", "tests/protos", "."),
    ],
)
def test_what_is_committed_is_fresh(tmp_path: Path, root: str, sources: str, home: str) -> None:
    generate([ROOT / sources], root=ROOT / root, out=tmp_path)
    generated = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*_pb2*")}
    generated = {path: text for path, text in generated.items() if path.name not in UNUSED}
    assert generated
    assert {path: (ROOT / home / path).read_text() for path in generated} == generated


def test_a_users_proto_is_generated_with_our_options_and_packages(tmp_path: Path) -> None:
    (tmp_path / "proto/shop/v1").mkdir(parents=True)
    (tmp_path / "proto/shop/v1/cart.proto").write_text(
        'syntax = "proto3"; package shop.v1; import "onelane/v1/options.proto";\n'
        "service Cart { rpc Add(AddRequest) returns (AddRequest); }\n"
        "message AddRequest { string user = 1 [(onelane.v1.key) = true]; }\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "onelane", "proto"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "generated proto/shop/v1/cart.proto" in run.stdout
    names = {path.name for path in (tmp_path / "shop/v1").iterdir()}
    assert names == {"__init__.py", "cart_pb2.py", "cart_pb2.pyi", "cart_pb2_grpc.py", "cart_pb2_grpc.pyi"}
    subprocess.run([sys.executable, "-c", "import shop.v1.cart_pb2_grpc"], cwd=tmp_path, check=True)


def test_a_bad_proto_is_told_in_protocs_words(tmp_path: Path) -> None:
    (tmp_path / "bad.proto").write_text('syntax = "proto3"; message M { strin id = 1; }')
    with pytest.raises(Invalid, match='"strin" is not defined'):
        generate([tmp_path], root=tmp_path, out=tmp_path)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(Invalid, match=r"no \.proto file"):
        generate([tmp_path / "nothing"], root=tmp_path, out=tmp_path)
