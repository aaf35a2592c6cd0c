"""Whether the calls of a method change anything, as its proto says it."""

from google.protobuf.descriptor_pb2 import MethodOptions

from onelane.core import keys


def has_no_side_effects(path: str) -> bool:
    """path: `/pkg.Service/Method`. False for a method that no proto describes."""
    descriptor = keys.describe(path)
    return descriptor is not None and descriptor.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS
