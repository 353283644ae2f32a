"""Orders of points in which neighbours have near numbers, for ``Pattern.reorder``."""

from __future__ import annotations

from scisparse.orders.curves import hilbert as hilbert
from scisparse.orders.curves import morton as morton
from scisparse.orders.graphs import cuthill_mckee as cuthill_mckee
from scisparse.orders.pixels import healpix_nested as healpix_nested

__all__ = ["cuthill_mckee", "healpix_nested", "hilbert", "morton"]
