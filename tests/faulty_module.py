"""A module that cannot be imported."""

raise NameError("name 'DATABASE' is not defined")
