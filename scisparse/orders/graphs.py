"""Orders that follow the edges of a pattern, wherever its points lie."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from scisparse.errors import PatternError
from scisparse.pattern import Pattern

__all__ = ["cuthill_mckee"]


def cuthill_mckee(pattern: Pattern) -> Tensor:
    """Number sites so that edges join near numbers: reverse Cuthill-McKee.

    From a site with few neighbours on, the neighbours of each site follow, those with the fewest
    first; then all is reversed. Edges count in both directions. It keeps edges near the diagonal,
    which is good where fan-ins are much alike; those of a fixed radius on a latitude-longitude
    grid, hundreds near the poles, are better off along a curve.

    Parameters
    ----------
    pattern
        Whose sites are its sources too.

    Returns
    -------
    torch.Tensor
        int64 ``[M]``: the number of the site that comes first, second and so on.

    Raises
    ------
    PatternError
        `pattern` is no ``Pattern``, or has other numbers of sites than of sources.

    References
    ----------
    Cuthill, E., McKee, J. (1969). Reducing the bandwidth of sparse symmetric matrices.
    https://doi.org/10.1145/800195.805928

    Examples
    --------
    >>> import torch
    >>> from scisparse.patterns import sliding_window
    >>> mixed = sliding_window(5, 3).reorder(torch.tensor([3, 0, 4, 1, 2]))
    >>> line = mixed.reorder(cuthill_mckee(mixed))
    >>> [int((p.rows() - p.col).abs().max()) for p in (mixed, line)]
    [4, 1]
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    if not isinstance(pattern, Pattern):
        raise PatternError(
            f"`pattern` is a {type(pattern).__name__}; give a pattern, such as "
            "patterns.nearest(grid, 8)"
        )
    sites, sources = pattern.shape
    if sites != sources:
        raise PatternError(
            f"`pattern` must have sites that are its sources too; it has {sites} and {sources}"
        )
    if not sites:
        return torch.empty(0, dtype=torch.int64, device="cpu")
    pattern = pattern.to("cpu")
    edges = np.ones(pattern.num_edges, dtype=np.bool_), pattern.col.numpy(), pattern.row_ptr.numpy()
    one_way = csr_array(edges, shape=pattern.shape)
    order = reverse_cuthill_mckee(one_way + one_way.T, symmetric_mode=True)
    return torch.from_numpy(order.astype(np.int64))
