"""The pages of the public API: mkdocstrings fills them from the docstrings."""

import inspect

import onelane
import onelane.testing
from onelane.errors import OnelaneError


def pages() -> dict[str, str]:
    """Path in the site → text."""
    names = [name for name in onelane.__all__ if not _is_error(name)]
    errors = [name for name in onelane.__all__ if _is_error(name)]
    functions = [name for name in names if name[0].islower()]
    classes = [name for name in names if name not in functions and name != "Shard"]
    return {
        "reference/api/shard.md": _page("onelane.Shard", "What a service gets, and may use.", ["onelane.Shard"]),
        "reference/api/onelane.md": _page(
            "onelane",
            "The names that `import onelane` has, beside `onelane.Shard`. Importing it starts nothing.",
            [f"onelane.{name}" for name in (*functions, *classes)],
        ),
        "reference/api/errors.md": _page(
            "onelane: errors",
            "The errors that code outside of the runtime catches or raises; [all of them by status](../errors.md).",
            [f"onelane.errors.{name}" for name in errors],
        ),
        "reference/api/testing.md": _page(
            "onelane.testing",
            "For tests of services and plugins.",
            [*(f"onelane.testing.{name}" for name in onelane.testing.__all__), "onelane.testing.faults"],
        ),
    }


def _is_error(name: str) -> bool:
    value = getattr(onelane, name)
    return inspect.isclass(value) and issubclass(value, OnelaneError)


def _page(title: str, sentence: str, names: list[str]) -> str:
    return "\n\n".join([f"# {title}", sentence, *(f"::: {name}" for name in names)]) + "\n"
