"""Windows: torch's convolutions on index spaces, poles and the date line on grids, masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scisparse.errors import GridError, OptionError, ShapeError
from scisparse.grids import LatLonGrid, ProjectedGrid, UnstructuredGrid
from scisparse.pattern import Pattern
from scisparse.patterns import window

MODES = ("zeros", "circular", "reflect", "replicate")
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def torch_convolution(x: Tensor, weight: Tensor, options: dict[str, Any]) -> Tensor:
    """Pad each axis in its own mode, then convolve, as ``nn.Conv`` does with one mode."""
    for axis, mode in enumerate(options["padding_mode"]):
        reach = options["dilation"][axis] * (weight.shape[axis + 2] - 1)
        before, after = reach // 2, reach - reach // 2
        if options["padding"] == "valid":
            before = after = 0
        elif not isinstance(options["padding"], str):
            before = after = options["padding"][axis]
        if before or after:
            line = x.movedim(axis + 2, -1)
            flat = line.reshape(1, -1, line.shape[-1])
            flat = F.pad(flat, (before, after), mode="constant" if mode == "zeros" else mode)
            x = flat.reshape(*line.shape[:-1], -1).movedim(-1, axis + 2)
    return CONVOLUTIONS[x.ndim - 2](
        x, weight, stride=options["stride"], dilation=options["dilation"]
    )


def matmul(pattern: Pattern, x: Tensor, weight: Tensor) -> Tensor:
    """Apply weights [O, C, *k] by tap through a dense matrix."""
    out_channels, in_channels = weight.shape[:2]
    by_tap = weight.reshape(out_channels, in_channels, -1).permute(2, 0, 1)
    dense = torch.zeros(*pattern.shape, out_channels, in_channels, dtype=x.dtype)
    assert pattern.tap is not None
    index = (pattern.rows(), pattern.col.long())
    dense.index_put_(index, by_tap[pattern.tap.long()], accumulate=True)
    return torch.einsum("mnoc,cn->om", dense, x.reshape(in_channels, -1))


def random_case(seed: int) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    rng = np.random.default_rng(seed)
    axes = int(rng.integers(1, 4))

    def draw(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(v) for v in rng.integers(low, high + 1, axes))

    paddings: list[Any] = ["same", "valid", draw(0, 3)]
    options = {
        "stride": draw(1, 3),
        "dilation": draw(1, 2),
        "padding": paddings[rng.integers(3)],
        "padding_mode": tuple(MODES[i] for i in rng.integers(0, 4, axes)),
    }
    return draw(1, 7), draw(1, 4), options


@pytest.mark.parametrize("seeds", [range(k, k + 40) for k in range(0, 240, 40)], ids=str)
def test_index_spaces_are_those_of_torch_convolutions(seeds: range) -> None:
    compared = 0
    for seed in seeds:
        shape, kernel, options = random_case(seed)
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1, 2, *shape, dtype=torch.float64, generator=generator)
        weight = torch.randn(3, 2, *kernel, dtype=torch.float64, generator=generator)
        try:
            expected = torch_convolution(x, weight, options)
        except RuntimeError:  # torch pads no further either
            with pytest.raises(OptionError, match=r"`(kernel_size|padding)`"):
                window(shape, kernel, **options)
            continue
        pattern = window(shape, kernel, **options).validate()
        assert pattern.window is not None
        assert pattern.window.output_size == expected.shape[2:]
        assert pattern.num_taps == np.prod(kernel)
        torch.testing.assert_close(matmul(pattern, x, weight), expected.reshape(3, -1))
        compared += 1
    assert compared > 20


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", [1, "same", 0])
def test_index_spaces_are_those_of_conv2d_modules(mode: Any, padding: int | str) -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(
        2, 3, (3, 2), padding=padding, dilation=(1, 2), bias=False, dtype=torch.float64,
        padding_mode=mode,
    )  # fmt: skip
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64)
    pattern = window((5, 6), (3, 2), padding=padding, dilation=(1, 2), padding_mode=mode)
    torch.testing.assert_close(matmul(pattern, x, conv.weight), conv(x).reshape(3, -1))


def test_taps_number_the_kernel_with_the_last_axis_fastest() -> None:
    pattern = window((3, 3, 3), (3, 3, 3))
    assert pattern.tap is not None
    centre = pattern.tap[pattern.row_ptr[13] : pattern.row_ptr[14]]
    assert centre.tolist() == list(range(27))
    assert pattern.num_taps == 27


def test_a_source_that_padding_repeats_has_several_taps() -> None:
    pattern = window((2,), 5, padding_mode="replicate").validate()
    assert pattern.col.tolist() == [0, 0, 0, 1, 1, 0, 0, 1, 1, 1]
    assert pattern.tap is not None
    assert pattern.tap.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    assert pattern.statistics()["duplicates"] == 6


# -- grids -------------------------------------------------------------------------------------


def sources_by_tap(pattern: Pattern, site: int) -> dict[int, int]:
    start, stop = pattern.row_ptr[site : site + 2].tolist()
    assert pattern.tap is not None
    return dict(
        zip(pattern.tap[start:stop].tolist(), pattern.col[start:stop].tolist(), strict=True)
    )


def test_windows_cross_the_date_line_in_every_convention() -> None:
    lat = np.arange(-60, 61, 30)
    for lon in (np.arange(0, 360, 45), np.arange(-180, 180, 45), np.arange(135, -225, -45)):
        pattern = window(LatLonGrid.from_degrees(lat, lon), 3, poles="zeros").validate()
        assert sources_by_tap(pattern, 16) == {
            0: 15, 1: 8, 2: 9, 3: 23, 4: 16, 5: 17, 6: 31, 7: 24, 8: 25,
        }  # fmt: skip


def test_regional_longitudes_do_not_wrap() -> None:
    pattern = window(LatLonGrid.from_degrees([0, 1, 2], [0, 1, 2]), 3).validate()
    assert pattern.fan_in.tolist() == [4, 6, 4, 6, 9, 6, 4, 6, 4]
    assert pattern.window is not None
    assert pattern.window.padding_modes == ("zeros", "zeros")


@pytest.mark.parametrize("poles", [True, False])
@pytest.mark.parametrize("falling", [True, False])
def test_reflection_reads_the_nearest_points_across_the_pole(poles: bool, falling: bool) -> None:
    """Each tap beyond the pole lies where a step along the meridian, over the pole, leads."""
    grid = LatLonGrid.regular(9, 8, poles=poles)
    if not falling:
        grid = LatLonGrid(grid.lat_axis[::-1], grid.lon_axis)
    pattern = window(grid, (7, 3)).validate()
    assert pattern.fan_in.tolist() == [21] * grid.size
    assert pattern.window is None
    rows, tap = pattern.rows().numpy(), np.asarray(pattern.tap)
    step = grid.lat_axis[1] - grid.lat_axis[0]
    # Latitude beyond the pole, with longitude as is, names the same point of the sphere.
    lat = grid.lat[rows] + (tap // 3 - 3) * step
    lon = grid.lon[rows] + (tap % 3 - 1) * 2 * np.pi / 8
    expected = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    np.testing.assert_allclose(grid.positions()[pattern.col.numpy()], expected, atol=1e-14)


def test_reflection_drops_the_edge_that_is_no_pole() -> None:
    lat = [-60, -30, 0, 30, 60, 90]
    pattern = window(LatLonGrid.from_degrees(lat[1:], np.arange(0, 360, 90)), 3).validate()
    assert pattern.fan_in.tolist() == [6] * 4 + [9] * 16
    both = window(LatLonGrid.from_degrees([-20, 0, 20], np.arange(0, 360, 90)), 3)
    assert both.fan_in.tolist() == [6] * 4 + [9] * 4 + [6] * 4
    assert both.window is not None


@pytest.mark.parametrize(("poles", "mode"), [("clip", "replicate"), ("zeros", "zeros")])
def test_other_pole_modes_are_padding_modes(poles: str, mode: str) -> None:
    options: dict[str, Any] = {"dilation": (1, 2), "stride": (2, 1)}
    grid = LatLonGrid.regular(6, 5)
    pattern = window(grid, (4, 3), poles=poles, **options).validate()
    plain = window((6, 5), (4, 3), padding_mode=(mode, "circular"), **options)
    assert pattern.window == plain.window
    for mine, expected in ((pattern.row_ptr, plain.row_ptr), (pattern.col, plain.col)):
        assert torch.equal(mine, expected)
    assert pattern.tap is not None
    assert plain.tap is not None
    assert torch.equal(pattern.tap, plain.tap)


def test_projected_grids_pad_like_index_spaces() -> None:
    grid = ProjectedGrid([0, 1, 2], [0, 1])
    assert window(grid, 3).fan_in.tolist() == [4, 4, 6, 6, 4, 4]
    wrapped = window(grid, 3, padding_mode=("replicate", "circular"))
    assert wrapped.window == window((3, 2), 3, padding_mode=("replicate", "circular")).window


def test_sites_of_a_stride_form_a_coarser_grid() -> None:
    grid = LatLonGrid.regular(9, 12)
    pattern = window(grid, 3, stride=(2, 3))
    assert pattern.source_grid is grid
    assert pattern.site_grid == LatLonGrid(grid.lat_axis[::2], grid.lon_axis[::3])
    assert window(grid, 3).site_grid is grid
    inner = window(ProjectedGrid(range(9), range(12)), (3, 5), padding="valid")
    assert inner.site_grid == ProjectedGrid(range(1, 8), range(2, 10))
    between = window(ProjectedGrid(range(9), range(12)), 2, padding=0)
    assert between.site_grid is None
    beyond = window(ProjectedGrid(range(9), range(12)), 1, padding=1)
    assert beyond.site_grid is None


def test_even_kernels_with_a_stride_have_no_sites_on_the_grid() -> None:
    """Their windows lie between the sources: at 80 to -80, not at 85 to -75 degrees."""
    grid = LatLonGrid.regular(18, 36, poles=False)
    pattern = window(grid, 2, stride=2)
    assert pattern.shape == (9 * 18, 18 * 36)
    assert pattern.site_grid is None
    assert window(grid, (3, 2), stride=(1, 2)).site_grid is None
    assert window(grid, 2).site_grid is grid
    coarse = window(grid, (3, 2), dilation=(1, 2), stride=2, padding=(1, 0))
    assert coarse.site_grid == LatLonGrid(grid.lat_axis[::2], grid.lon_axis[1::2][:-1])


def test_padding_that_no_tap_reaches_leaves_a_regular_window() -> None:
    """Pairs of rows: the row that is added at the end would be the first of a further pair."""
    pattern = window(LatLonGrid.regular(18, 36, poles=False), 2, stride=2).validate()
    assert pattern.window is not None
    assert pattern.fan_in.tolist() == [4] * (9 * 18)
    assert window(LatLonGrid.regular(17, 36, poles=False), 2, stride=2).window is None
    assert window(LatLonGrid.regular(4, 5), 2, stride=2).num_edges == 2 * 3 * 4


def test_sites_of_a_stride_keep_latitude_and_longitude() -> None:
    lat, lon = np.random.default_rng(0).uniform(0, 1, (2, 4, 5))
    pattern = window(ProjectedGrid(range(4), range(5), None, lat, lon), 3, stride=2)
    assert pattern.site_grid is not None
    np.testing.assert_array_equal(pattern.site_grid.lat, lat[::2, ::2].ravel())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("poles", ["reflect", "clip", "zeros"])
def test_masked_points_are_neither_read_nor_sites(poles: str, stride: int) -> None:
    grid = LatLonGrid.regular(6, 8)
    mask = np.random.default_rng(1).random((6, 8)) < 0.6
    whole = window(grid, 3, poles=poles, stride=stride)
    pattern = window(grid.with_mask(mask), 3, poles=poles, stride=stride).validate()
    sites = torch.from_numpy(mask[::stride, ::stride].ravel().copy())
    expected = whole.restrict(sites, torch.from_numpy(mask.ravel()))
    assert torch.equal(pattern.row_ptr, expected.row_ptr)
    assert torch.equal(pattern.col, expected.col)
    assert pattern.tap is not None
    assert expected.tap is not None
    assert torch.equal(pattern.tap, expected.tap)
    assert (pattern.window, pattern.num_taps) == (None, 9)
    assert pattern.site_grid is not None
    assert pattern.site_grid.mask is not None
    assert torch.equal(torch.from_numpy(pattern.site_grid.valid), sites)


def test_nothing_is_left_of_a_mask_without_points() -> None:
    grid = LatLonGrid.regular(4, 4).with_mask(np.zeros((4, 4), dtype=bool))
    pattern = window(grid, 3).validate()
    assert (pattern.num_edges, pattern.shape, pattern.num_taps) == (0, (16, 16), 9)


def test_sizes_are_integers_of_any_kind() -> None:
    expected = window((4, 6), (3, 2), stride=2, padding=1)
    given = window(np.array([4, 6]), np.array([3, 2]), stride=np.int32(2), padding=np.uint8(1))  # type: ignore[arg-type]
    assert given == expected
    assert given.window == expected.window
    for spec in (given.window.kernel_size, given.window.stride, given.window.input_size):  # type: ignore[union-attr]
        assert [type(size) for size in spec] == [int, int]


# -- errors ------------------------------------------------------------------------------------

GLOBE = LatLonGrid.regular(4, 6)
ERRORS: dict[str, tuple[Any, type[ValueError], str]] = {
    "points": (lambda: window(UnstructuredGrid([0], [0]), 3), GridError, "use radius or nearest"),
    "no sizes": (lambda: window((), 3), ShapeError, r"`grid_or_shape` \(=\(\)\) must hold sizes"),
    "zero": (lambda: window((3, 0), 3), ShapeError, r"=\(3, 0\)\) must hold sizes of at least 1"),
    "no tuple": (lambda: window(5, 3), ShapeError, r"`grid_or_shape` \(=5\) must be a grid, or"),  # type: ignore[arg-type]
    "float size": (lambda: window((5.5,), 3), ShapeError, r"`grid_or_shape` \(=\(5.5,\)\) must"),  # type: ignore[arg-type]
    "huge": (lambda: window((2**32, 2**32), 3), ShapeError, r"fewer than 2\*\*31 points"),
    "poles": (lambda: window(GLOBE, 3, poles="wrap"), OptionError, "`poles` .='wrap'. must be"),
    "mode on globe": (lambda: window(GLOBE, 3, padding_mode="zeros"), OptionError, "takes poles="),
    "mode": (lambda: window((4,), 3, padding_mode="wrap"), OptionError, "`padding_mode` .='wrap'"),
    "modes": (lambda: window((4,), 3, padding_mode=("zeros",) * 2), OptionError, "each of 1 axes"),
    "padding": (lambda: window((4,), 3, padding="full"), OptionError, "`padding` .='full'. must"),
    "negative": (lambda: window((4,), 3, padding=-1), OptionError, "`padding` .=-1. .* at least 0"),
    "kernel": (lambda: window((4,), 0), OptionError, "`kernel_size` .=0. .* at least 1"),
    "stride": (lambda: window((4, 4), 3, stride=(1, 0)), OptionError, r"`stride` \(=\(1, 0\)\)"),
    "dilation": (lambda: window((4,), 3, dilation=(1, 1)), OptionError, "`dilation` .* 1 axes"),
    "float kernel": (
        lambda: window((4, 4), 2.0),  # type: ignore[arg-type]
        OptionError,
        r"`kernel_size` \(=2.0\) must be one integer of at least 1, or one for each of 2 axes",
    ),
    "float in kernel": (
        lambda: window((4, 4), (3, 2.5)),  # type: ignore[arg-type]
        OptionError,
        r"`kernel_size` \(=\(3, 2.5\)\) must be one integer",
    ),
    "no stride": (lambda: window((4,), 3, stride=None), OptionError, "`stride` .=None. must"),  # type: ignore[arg-type]
    "text": (lambda: window((4,), 3, dilation="2"), OptionError, "`dilation` .='2'. must be one"),  # type: ignore[arg-type]
    "mode 3": (lambda: window((4,), 3, padding_mode=3), OptionError, "`padding_mode` .=3. must"),  # type: ignore[arg-type]
    "too large": (lambda: window((4,), 5, padding=0), OptionError, "must fit axis 0 of size 4"),
    "circle": (
        lambda: window(LatLonGrid.regular(4, 2), 7, poles="zeros"),
        OptionError,
        "`padding` .=3 on axis 1. must be at most 2 in mode 'circular' for size 2",
    ),
    "odd": (
        lambda: window(LatLonGrid.regular(4, 5), 3),
        GridError,
        "`poles` .* an even number of longitudes .* not 5; use poles='clip'",
    ),
    "open": (
        lambda: window(LatLonGrid.from_degrees([88, 89, 90], [0, 1]), 3),
        GridError,
        "`poles` .='reflect'. needs evenly spaced longitudes all around",
    ),
    "over both poles": (
        lambda: window(LatLonGrid.regular(3, 4), (9, 1)),
        OptionError,
        "4 rows beyond a pole. must reach at most the other pole of a grid of 3 rows",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_value_rule_and_remedy(case: str) -> None:
    build, kind, message = ERRORS[case]
    with pytest.raises(kind, match=message):
        build()


def test_reflection_is_not_needed_without_taps_beyond_the_pole() -> None:
    odd = LatLonGrid.regular(4, 5)
    assert window(odd, (1, 3)).fan_in.tolist() == [3] * 20
    assert window(odd, 3, padding=(0, 1)).shape == (10, 20)
    north = LatLonGrid.from_degrees([90, 60, 30], np.arange(0, 360, 72))
    assert window(north, (2, 1)).fan_in.tolist() == [2] * 10 + [1] * 5
