"""What only browsers and curl need is not loaded before one of them comes, nor what messages in C never need."""

import subprocess
import sys


def test_a_shard_has_not_loaded_what_only_browsers_need() -> None:
    probe = "import sys, onelane.shard.process, onelane.shard.lifecycle, onelane.server.native_listener; "
    probe += (
        "print({'h11', 'google.protobuf.json_format', 'onelane.server.web', 'onelane.wire.http1'} & {*sys.modules})"
    )
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


def test_the_process_that_forks_shards_has_not_loaded_what_only_messages_in_python_need() -> None:
    """And has what each shard would else load for itself."""
    probe = "import sys; from onelane.shard import fork_server; fork_server._prepare(); "
    probe += "names = ('text_format', 'internal.decoder', 'internal.containers'); "
    probe += "print({'google.protobuf.' + name for name in names} & {*sys.modules}, 'msgspec' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert run.stdout == "set() True\n"
