"""Descriptors that a process has left."""

import os
import resource

from onelane.telemetry.open_files import descriptors_left


def test_each_open_file_takes_a_descriptor_of_those_that_are_left() -> None:
    before = descriptors_left()
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    try:
        assert 0 < descriptors_left() < limit
        assert descriptors_left() == before - 3
    finally:
        for file in files:
            os.close(file)
