"""What `onelane` promises can be had from it, and is where it says it is."""

from importlib import import_module
from importlib.metadata import version

import onelane
import pytest


def test_the_package_says_its_version() -> None:
    assert onelane.__version__ == version("onelane")


@pytest.mark.parametrize("name", onelane.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(onelane, name).__name__ == name


@pytest.mark.parametrize("name", onelane._HOMES)
def test_a_public_name_is_loaded_from_the_file_that_defines_it(name: str) -> None:
    assert getattr(onelane, name).__module__ == f"onelane.{onelane._HOMES[name]}"
    assert hasattr(import_module(f"onelane.{onelane._HOMES[name]}"), name)
