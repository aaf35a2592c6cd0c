"""The pages of the reference that are made from the code."""

from docs.generator import api, commands, settings, statuses


def generated() -> dict[str, str]:
    """Path in the site → text."""
    return {
        "reference/settings.md": settings.page(),
        "reference/commands.md": commands.page(),
        "reference/errors.md": statuses.page(),
        **api.pages(),
    }
