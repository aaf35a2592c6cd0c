"""The reference of the command line, from the commands themselves."""

import inspect
from collections.abc import Iterator

import click
from onelane.cli.main import main


def page() -> str:
    """The whole reference, as Markdown."""
    intro = (
        "Every command with its arguments and options, as the program has them. Commands that ask a running "
        "`onelane up` take its admin address from `--admin IP:PORT`, else from `ONELANE_ADMIN`, else from "
        "./onelane.toml, else 127.0.0.1:9464. In a pipe, tables are words in columns, as many in each row as in the "
        "header."
    )
    parts = ["# Commands", intro, _exit_codes()]
    for name, command in commands():
        parts += [f"## {name}", inspect.cleandoc(command.help or "").replace("\b", ""), _usage(name, command)]
        parts += [_options(command)]
    return "\n\n".join(filter(None, parts)) + "\n"


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with its whole name: `onelane state ls`."""

    def below(name: str, group: click.Group) -> Iterator[tuple[str, click.Command]]:
        for word, command in sorted(group.commands.items()):
            if isinstance(command, click.Group):
                yield from below(f"{name} {word}", command)
            else:
                yield f"{name} {word}", command

    yield from below("onelane", main)


def _usage(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=name)
    return f"```text\n{' '.join([name, *command.collect_usage_pieces(context)])}\n```"


def _options(command: click.Command) -> str:
    rows = []
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            spelled = ", ".join(f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts))
            rows.append(f"| {spelled} | {_cell(parameter.help)} |")
    return "\n".join(["| option | |", "|---|---|", *rows]) if rows else ""


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _exit_codes() -> str:
    rows = [
        "| exit code | of a command |",
        "|--:|---|",
        "| 0 | success |",
        "| 1 | failure: a service could not be made, nothing listens at the address, the request was refused |",
        "| 2 | wrong usage |",
        "| 3 | the file, or what it names, has faults |",
        "| 4 | a port is taken |",
        "| 64 + n | `call`: the call has ended with gRPC's status n |",
        "| 130 | `up` was ended at once by a second signal; `call` by Ctrl-C; `restart` or `scale` by Ctrl-C, and the "
        "change goes on |",
    ]
    return "\n".join(rows)
