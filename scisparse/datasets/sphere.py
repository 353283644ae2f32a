"""Advection by a zonal flow and diffusion on the sphere, stepped without error in time.

Fields have dims ``[..., lat, lon]`` on rings of cells between the poles: latitudes at the middle of
`nlat` equal bands, `nlon` equal longitudes. Diffusion is a flux between rings (finite volumes,
which keep the area mean) and exact along a ring; each zonal wavenumber has its own matrix, which is
exponentiated. Steps of any length are stable.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scisparse.grids import EARTH_RADIUS

__all__ = [
    "apply_zonal",
    "area_weights",
    "band_latitudes",
    "diffusion_matrices",
    "kernel_variance",
    "transport_matrices",
]

Array = NDArray[np.float64]

_BLOCK = 20_000  # cells worked on at once, so that they stay in cache


def band_latitudes(nlat: int) -> Array:
    """Middle of `nlat` equal bands from south to north, radians."""
    return np.asarray((np.arange(nlat) + 0.5) * (np.pi / nlat) - np.pi / 2, dtype=np.float64)


def area_weights(nlat: int) -> Array:
    """Share of the sphere's area in each of `nlat` bands."""
    edges = np.linspace(-np.pi / 2, np.pi / 2, nlat + 1)
    return np.asarray(np.diff(np.sin(edges)) / 2, dtype=np.float64)


def diffusion_matrices(shape: tuple[int, int], spread: float) -> Array:
    r"""Matrices of the diffusion over a time, one for each zonal wavenumber.

    They apply :math:`\exp(s \nabla^2)`, which multiplies a spherical harmonic of degree l by
    :math:`\exp(-s\, l (l + 1) / R^2)`.

    Parameters
    ----------
    shape
        Numbers of latitudes and longitudes.
    spread
        Diffusivity times time, s in m^2; half the square of a smoothing length.

    Returns
    -------
    numpy.ndarray
        Float64 ``[nlon // 2 + 1, nlat, nlat]``.
    """
    nlat, nlon = shape
    area = area_weights(nlat) * 2
    edge = np.cos(np.linspace(-np.pi / 2, np.pi / 2, nlat + 1)[1:-1]) / (np.pi / nlat)
    flux = np.zeros((nlat, nlat))
    below, above = np.arange(nlat - 1), np.arange(1, nlat)
    flux[below, above] = flux[above, below] = edge
    flux -= np.diag(flux.sum(axis=1))
    wave = np.arange(nlon // 2 + 1)[:, None] / np.cos(band_latitudes(nlat))
    # D^-1 F is similar to the symmetric D^-1/2 F D^-1/2, whose eigenvalues are real and at most 0.
    root = np.sqrt(area)
    operator = flux / root[:, None] / root - np.einsum("mi,ij->mij", wave**2, np.eye(nlat))
    values, vectors = np.linalg.eigh(operator)
    values[0, -1] = 0.0  # of the mean, which diffusion keeps; eigh leaves rounding here
    decay = np.exp(values * (spread / EARTH_RADIUS**2))
    matrices: Array = (vectors * decay[:, None, :]) @ vectors.swapaxes(1, 2) / root[:, None] * root
    return matrices


def transport_matrices(
    shape: tuple[int, int], wind: Array, diffusivity: float, seconds: float
) -> NDArray[np.complex128]:
    """Matrices of half the advection over a time, the diffusion, the other half of the advection.

    Parameters
    ----------
    shape
        Numbers of latitudes and longitudes.
    wind
        Eastward wind of each latitude, m/s.
    diffusivity
        In m^2/s.
    seconds
        Length of the step.

    Returns
    -------
    numpy.ndarray
        Complex128 ``[nlon // 2 + 1, nlat, nlat]``.
    """
    nlat, nlon = shape
    angle = wind * seconds / (EARTH_RADIUS * np.cos(band_latitudes(nlat)))
    wave = np.arange(nlon // 2 + 1, dtype=np.float64)
    if nlon % 2 == 0:
        wave[-1] = 0.0  # the shortest wave has no phase to turn
    half = np.exp(-0.5j * wave[:, None] * angle)
    result: NDArray[np.complex128] = (
        half[:, :, None] * diffusion_matrices(shape, diffusivity * seconds) * half[:, None, :]
    )
    return result


def apply_zonal(matrices: NDArray[np.inexact], field: Array) -> Array:
    """Apply one matrix for each zonal wavenumber to fields ``[..., lat, lon]``."""
    nlat, nlon = field.shape[-2:]
    fields = field.reshape(-1, nlat, nlon)
    result = np.empty(fields.shape)
    block = max(1, _BLOCK // (nlat * nlon))
    for first in range(0, len(fields), block):
        some = slice(first, first + block)
        waves = np.fft.rfft(fields[some], axis=-1).transpose(2, 1, 0)
        moved = (matrices @ waves).transpose(2, 1, 0)
        result[some] = np.fft.irfft(moved, n=nlon, axis=-1)
    return result.reshape(field.shape)


def kernel_variance(matrices: Array, nlon: int) -> Array:
    """Variance at each latitude of smoothed white noise, white meaning unit variance over area.

    Parameters
    ----------
    matrices
        From `diffusion_matrices`.
    nlon
        Number of longitudes.

    Returns
    -------
    numpy.ndarray
        Float64 ``[nlat]``, for white noise of variance 1 / (share of the sphere's area) a cell.
    """
    kernel = np.fft.irfft(matrices, n=nlon, axis=0)
    area = area_weights(matrices.shape[1]) / nlon
    variance: Array = np.einsum("lij,j->i", kernel**2, 1.0 / area)
    return variance
