"""Where a network would grow by its shape alone: scores of links that are not there.

Sites and sources of a layer are the two sides of a bipartite graph, its edges the links. A missing
link is likely where short paths join its ends and stay among themselves, away from the rest of the
network. No gradient is needed, nor any data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scisparse.errors import OptionError
from scisparse.pattern.edges import row_ptr_of_fan_in

__all__ = ["Links", "break_ties", "cannistraci_hebb"]

_PATHS_AT_ONCE = 1 << 21
_NUMBERS_AT_ONCE = 1 << 23


@dataclass(frozen=True)
class Links:
    """Links that there are, and candidates for more.

    Parameters
    ----------
    row_ptr, col
        Links: site m has the sources ``col[row_ptr[m]:row_ptr[m + 1]]``.
    sources
        How many sources there are.
    site, source
        Ends of the candidates, ``[n]``; sites must not fall.
    """

    row_ptr: Tensor
    col: Tensor
    sources: int
    site: Tensor
    source: Tensor

    @classmethod
    def of_matrix(cls, present: Tensor, groups: int = 1) -> Links:
        """Take links that booleans ``[M, N]`` mark, and all pairs as candidates.

        With `groups` each group of sites that follow each other reads N sources of its own.

        Examples
        --------
        >>> links = Links.of_matrix(torch.tensor([[True, False], [True, True]]))
        >>> links.row_ptr.tolist(), links.col.tolist(), links.source.tolist()
        ([0, 1, 3], [0, 0, 1], [0, 1, 0, 1])
        """
        present = present.cpu()
        sites, sources = present.shape
        row_ptr = row_ptr_of_fan_in(present.sum(1))
        site = torch.arange(sites).repeat_interleave(sources)
        source = torch.arange(sources).repeat(sites) + site * groups // max(1, sites) * sources
        return cls(row_ptr, source[present.flatten()], sources * groups, site, source)


def cannistraci_hebb(
    row_ptr: Tensor, col: Tensor, sources: int, site: Tensor, source: Tensor
) -> Tensor:
    r"""Score missing links by CH3-L3, the third Cannistraci-Hebb rule on paths of length three.

    .. math:: \mathrm{score}(u, v) =
        \sum_{z_1 \in N(u),\, z_2 \in N(v),\, z_1 \in N(z_2)}
        \frac{1}{\sqrt{(1 + e_{z_1}) (1 + e_{z_2})}}

    The nodes between the ends of all these paths are the local community of `u` and `v`; the
    external degree :math:`e_z` counts the links of `z` that lead neither to `u`, nor to `v`, nor
    into the community. In a bipartite graph ``1 + e_z1`` is the degree of `z1` less the neighbours
    that it shares with `v`, and ``1 + e_z2`` that of `z2` less those that it shares with `u`.

    Parameters
    ----------
    row_ptr, col
        Links: site m has the sources ``col[row_ptr[m]:row_ptr[m + 1]]``; those that are there
        twice count once.
    sources
        How many sources there are, N.
    site, source
        Ends `u` and `v` of the candidates; sites must not fall.

    Returns
    -------
    Tensor
        float64; 0 where no such path is, and for links that are there already.

    Raises
    ------
    OptionError
        The sites of the candidates are not in order.

    Notes
    -----
    Time is in proportion to the paths of length three from the sites of the candidates; where they
    are many and nearly all pairs are candidates, a path takes a fraction of the time. Memory is
    that of the links, a few numbers for each candidate, and a block of bounded size.

    References
    ----------
    Muscoloni, A., Michieli, U., Cannistraci, C. V. (2020). Adaptive network automata modelling of
    complex networks. https://doi.org/10.20944/preprints202012.0808

    Zhang, Y., Zhao, J., Wu, W., Muscoloni, A., Cannistraci, C. V. (2024). Epitopological learning
    and Cannistraci-Hebb network shape intelligence brain-inspired theory for ultra-sparse advantage
    in deep learning. ICLR. https://openreview.net/forum?id=iayEcORsGd

    Examples
    --------
    Two sites share source 0; the second also reads source 1, which the first may come to read. On
    the only path no node has a link that leads elsewhere:

    >>> row_ptr, col = torch.tensor([0, 1, 3]), torch.tensor([0, 0, 1])
    >>> cannistraci_hebb(row_ptr, col, 2, torch.tensor([0]), torch.tensor([1]))
    tensor([1.], dtype=torch.float64)
    """
    if bool((site.diff() < 0).any()):
        raise OptionError("`site` must not fall: sort the candidates by site, then by source")
    u, v = site.cpu().numpy(), source.cpu().numpy()
    links = _matrix(row_ptr, col, sources)
    if not u.size or not links.nnz:
        return torch.zeros(u.size, dtype=torch.float64)
    first, last = int(u[0]), int(u[-1]) + 1
    by_source = links.T.tocsr()
    ends = by_source @ np.diff(links.indptr).astype(np.float64)  # links two steps off a source
    paths = ends[links.indices[links.indptr[first] : links.indptr[last]]]
    numbers = (last - first) * sources
    # A path costs about eight times as much as a number of a dense row of sources.
    if 4 * u.size >= numbers and 8 * paths.sum() > paths.size * sources:
        score = _by_sources(links, by_source, u, v)
    else:
        score = _by_paths(links, by_source, paths, u, v)
    score[_entries(links[first:last], u - first, v) > 0] = 0
    return torch.from_numpy(score)


def _matrix(row_ptr: Tensor, col: Tensor, sources: int) -> Any:
    """Links as a sparse matrix of ones, ``[M, N]``."""
    from scipy.sparse import csr_array

    index = np.int32 if max(col.numel(), sources) < 1 << 31 else np.int64
    ends, start = col.cpu().numpy().astype(index), row_ptr.cpu().numpy().astype(index)
    links = csr_array((np.ones(col.numel()), ends, start), shape=(row_ptr.numel() - 1, sources))
    links.sum_duplicates()
    links.data[:] = 1
    return links


def _entries(matrix: Any, row: Any, column: Any) -> Any:
    """Entries of a sparse matrix with rising indices, ``[n]``; 0 where nothing is stored."""
    rows, columns = matrix.shape
    if not matrix.nnz:
        return np.zeros(row.size)
    stored = np.repeat(np.arange(rows), np.diff(matrix.indptr)) * columns + matrix.indices
    wanted = row * columns + column
    if stored.size < wanted.size and bool((wanted[1:] > wanted[:-1]).all()):  # the faster way
        found, place = np.zeros(row.size), np.searchsorted(wanted, stored)
        there = wanted[np.minimum(place, wanted.size - 1)] == stored
        found[place[there]] = matrix.data[there]
        return found
    place = np.minimum(np.searchsorted(stored, wanted), stored.size - 1)
    return np.where(stored[place] == wanted, matrix.data[place], 0.0)


def _inverse_root(one_and_external: Any) -> Any:
    """``1 / sqrt(1 + e)``, and 0 where no missing link asks for it: all links end in the other."""
    least_one = np.maximum(one_and_external, 1)
    return np.where(one_and_external >= 1, 1 / np.sqrt(least_one), 0.0)


def _by_paths(links: Any, by_source: Any, paths: Any, u: Any, v: Any) -> Any:
    """Scores of some pairs, from a bounded number of paths at a time.

    A block holds edges ``(u, z1)``. Its rows of weights and ones at `z2`, as real and imaginary
    parts, times the links give both the sum of ``1 / sqrt(1 + e_z2)`` and the neighbours that `z1`
    shares with `v`.
    """
    score = np.zeros(u.size)
    start = links.indptr[u[0]]
    edge = 0
    done = np.cumsum(paths)
    while edge < paths.size:
        before = done[edge - 1] if edge else 0
        stop = max(edge + 1, int(np.searchsorted(done, before + _PATHS_AT_ONCE, side="right")))
        edges = np.arange(start + edge, start + stop)
        row = np.searchsorted(links.indptr, edges, side="right") - 1
        asked = slice(*np.searchsorted(u, [row[0], row[-1] + 1]))
        if asked.stop > asked.start:
            table = _scores_of_edges(links, by_source, links.indices[edges], row)
            score[asked] += _entries(table, u[asked] - row[0], v[asked])
        edge = stop
    return score


def _scores_of_edges(links: Any, by_source: Any, z1: Any, row: Any) -> Any:
    """Scores as a sparse matrix ``[row[-1] - row[0] + 1, N]`` from paths over edges ``(row, z1)``.

    Rows rise.
    """
    from scipy.sparse import csr_array

    sites, first = row[-1] - row[0] + 1, row[0]
    step = by_source[z1]
    of_entry, z2 = np.repeat(row, np.diff(step.indptr)), step.indices
    shared = (links[first : first + sites] @ by_source).sorted_indices()
    weight = _inverse_root(np.diff(links.indptr)[z2] - _entries(shared, of_entry - first, z2))
    weight[z2 == of_entry] = 0
    step = csr_array((weight + 1j * (weight > 0), z2, step.indptr), shape=step.shape)
    found = step @ links
    degree = np.repeat(np.diff(by_source.indptr)[z1], np.diff(found.indptr))
    values = found.data.real * _inverse_root(degree - found.data.imag)
    found = csr_array((values, found.indices, found.indptr), shape=found.shape)
    bounds = np.searchsorted(row, np.arange(first, first + sites + 1))
    return (csr_array((np.ones(row.size), np.arange(row.size), bounds)) @ found).sorted_indices()


def _by_sources(links: Any, by_source: Any, u: Any, v: Any) -> Any:
    """Scores of some pairs, from all pairs of a bounded number of sites at a time."""
    score = np.zeros(u.size)
    step = max(1, _NUMBERS_AT_ONCE // max(links.shape))
    for first in range(int(u[0]), int(u[-1]) + 1, step):
        last = min(first + step, links.shape[0])
        asked = slice(*np.searchsorted(u, [first, last]))
        if asked.stop > asked.start:
            table = _scores_of_sites(links, by_source, first, last)
            score[asked] = table[u[asked] - first, v[asked]]
    return score


def _scores_of_sites(links: Any, by_source: Any, first: int, last: int) -> Any:
    """Scores ``[last - first, N]`` of sites from `first` on, from one source `z1` at a time."""
    sources = links.shape[1]
    score = np.zeros((last - first, sources))
    weight = np.diff(links.indptr) - (links[first:last] @ by_source).toarray()
    weight = _inverse_root(weight)  # of each z2
    weight[np.arange(last - first), np.arange(first, last)] = 0
    for z1 in range(sources):
        near = by_source.indices[by_source.indptr[z1] : by_source.indptr[z1 + 1]]
        u = near[slice(*np.searchsorted(near, [first, last]))] - first
        if u.size and near.size > 1:
            linked = links[near]  # of all z2 to v
            shared = np.bincount(linked.indices, minlength=sources)
            linked.data = _inverse_root(near.size - shared)[linked.indices]
            score[u] += (linked.T @ weight[np.ix_(u, near)].T).T
    return score


def break_ties(score: Tensor, generator: torch.Generator) -> Tensor:
    """Order equal scores at random and leave the order of all others.

    Scores are rounded to float32, so that sums in another order are equal. What is added is less
    than the step to the next number of float32, and less than any score where that is 0.

    Parameters
    ----------
    score
        ``[n]``, each 0 or above 1e-20.
    generator
        Of random numbers, on the CPU.

    Returns
    -------
    Tensor
        float64 ``[n]``.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> broken = break_ties(torch.tensor([0.0, 0.5, 0.0, 0.5 + 2**-24]), generator)
    >>> broken.unique().numel(), broken.argsort().tolist()[2:]
    (4, [1, 3])
    """
    chance = torch.rand(score.shape, generator=generator, dtype=torch.float64)
    rounded = score.float().double()
    return rounded * (1 + chance * 2**-24) + chance * 1e-30
