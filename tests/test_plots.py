"""Figures: what they show, that nothing is cut off or hidden, and that nothing global changes."""

from __future__ import annotations

import builtins
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib._pylab_helpers
import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from plot_cases import UNITS, region, scores

from scisparse import plots
from scisparse.errors import DataError, GridError, MissingDependencyError, OptionError


def globe() -> xr.DataArray:
    lat, lon = np.linspace(-88, 88, 45), np.arange(0.0, 360.0, 4.0)
    values = np.cos(np.deg2rad(lat))[:, None] * np.sin(np.deg2rad(lon))
    return xr.DataArray(values, {"lat": lat, "lon": lon}, ("lat", "lon"), "wave", UNITS)


def plane() -> xr.DataArray:
    axis = {"units": "m"}
    coords = {
        "y": ("y", np.arange(6) * 2e3, axis | {"standard_name": "projection_y_coordinate"}),
        "x": ("x", np.arange(8) * 2e3, axis | {"standard_name": "projection_x_coordinate"}),
    }
    return xr.DataArray(np.arange(48.0).reshape(6, 8), coords, ("y", "x"), "t", UNITS)


@pytest.fixture(scope="module")
def figures() -> dict[str, Figure]:
    """One of every kind, drawn."""
    settings = dict(mpl.rcParams)
    made = _figures()
    for name, figure in made.items():
        assert png(figure).startswith(b"\x89PNG"), name
    assert dict(mpl.rcParams) == settings
    assert not matplotlib._pylab_helpers.Gcf.figs  # those that pyplot holds
    return made


def _figures() -> dict[str, Figure]:
    raw, long = region(), "an ensemble with a long name, of models"
    per_point = scores(dims="time", reference=region(2).drop_attrs())
    return {
        "field": plots.map_field(raw, title="mean of all years"),
        "globe": plots.map_field(globe(), centre=0.0),
        "plane": plots.map_field(plane()),
        "correction": plots.map_correction(raw, region(3)),
        "wide correction": plots.map_correction(globe(), 2.0 * globe()),
        "skill": plots.map_skill(per_point),
        "histogram": plots.rank_histogram(scores()),
        "histograms": plots.rank_histogram({"raw": scores(), "few": scores(2)}),
        "table": plots.score_table({"raw": scores(), long: 0.25, "other": 3.0}, reference="raw"),
    }


def meshes(axes: Axes) -> list[QuadMesh]:
    return [child for child in axes.get_children() if isinstance(child, QuadMesh)]


def drawn(axes: Axes) -> np.ma.MaskedArray[tuple[int, ...], np.dtype[np.float64]]:
    (mesh,) = meshes(axes)
    return np.ma.masked_invalid(np.ma.asarray(mesh.get_array()))


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def test_nothing_is_cut_off(figures: dict[str, Figure]) -> None:
    for name, figure in figures.items():
        inside = figure.get_tightbbox()
        width, height = figure.get_size_inches()
        assert inside is not None
        assert min(inside.x0, inside.y0) > 0, name
        assert inside.x1 < width, name
        assert inside.y1 < height, name


def test_labels_do_not_overlap(figures: dict[str, Figure]) -> None:
    for name, figure in figures.items():
        for axes in figure.axes:
            for labels in (axes.get_xticklabels(), axes.get_yticklabels(), axes.texts):
                boxes = [text.get_window_extent() for text in labels if text.get_text()]
                pairs = [(a, b) for k, a in enumerate(boxes) for b in boxes[:k]]
                assert not any(a.overlaps(b) for a, b in pairs), name


def colour_bar(figure: Figure) -> Axes:
    (axes,) = figure.axes[0].child_axes
    assert isinstance(axes, Axes)
    return axes


def test_long_titles_are_in_lines() -> None:
    title = (
        "ensemble mean of the temperature at 2 m, 21 January 2021 at 12 UTC and 120 h\nof the start"
    )
    figure = plots.map_field(region(), title=title)
    figure.draw_without_rendering()
    drawn_title = figure.axes[0].get_title(loc="left")
    assert drawn_title.replace("\n", " ") == title.replace("\n", " ")
    assert drawn_title.endswith("\nof the start")
    box = figure.axes[0].get_tightbbox()
    assert box is not None
    assert box.x1 <= figure.bbox.width
    formula = r"a formula that reaches over the end of the first line: $\alpha + \beta T + \gamma$"
    figure = plots.map_field(region(), title=formula)
    assert figure.axes[0].get_title(loc="left").split("\n")[-1].count("$") == 2


def test_map_shows_the_values_where_they_are() -> None:
    field = region()
    figure = plots.map_field(field, title="here")
    axes = figure.axes[0]
    shown = drawn(axes)
    np.testing.assert_array_equal(shown.filled(-1.0), field.fillna(-1.0).values[::-1])
    assert axes.get_xlim() == pytest.approx((57.5, 82.5))
    assert axes.get_ylim() == pytest.approx((12.5, 32.5))
    assert axes.get_title(loc="left") == "here"
    assert colour_bar(figure).get_ylabel() == "rainfall [mm]"
    assert meshes(axes)[0].get_cmap().name == "viridis"
    # Missing points let the grey through, and no colour of a scale is grey.
    assert mpl.colors.to_hex(axes.get_facecolor()) == "#d1d1d1"


@pytest.mark.parametrize("form", ["flipped", "transposed", "west"])
def test_map_does_not_depend_on_the_form_of_coordinates(form: str) -> None:
    field = globe()
    other = {
        "flipped": field.isel(lat=slice(None, None, -1)),
        "transposed": field.transpose(),
        "west": field.assign_coords(lon=(field["lon"] + 180.0) % 360.0 - 180.0).sortby("lon"),
    }[form]
    assert png(plots.map_field(field)) == png(plots.map_field(other))


def test_a_region_over_the_date_line_is_in_one_piece() -> None:
    field = region(lon=[170.0, 175.0, 180.0, -175.0, -170.0])
    figure = plots.map_field(field)
    png(figure)
    assert figure.axes[0].get_xlim() == pytest.approx((167.5, 192.5))
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert {"170°E", "180°", "170°W"} <= set(labels)
    np.testing.assert_array_equal(drawn(figure.axes[0]).filled(0.0), field.fillna(0.0)[::-1])


@pytest.mark.parametrize("first", [0.5, 0.49995])
def test_the_globe_is_marked_every_sixty_degrees(first: float) -> None:
    """Whatever rounding makes of its 360 degrees."""
    lon = first + np.arange(360.0)
    field = xr.DataArray(np.eye(2, 360), {"lat": [-45.0, 45.0], "lon": lon}, ("lat", "lon"))
    figure = plots.map_field(field)
    png(figure)
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert {"60°E", "120°E", "180°", "120°W", "60°W"} <= set(labels)
    assert set(labels) <= {"0°", "60°E", "120°E", "180°", "120°W", "60°W"}


def test_differences_are_centred() -> None:
    skewed = region() - 90.0
    (mesh,) = meshes(plots.map_field(skewed, centre=0.0).axes[0])
    low, high = mesh.get_clim()
    assert low == -high
    assert high == pytest.approx(float(np.abs(skewed.quantile([0.01, 0.99])).max()))
    assert mesh.get_cmap().name == "RdBu_r"
    (mesh,) = meshes(plots.map_field(skewed, limits=(-5.0, 7.0), colours="cividis").axes[0])
    assert mesh.get_clim() == (-5.0, 7.0)
    assert mesh.get_cmap().name == "cividis"
    (mesh,) = meshes(plots.map_field(xr.full_like(skewed, 3.0)).axes[0])
    assert mesh.get_clim() == (2.5, 3.5)


def test_projected_map_is_in_kilometres() -> None:
    axes = plots.map_field(plane()).axes[0]
    assert axes.get_xlim() == (-1.0, 15.0)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x [km]", "y [km]")
    assert axes.get_aspect() == 1.0


def test_correction_is_the_difference_of_means() -> None:
    raw = xr.concat([region(4), region(5)], "member")
    corrected = xr.concat([region(6), region(7), region(8)], "time").transpose("lon", "time", "lat")
    figure = plots.map_correction(raw, corrected)
    panels = [axes for axes in figure.axes if meshes(axes)][:3]
    before, after = raw.mean("member"), corrected.mean("time").transpose()
    for axes, expected in zip(panels, (before, after, after - before), strict=True):
        np.testing.assert_allclose(drawn(axes).filled(0.0), expected.fillna(0.0)[::-1])
    limits = [meshes(axes)[0].get_clim() for axes in panels]
    assert limits[0] == limits[1]
    assert limits[2][0] == -limits[2][1]


def test_skill_says_where_it_is_better() -> None:
    skill = xr.DataArray(
        [[0.5, -0.25, np.nan], [0.1, 0.0, 0.25]],
        {"lat": [0.0, 1.0], "lon": [0.0, 1.0, 2.0]},
        ("lat", "lon"),
        attrs={"long_name": "CRPS skill over the reference", "units": "1"},
    )
    figure = plots.map_skill(xr.Dataset({"crps_skill": skill}))
    assert figure.axes[0].get_title(loc="left") == "better than the reference at 60 % of points"
    low, high = meshes(figure.axes[0])[0].get_clim()
    assert low == -high
    assert 0.45 < high <= 0.5
    assert colour_bar(figure).get_ylabel() == "CRPS skill over the reference"


def heights(axes: Axes) -> list[float]:
    return [patch.get_height() for patch in axes.patches if hasattr(patch, "get_height")]


def test_histogram_bars_are_shares_of_even_ones() -> None:
    result = scores()
    figure = plots.rank_histogram(result)
    (axes,) = figure.axes
    np.testing.assert_allclose(heights(axes), result["rank_histogram"] * 10)
    (line,) = axes.lines
    assert list(np.asarray(line.get_ydata())) == [1.0, 1.0]
    assert axes.get_xlabel() == "rank of the observation"
    assert "600 cases" in figure.legends[0].get_texts()[0].get_text()


def test_band_holds_the_bars_of_a_calibrated_prediction() -> None:
    draws = np.random.default_rng(5).integers(0, 20, 4000)
    shares = xr.DataArray(np.bincount(draws) / 4000, {"rank": np.arange(20) + 1}, "rank")
    result = xr.Dataset({"rank_histogram": shares, "count": 4000})

    def band(figure: Figure) -> tuple[float, float]:
        edges = np.asarray(figure.axes[0].collections[0].get_paths()[0].vertices)[:, 1]
        return float(edges.min()), float(edges.max())

    low, high = band(plots.rank_histogram(result))
    inside = [low <= height <= high for height in heights(plots.rank_histogram(result).axes[0])]
    assert 17 <= sum(inside) <= 20
    # 1.96 standard deviations of a binomial count of mean 200.
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(200 * 0.95) / 200, rel=0.05)
    wide = band(plots.rank_histogram(result, independent=400))
    assert wide[1] - wide[0] > 2.5 * (high - low)


def test_single_points_and_rows_can_be_drawn() -> None:
    for field in (region()[:1, :1], region()[:1], region()[:, :1]):
        assert png(plots.map_field(field)).startswith(b"\x89PNG")


@pytest.mark.parametrize("dims", [("lat", "lon"), ("y", "x")])
def test_strips_are_wide_enough_to_be_seen(dims: tuple[str, str]) -> None:
    step = 2.0 if dims[0] == "lat" else 2000.0
    units = {} if dims[0] == "lat" else {"units": "m"}
    coords = {dims[0]: (dims[0], [0.0], units), dims[1]: (dims[1], step * np.arange(180), units)}
    strip = xr.DataArray(np.arange(180.0)[None], coords, dims, "t")
    figure = plots.map_field(strip)
    png(figure)
    (low, high), (left, right) = figure.axes[0].get_ylim(), figure.axes[0].get_xlim()
    assert (high, low) == (1.0, -1.0)  # a cell is as high as it is wide
    assert right - left == 360.0
    box = figure.axes[0].get_window_extent()
    assert box.height > 0.5 * figure.dpi
    assert box.width == pytest.approx(8.0 * box.height, rel=0.01)


# --- bad input ---


@pytest.mark.parametrize("limits", [(10.0, 0.0), (np.nan, 1.0), (0.0, np.inf), (0.0, 1.0, 2.0)])
def test_bad_scales_are_named(limits: tuple[float, float]) -> None:
    with pytest.raises(
        OptionError, match=r"`limits` \(=.*\) must be two finite numbers, the lower"
    ):
        plots.map_field(region(), limits=limits)
    with pytest.raises(OptionError, match=r"`centre` \(=nan\) must be finite"):
        plots.map_field(region(), centre=np.nan)


def test_bad_maps_are_named() -> None:
    with pytest.raises(DataError, match=r"'rain' has dims \['time'\] beside those of its grid"):
        plots.map_field(region().expand_dims("time"))
    with pytest.raises(DataError, match="'rain' has no finite values to draw"):
        plots.map_field(region() * np.nan)
    with pytest.raises(GridError, match="has no grid"):
        plots.map_field(xr.DataArray(np.ones((2, 2)), dims=("a", "b")))
    with pytest.raises(DataError, match=r"raw is on .* but corrected on .*; interpolate"):
        plots.map_correction(region(), region(lat=[1.0, 2.0, 3.0, 4.0]))
    with pytest.raises(DataError, match=r"'K'.*'mm'"):
        plots.map_correction(region(), region().assign_attrs(units="K"))
    with pytest.raises(
        DataError, match=r"no 'crps_skill', but \['crps', .*give evaluate a reference"
    ):
        plots.map_skill(scores(dims="time"))
    averages = xr.Dataset({"crps_skill": 0.5}, attrs={"averaged_over": "time, lat, lon"})
    with pytest.raises(
        DataError,
        match=r"averaged over time, lat, lon, and no map; .* evaluate\(..., dims=\"time\"",
    ):
        plots.map_skill(averages)


def test_a_correction_needs_points_in_common() -> None:
    left = region().where(region()["lon"] < 70.0)
    right = region().where(region()["lon"] > 70.0)
    with pytest.raises(DataError, match="finite at no point in common; check their masks"):
        plots.map_correction(left, right)


def test_a_dataset_is_no_map_and_its_variables_are_named() -> None:
    predicted: Any = xr.Dataset({"rain_mean": region(), "rain_std": region()})
    message = r"of type Dataset with variables \['rain_mean', 'rain_std'\]; choose one, such as"
    with pytest.raises(DataError, match=message):
        plots.map_field(predicted)
    for pair in ((region(), predicted), (predicted, region())):
        with pytest.raises(DataError, match=message):
            plots.map_correction(*pair)
    values: Any = region().values
    with pytest.raises(DataError, match="but this is of type ndarray"):
        plots.map_field(values)


def test_bad_charts_are_named() -> None:
    with pytest.raises(DataError, match="no 'rank_histogram' or 'pit_histogram', but"):
        plots.rank_histogram(scores().drop_vars("rank_histogram"))
    with pytest.raises(DataError, match=r"'rank_histogram' has dims .*; evaluate over all dims"):
        plots.rank_histogram(scores(dims="time"))
    with pytest.raises(OptionError, match=r"`independent` \(=0\) must be at least 1"):
        plots.rank_histogram(scores(), independent=0)
    empty: Mapping[str, xr.Dataset] = {}
    with pytest.raises(OptionError, match="`scores` is empty"):
        plots.rank_histogram(empty)
    with pytest.raises(OptionError, match="`scores` is empty"):
        plots.score_table(empty)
    with pytest.raises(OptionError, match=r"`reference` is 'b'; the scores are \['a'\]"):
        plots.score_table({"a": 1.0}, reference="b")
    with pytest.raises(DataError, match="'a' has no score 'mae', but"):
        plots.score_table({"a": scores()}, score="mae")
    with pytest.raises(DataError, match=r"'crps' of 'a' has dims .*; evaluate over all dims"):
        plots.score_table({"a": scores(dims="time")})


def test_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    imported = builtins.__import__

    def without(name: str, *args: object) -> object:
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return imported(name, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r'pip install "scisparse\[plot\]"'):
        plots.map_field(region())


# --- real data ---


def test_real_maps_are_drawn(data_dir: Path) -> None:
    from scisparse.datasets import load

    assert data_dir.is_dir()
    rain = load("nmme_south_asia")
    forecast = rain["precipitation"].where(rain["land"])
    figure = plots.map_correction(forecast, rain["observed"])
    assert drawn(figure.axes[0]).mask.sum() == 34 * 39 - 643
    assert png(figure).startswith(b"\x89PNG")
    sea = load("ersst")["sst"].isel(time=0)
    shown = drawn(plots.map_field(sea).axes[0])
    np.testing.assert_array_equal(shown.mask, sea.sortby("lat").isnull())
