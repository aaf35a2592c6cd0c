"""The pages of the public API: mkdocstrings fills them from the docstrings."""

import inspect

import onelane
import onelane.testing
from onelane.errors import OnelaneError

OF_THE_RUNTIME = {
    "onelane.Shard": (
        *("configure", "join", "wait_ready", "aclose", "drop_foreign"),
        *("keyed_counts", "keyed_dicts", "durable_state"),
    ),
    "onelane.testing.Cluster": ("environment", "setup_of", "dial_instead", "take"),
}
"""Members that only the runtime uses, which no page shows."""
MADE_BY_USERS = {"onelane.testing.Cluster", "onelane.testing.ManualClock", "onelane.Channel"}
"""Classes whose constructor is part of the API."""


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
    return "\n\n".join([f"# {title}", sentence, *map(_entry, names)]) + "\n"


def _entry(name: str) -> str:
    """What mkdocstrings replaces by the documentation of a name."""
    hidden = "".join(f', "!^{member}$"' for member in OF_THE_RUNTIME.get(name, ()))
    lines = [f"::: {name}", "    options:", f'      filters: ["!^_"{hidden}]']
    return "\n".join([*lines, f"      merge_init_into_class: {str(name in MADE_BY_USERS).lower()}"])
