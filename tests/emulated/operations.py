"""What instructions compute that touch neither memory nor other threads."""

from tests.emulated import arithmetic, bits, conversions
from tests.emulated.faults import Unknown

_TABLE = arithmetic.TABLE | bits.TABLE | conversions.TABLE


def operation(name, modifiers):
    """The `table.Operation` of an instruction."""
    if name not in _TABLE:
        raise Unknown("there is no such instruction here")
    try:
        return _TABLE[name](modifiers)
    except (KeyError, ValueError):
        raise Unknown("there is no such form of the instruction here") from None
