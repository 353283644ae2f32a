"""Maps of points: a marker for each one where it is, and fields without gaps."""

from __future__ import annotations

import io

import matplotlib.image
import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import ConvexHull

from scisparse import grids, plots
from scisparse.errors import DataError, GridError
from scisparse.verification import evaluate

UNITS = {"long_name": "temperature", "units": "K"}
FloatArray = NDArray[np.float64]


def at(lat: ArrayLike, lon: ArrayLike, values: ArrayLike | None = None) -> xr.DataArray:
    """Field at points, in degrees; random values by default."""
    lat, lon = np.asarray(lat, dtype=float), np.asarray(lon, dtype=float)
    if values is None:
        values = np.random.default_rng(lat.size).normal(280.0, 9.0, lat.size)
    coords = {"lat": ("station", lat), "lon": ("station", lon)}
    return xr.DataArray(np.asarray(values), coords, "station", "t2m", UNITS)


def scattered(count: int, seed: int = 0) -> xr.DataArray:
    """Stations around the date line, some missing."""
    rng = np.random.default_rng(seed)
    lon = rng.uniform(165.0, 200.0, count)
    field = at(rng.uniform(-25.0, 10.0, count), (lon + 180.0) % 360.0 - 180.0)
    return field.where(xr.DataArray(np.arange(count) % 9 != 4, dims="station"))


def smooth(grid: grids.UnstructuredGrid) -> xr.DataArray:
    x = grid.positions()
    return at(np.rad2deg(grid.lat), np.rad2deg(grid.lon), x[:, 2] + x[:, 0] * x[:, 1])


def markers(axes: Axes) -> EllipseCollection:
    """Markers of all points; copies at the other end of the globe come after."""
    first = axes.collections[0]
    assert isinstance(first, EllipseCollection)
    return first


def places(axes: Axes) -> FloatArray:
    return np.asarray(markers(axes).get_offsets())


def shown(axes: Axes) -> FloatArray:
    return np.ma.masked_invalid(np.ma.asarray(markers(axes).get_array())).filled(np.nan)


def pixels(figure: Figure) -> FloatArray:
    """Colours of the first map inside its frame, ``[rows, columns, 4]``."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    file.seek(0)
    image = np.asarray(matplotlib.image.imread(file), dtype=np.float64)
    box = figure.axes[0].get_window_extent()
    scale = 150.0 / figure.dpi
    left, right = int(box.x0 * scale) + 3, int(box.x1 * scale) - 3
    top, bottom = len(image) - int(box.y1 * scale) + 3, len(image) - int(box.y0 * scale) - 3
    return image[top:bottom, left:right]


def share_of(colour: str, image: FloatArray) -> float:
    return float(np.mean(np.abs(image - to_rgba(colour)).max(axis=-1) < 0.01))


def test_each_point_is_a_marker_of_its_value() -> None:
    field = scattered(80)
    axes = plots.map_field(field, title="stations").axes[0]
    np.testing.assert_array_equal(shown(axes), field.values)
    np.testing.assert_allclose(places(axes)[:, 1], field["lat"].values)
    np.testing.assert_allclose(places(axes)[:, 0] % 360.0, field["lon"].values % 360.0, atol=1e-4)
    assert axes.get_title(loc="left") == "stations"
    (bar,) = axes.child_axes
    assert isinstance(bar, Axes)
    assert bar.get_ylabel() == "temperature [K]"
    assert markers(axes).get_rasterized()
    assert markers(axes).get_cmap().name == "viridis"


def test_missing_points_are_grey() -> None:
    field = scattered(80)
    figure = plots.map_field(field)
    image = pixels(figure)  # matplotlib gives markers their colours when it draws
    faces = np.asarray(markers(figure.axes[0]).get_facecolor())
    grey = np.all(faces == to_rgba("0.82"), axis=1)
    np.testing.assert_array_equal(grey, field.isnull())
    assert share_of("0.82", image) > 0.001
    assert share_of("white", image) > 0.5


@pytest.mark.parametrize("centre", [0.0, 180.0, -65.0, 350.0])
def test_a_region_is_in_one_piece_wherever_it_lies(centre: float) -> None:
    rng = np.random.default_rng(3)
    offset = np.concatenate([[-20.0, 20.0], rng.uniform(-20.0, 20.0, 38)])
    lat = rng.uniform(-30.0, 50.0, 40)
    lon = (centre + offset + 180.0) % 360.0 - 180.0
    figure = plots.map_field(at(lat, lon))
    left, right = figure.axes[0].get_xlim()
    assert 40.0 < right - left < 46.0
    across = places(figure.axes[0])[:, 0]
    np.testing.assert_allclose(across - across[0], offset - offset[0], atol=2e-4)
    assert across.min() > left
    assert across.max() < right
    # From 0 to 360 it is the same map.
    np.testing.assert_allclose(places(plots.map_field(at(lat, lon % 360.0)).axes[0])[:, 0], across)


def test_labels_run_across_the_date_line() -> None:
    figure = plots.map_field(scattered(80))
    pixels(figure)
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert {"170°E", "180°", "170°W"} <= set(labels)


def triangles(level: int) -> grids.UnstructuredGrid:
    """Middles of the triangles of an icosahedral mesh, the cells of ICON."""
    corners = grids.icosahedral(level).positions()
    x, y, z = corners[ConvexHull(corners).simplices].mean(1).T
    return grids.UnstructuredGrid(np.arctan2(z, np.hypot(x, y)), np.arctan2(y, x))


@pytest.mark.parametrize(
    "grid",
    [grids.healpix(16), grids.reduced_gaussian("O96"), grids.icosahedral(3), triangles(3)],
    ids=["healpix", "gaussian", "icosahedral", "triangles"],
)
def test_global_grids_read_as_fields(grid: grids.UnstructuredGrid) -> None:
    figure = plots.map_field(smooth(grid))
    axes = figure.axes[0]
    assert axes.get_xlim() == (-180.0, 180.0)
    assert axes.get_ylim() == (-90.0, 90.0)
    assert np.abs(places(axes)[:, 0]).max() <= 180.0
    assert share_of("white", pixels(figure)) < 1e-4
    # No disc reaches further than to the next points but one, or the field would blur.
    spacing = np.rad2deg(np.sqrt(4 * np.pi / grid.size))
    assert np.asarray(markers(axes).get_heights()).max() < 2.0 * spacing
    assert not np.asarray(markers(axes).get_linewidth()).any()


@pytest.mark.parametrize("poles", [False, True])
def test_rows_and_columns_as_points_leave_no_white_bands_near_the_poles(poles: bool) -> None:
    rows = grids.LatLonGrid.regular(36 + poles, 72, poles=poles)
    points = grids.UnstructuredGrid.from_grid(rows, np.arange(rows.size))
    figure = plots.map_field(smooth(points))
    assert share_of("white", pixels(figure)) < 1e-4
    reach = markers(figure.axes[0])
    assert np.asarray(reach.get_heights()).max() < 10.0
    elsewhere = np.abs(np.rad2deg(points.lat)) < 89.0
    assert np.asarray(reach.get_widths())[elsewhere].max() < 20.0  # four columns


def test_a_field_shows_the_value_at_each_place() -> None:
    grid = grids.healpix(16)
    field = smooth(grid)
    figure = plots.map_field(field, limits=(-2.0, 2.0))
    image = pixels(figure)
    colours = np.asarray(markers(figure.axes[0]).cmap((field.values + 2.0) / 4.0))
    at_points = places(figure.axes[0])
    inside = (np.abs(at_points[:, 0]) < 178.0) & (np.abs(at_points[:, 1]) < 88.0)
    column = ((at_points[:, 0] + 180.0) / 360.0 * image.shape[1]).astype(int)[inside]
    row = ((90.0 - at_points[:, 1]) / 180.0 * image.shape[0]).astype(int)[inside]
    # Neighbours lie over the rims of discs, never over what is shown by more than their difference.
    np.testing.assert_allclose(image[row, column], colours[inside], atol=0.06)


def test_points_at_the_edge_of_the_globe_are_drawn_at_both_ends() -> None:
    field = smooth(grids.healpix(16))
    axes = plots.map_field(field).axes[0]
    copies = axes.collections[1]
    beyond = np.abs(np.asarray(copies.get_offsets())[:, 0])
    assert beyond.min() >= 180.0
    edge = np.abs(np.abs(places(axes)[:, 0]) - 180.0) < 1e-6
    assert edge.any()
    assert set(field.values[edge]) <= set(np.asarray(copies.get_array()))


def test_both_poles_are_on_the_map() -> None:
    lat = np.array([90.0, -90.0, *np.linspace(-80.0, 80.0, 12)])
    lon = np.array([0.0, 123.0, *np.arange(-175.0, 180.0, 30.0)])
    axes = plots.map_field(at(lat, lon)).axes[0]
    assert axes.get_ylim() == (-90.0, 90.0)
    np.testing.assert_allclose(places(axes)[:, 1], lat)
    np.testing.assert_allclose(places(axes)[:, 0], lon, atol=1e-4)
    assert np.isfinite(np.asarray(markers(axes).get_widths())).all()


@pytest.mark.parametrize("meridian", [0.0, 77.0, -180.0])
def test_a_pole_does_not_widen_the_map_of_a_region(meridian: float) -> None:
    axes = plots.map_field(at([90.0, 70.0, 75.0, 80.0], [meridian, 10.0, 30.0, 20.0])).axes[0]
    assert axes.get_xlim() == pytest.approx((9.0, 31.0))
    np.testing.assert_allclose(places(axes), [[20.0, 90.0], [10.0, 70.0], [30.0, 75.0], [20.0, 80]])


def test_dots_are_round_and_shrink_with_their_number() -> None:
    heights = []
    for count in (30, 3000, 30_000):
        figure = plots.map_field(scattered(count, seed=count))
        axes = figure.axes[0]
        pixels(figure)
        aspect = axes.get_aspect()
        assert isinstance(aspect, float)
        height = np.asarray(markers(axes).get_heights())
        np.testing.assert_allclose(np.asarray(markers(axes).get_widths()), height * aspect)
        box = axes.get_window_extent()
        low, high = axes.get_ylim()
        heights.append(float(height.max()) / (high - low) * box.height / figure.dpi * 72.0)
    assert 7.0 < heights[0] < 10.0
    assert heights[0] > heights[1] > 2.5 * heights[2]


def test_rims_of_regions_have_no_large_cells() -> None:
    grid = grids.reduced_gaussian("O32")
    whole = smooth(grid)
    part = whole[np.sin(2 * grid.lon) * np.cos(3 * grid.lat) > 0.2]
    tall = [np.asarray(markers(plots.map_field(f).axes[0]).get_heights()) for f in (part, whole)]
    assert tall[0].max() < 1.2 * tall[1].max()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_points_can_be_drawn(count: int) -> None:
    for lat, lon in (
        (np.full(count, 47.0), 8.0 + np.arange(count)),
        (47.0 + np.arange(count), np.full(count, 8.0)),
        (np.full(count, 47.0), np.full(count, 8.0)),
        (np.full(count, 90.0), np.full(count, 8.0)),
    ):
        figure = plots.map_field(at(lat, lon))
        image = pixels(figure)
        axes = figure.axes[0]
        assert len(places(axes)) == count
        assert share_of("white", image) < 1.0
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        assert left < places(axes)[:, 0].min() <= places(axes)[:, 0].max() < right
        assert low < places(axes)[:, 1].min() <= places(axes)[:, 1].max() <= high


def test_correction_and_skill_are_drawn_at_points() -> None:
    rng = np.random.default_rng(8)
    template = scattered(40).fillna(0.0)
    draws = rng.normal(size=(30, 10, 40))
    ensemble = xr.DataArray(
        draws[:, 1:], dict(template.coords), ("time", "member", "station"), "t2m", UNITS
    )
    observed = xr.DataArray(draws[:, 0], dict(template.coords), ("time", "station"), "t2m", UNITS)
    corrected = (0.5 * ensemble + 0.1).assign_attrs(UNITS)
    figure = plots.map_correction(ensemble, corrected.transpose("station", "member", "time"))
    maps = figure.axes[:3]
    before, after = draws[:, 1:].mean((0, 1)), 0.5 * draws[:, 1:].mean((0, 1)) + 0.1
    for axes, expected in zip(maps, (before, after, after - before), strict=True):
        np.testing.assert_allclose(shown(axes), expected)
    limits = [markers(axes).get_clim() for axes in maps]
    assert limits[0] == limits[1]
    assert limits[2][0] == -limits[2][1]
    scores = evaluate(corrected, observed, reference=ensemble, dims="time")
    figure = plots.map_skill(scores)
    np.testing.assert_allclose(shown(figure.axes[0]), scores["crps_skill"])
    better = 100 * float((scores["crps_skill"] > 0).mean())
    expected_title = f"better than the reference at {better:.0f} % of points"
    assert figure.axes[0].get_title(loc="left") == expected_title


def test_bad_maps_of_points_are_named() -> None:
    field = scattered(20)
    with pytest.raises(DataError, match=r"'t2m' has dims \['time'\] beside those of its grid"):
        plots.map_field(field.expand_dims("time"))
    with pytest.raises(DataError, match="'t2m' has no finite values to draw"):
        plots.map_field(field * np.nan)
    with pytest.raises(DataError, match=r"raw is on .* but corrected on .*; interpolate"):
        plots.map_correction(field, scattered(20, seed=1))
    with pytest.raises(GridError, match="latitude of 91 degrees"):
        plots.map_field(at([91.0, 0.0], [0.0, 1.0]))
    with pytest.raises(GridError, match="has no grid"):
        plots.map_field(field.drop_vars("lon"))
