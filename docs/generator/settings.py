"""The reference of the settings file, from the dataclasses that it is checked with.

A setting's text is the docstring under its field, its range the marks in its type.
"""

import ast
import dataclasses
import functools
import inspect
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, MaxLen, MinLen
from onelane.config import Config
from onelane.core.service_config import ServiceConfig
from onelane.core.validation import Secret

SENTENCES: Mapping[type[Any], str] = {
    Config: "Its settings stand above all tables.",
    ServiceConfig: "gRPC's service config, the part about calls; names and durations are its own.",
}
"""What the page says of a table beside the docstring of its class."""
CHECKS = {
    "_address": "`ip:port`",
    "_admin_address": "`ip:port` or `unix:/path`",
    "_host": "an IP address",
    "_class_path": "`package.module:Class`",
    "_stall_s": "0, or 0.01 to 60",
    "_unresponsive_s": "0, or 0.5 to 3600",
    "parse_target": "a target of gRPC, such as `host:port`",
    "_seconds": 'a duration such as `"0.1s"`',
    "_codes": "names of gRPC statuses",
    "_jwks_url": "an `https://` url",
    "_method_pattern": "a pattern of methods",
    "_role": "a role",
    "_granted_role": "a role",
    "_certificate_name": "a name of a certificate",
    "_cluster_name": "1 to 63 of a-z, 0-9 and -",
    "_machine_name": "letters, digits, dots, - and _",
    "_reachable_host": "an IP address or the name of a host",
    "_etcd_url": "`https://host:port`",
    "_port_range": "`FIRST-LAST`",
    "_xds_address": "`ip:port`",
    "_urls": "a list of `https://host:port`",
}
"""A function that checks a value → what it accepts."""
TYPES = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    Path: "a path",
    Secret: "text, secret",
    Any: "any value",
}


class Undocumented(Exception):
    """A setting lacks a sentence, or its type one of a check's."""


class Setting(NamedTuple):
    """A row of the reference."""

    name: str
    value: str
    """Type and range, in words."""
    default: str
    """As the file would have it; empty where the setting is needed."""
    text: str


def page() -> str:
    """The whole reference, as Markdown."""
    parts = [
        "# Settings",
        "Every setting of the file, with its type, range and default, as the code has it. A variable such as "
        "`ONELANE_APPS__LOBBY__SHARDS=4` overrules the file. `onelane check` reports all faults of a file at once, "
        "each with its key and line.",
    ]
    for kind, places in tables().items():
        about = " ".join(filter(None, (_plain(kind.__doc__), SENTENCES.get(kind))))
        parts += [f"## {', '.join(places)} {{ #{anchor_of(kind)} }}", about]
        for setting in settings_of(kind):
            parts += [f"### {setting.name} {{ #{anchor_of(kind)}-{setting.name.lower()} }}", _facts(setting)]
            parts += [setting.text]
    return "\n\n".join(parts) + "\n"


@functools.cache
def tables() -> dict[type[Any], list[str]]:
    """The tables of the file, by their class: where they stand, as the file writes it."""
    places: dict[type[Any], list[str]] = {Config: ["The file"]}
    waiting = [(Config, "")]
    while waiting:
        kind, path = waiting.pop(0)
        for name, hint in get_type_hints(kind, include_extras=True).items():
            for table, ending, opening in _tables_in(hint):
                place = f"{path}.{name}{ending}".removeprefix(".")
                if table not in places:
                    waiting.append((table, place))
                places.setdefault(table, []).append(f"{opening}{place}{']' * len(opening)}")
    return places


def _tables_in(hint: Any) -> Iterator[tuple[type[Any], str, str]]:
    """The classes of tables in a type, each with what follows the name of its setting, and the brackets before it."""
    if dataclasses.is_dataclass(hint) and hint is not Secret:
        assert isinstance(hint, type)
        yield hint, "", "["
        return
    origin, arguments = get_origin(hint), get_args(hint)
    is_mapping = inspect.isclass(origin) and issubclass(origin, Mapping)
    for argument in arguments[:1] if origin is Annotated else arguments:
        for table, ending, opening in _tables_in(argument):
            yield table, ".NAME" * is_mapping + ending, "[[" if origin is tuple else opening


def anchor_of(kind: type[Any]) -> str:
    return kind.__name__.lower()


def settings_of(kind: type[Any]) -> list[Setting]:
    """The settings of one table, in the order of the code.

    Raises:
        Undocumented: a field has no docstring, or a type that this page cannot say.
    """
    hints = get_type_hints(kind, include_extras=True)
    sentences = _sentences(kind)
    settings = []
    for field in dataclasses.fields(kind):
        if field.name not in sentences:
            raise Undocumented(f"{kind.__name__}.{field.name} has no docstring under it")
        value = words_of(hints[field.name])
        settings.append(Setting(field.name, value, _default(field), _plain(sentences[field.name])))
    return settings


def _sentences(kind: type[Any]) -> dict[str, str]:
    """Field → the docstring under it, which Python itself does not keep."""
    [tree] = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    sentences = {}
    for node, following in zip(tree.body, tree.body[1:], strict=False):
        match node, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                sentences[name] = inspect.cleandoc(text)
    return sentences


def _plain(docstring: str | None) -> str:
    """As a paragraph of Markdown: a table of the file in brackets would be taken for a link."""
    return " ".join((docstring or "").split())


def _facts(setting: Setting) -> str:
    needed = f"default {setting.default}" if setting.default else "**needed**"
    return f"*{setting.value}* · {needed}"


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return "an empty table" if field.default_factory is dict else "its own defaults"
    match field.default:
        case dataclasses.MISSING:
            return ""
        case None:
            return "none"
        case bool(value):
            return f"`{str(value).lower()}`"
        case float(value):
            return f"`{value:g}`" if value < 1e6 else f"`{value:.0f}`"
        case str() | Path() as text:
            return f'`"{text}"`'
        case tuple(values):
            return f"`{list(values)}`".replace("'", '"')
        case frozenset() | Secret():
            return "none"
        case number:
            return f"`{number}`"


def words_of(hint: Any) -> str:
    """A type, with its range, in words.

    Raises:
        Undocumented: TYPES does not name it, or CHECKS one of its checks.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _marked(arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        return " or ".join(words_of(option) for option in arguments if option is not types.NoneType)
    if origin is Literal:
        return " or ".join(f'`"{value}"`' for value in arguments)
    if origin in (tuple, frozenset):
        return f"a list of: {words_of(arguments[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return f"a table: {words_of(arguments[0])} → {words_of(arguments[1])}"
    if next(_tables_in(hint), None):
        return f"a table, see [`{', '.join(tables()[hint])}`](#{anchor_of(hint)})"
    if hint not in TYPES:
        raise Undocumented(f"{hint}: docs/generator/settings.py has no words for this type")
    return TYPES[hint]


def _marked(kind: Any, marks: tuple[Any, ...]) -> str:
    """A type with its marks: the range, the least length, and a check, which says more than the type."""
    base, bounds = words_of(kind), []
    for mark in marks:
        match mark:
            case Ge(ge=least):
                bounds.append(f"at least {_number(least)}")
            case Gt(gt=limit):
                bounds.append(f"more than {_number(limit)}")
            case Le(le=most):
                bounds.append(f"at most {_number(most)}")
            case MinLen(min_length=1):
                bounds.append("not empty")
            case MinLen(min_length=length):
                bounds.append(f"at least {length} long")
            case MaxLen(max_length=length):
                bounds.append(f"at most {length} long")
            case _:
                base = _check_in_words(mark)
    return ", ".join([base, *bounds])


def _check_in_words(mark: Any) -> str:
    function = next((value for value in vars(mark).values() if inspect.isfunction(value)), None)
    if function is None or function.__name__ not in CHECKS:
        raise Undocumented(f"{function or mark}: docs/generator/settings.py has no words for this check")
    return CHECKS[function.__name__]


def _number(value: Any) -> str:
    return f"{value:,}".replace(",", " ") if isinstance(value, int) and value >= 10_000 else f"{value:g}"
