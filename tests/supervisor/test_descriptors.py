"""The limit of open files is raised and told, and some descriptors are kept for the starts of shards."""

import os
import resource
import subprocess
import sys

from onelane.supervisor import descriptors
from onelane.supervisor.descriptors import DescriptorReserve


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_the_limit_is_raised_as_far_as_the_system_allows() -> None:
    probe = (
        "import resource; from onelane.supervisor import descriptors;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 300)); print(descriptors.raise_limit())"
    )
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout == "300\n"


def test_what_a_limit_is_too_low_for_is_named() -> None:
    assert descriptors.shortages(30_000, 2, {"lobby": 20_000}) == []
    assert descriptors.shortages(64, 2, {"lobby": 20_000}) == [
        "a shard of lobby has room for some 0 connections of its 20000",
        f"the supervisor of 2 shards needs some {descriptors.needed(2)}",
    ]


def test_the_descriptors_in_reserve_are_free_while_a_shard_starts_and_held_again_afterwards() -> None:
    before = open_descriptors()
    reserve = DescriptorReserve(5)
    assert open_descriptors() == before + 5
    with reserve.released():
        assert open_descriptors() == before
    assert open_descriptors() == before + 5
    reserve.close()


def test_a_reserve_that_cannot_be_filled_now_is_filled_later() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reserve = DescriptorReserve(5)
    before = open_descriptors()
    try:
        with reserve.released():
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with reserve.released():
        pass
    assert open_descriptors() == before
    reserve.close()
