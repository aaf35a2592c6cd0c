"""Which roles may call a method: `[apps.NAME.auth.methods]`, and what holds for the runtime's own services. Pure.

The most specific pattern decides alone: the method's own name, else the longest that ends in `*`. A method that no
pattern names is closed to everybody.
"""

from collections.abc import Iterable, Mapping

PUBLIC = "public"
"""In the place of a role: everybody, without credentials too."""
AUTHENTICATED = "authenticated"
"""In the place of a role: everybody with valid credentials, whatever their roles."""
OPEN_BY_DEFAULT = ("grpc.health.v1.Health/*", "onelane.v1.Topology/Watch")
"""Patterns of the runtime's own methods that stay public unless a pattern names them; `*` alone does not. Load
balancers probe health without credentials, and a client asks for the ring before it makes a call."""
SIBLINGS_ALONE = "onelane.v1.Siblings/"
"""Methods that no client may call, whatever the patterns say."""
Roles = frozenset[str]
NOBODY: Roles = frozenset()
EVERYBODY: Roles = frozenset({PUBLIC})


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern names a method. name: `pkg.Service/Method`."""
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def pattern_for(name: str, patterns: Iterable[str]) -> str | None:
    """The most specific of the patterns that name a method; None where none does."""
    named = [pattern for pattern in patterns if matches(pattern, name)]
    # A name without a star is longer than every pattern with one that names the same method, or as long.
    return max(named, key=lambda pattern: (len(pattern.removesuffix("*")), not pattern.endswith("*")), default=None)


class Permissions:
    """The roles that may call each method."""

    def __init__(self, methods: Mapping[str, Iterable[str]]) -> None:
        """methods: pattern → roles."""
        self._methods = {pattern: frozenset(roles) for pattern, roles in methods.items()}

    def roles_for(self, name: str) -> Roles:
        """The roles that may call the method `pkg.Service/Method`."""
        if name.startswith(SIBLINGS_ALONE):
            return NOBODY
        pattern = pattern_for(name, self._methods)
        if pattern in (None, "*") and self.is_open_by_default(name):
            return EVERYBODY
        return NOBODY if pattern is None else self._methods[pattern]

    def is_open_by_default(self, name: str) -> bool:
        """Whether a method of the runtime's own is public, and no pattern but `*` names it."""
        return pattern_for(name, self._methods) in (None, "*") and pattern_for(name, OPEN_BY_DEFAULT) is not None
