"""The pages of the reference that are made from the code."""

from docs.generator import settings


def generated() -> dict[str, str]:
    """Path in the site → text."""
    return {"reference/settings.md": settings.page()}
