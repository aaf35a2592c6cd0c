"""What only browsers and curl need is not loaded before one of them comes."""

import subprocess
import sys


def test_a_shard_has_not_loaded_what_only_browsers_need() -> None:
    probe = "import sys, onelane.shard.process, onelane.shard.lifecycle, onelane.server.native_listener; "
    probe += (
        "print({'h11', 'google.protobuf.json_format', 'onelane.server.web', 'onelane.wire.http1'} & {*sys.modules})"
    )
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
