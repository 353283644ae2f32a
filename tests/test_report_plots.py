"""Figures of reports: what they show, that it is legible, and what is said without matplotlib."""

from __future__ import annotations

import builtins
import io
import sys
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sparsity_cases import OFTEN, adam, fields, locally, train

from scisparse.errors import MissingDependencyError, OptionError
from scisparse.plots import sparsity_efficiency, sparsity_history, sparsity_report
from scisparse.sparsity import Sparsifier
from scisparse.sparsity.report import DISTANCE_BINS, LayerReport, RegionReport, Report

LONG = "encoder.stages.{}.blocks.{}.local_convolution.depthwise.weight"


def made(count: int, regions: int = 0, distances: bool = False) -> Report:
    """Layers with long names; every second one has regions and distances."""
    rng = np.random.default_rng(count)
    layers = []
    for k in range(count):
        size, active = 10_000, int(rng.integers(100, 9000))
        parts = [RegionReport(f"region {i}", 100, int(rng.integers(100))) for i in range(regions)]
        counts = rng.integers(1, 50, len(DISTANCE_BINS) - 1).tolist() if distances else []
        ever = active + int(rng.integers(900))
        odd = k % 2 == 0
        parts, counts = (parts, counts) if odd else ([], [])
        name = LONG.format(k // 4, k % 4)
        layers.append(
            LayerReport(name, size, active, ever, 0.1, 40_000, tuple(counts), tuple(parts))
        )
    return Report(1000 * count, tuple(layers))


def drawn(figure: Figure) -> None:
    """Draw it, and see that nothing is cut off and no labels lie on each other."""
    figure.savefig(io.BytesIO(), format="png")
    inside = figure.get_tightbbox()
    assert min(inside.x0, inside.y0) > 0
    assert (inside.x1, inside.y1) < tuple(figure.get_size_inches())
    for axes in figure.axes:
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            boxes = [text.get_window_extent() for text in labels if text.get_text()]
            pairs = [(a, b) for k, a in enumerate(boxes) for b in boxes[:k]]
            assert not any(a.overlaps(b) for a, b in pairs)


@pytest.mark.parametrize("count", [1, 2, 20])
def test_bars_are_the_sparsity_of_layers(count: int) -> None:
    report = made(count)
    figure = sparsity_report(report)
    (axes,) = figure.axes
    widths = [patch.get_width() for patch in axes.patches if isinstance(patch, Rectangle)]
    assert widths == pytest.approx([layer.sparsity for layer in report.layers])
    (ever,) = axes.lines
    assert ever.get_xdata() == pytest.approx([layer.exploration for layer in report.layers])
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(set(names)) == count
    assert all(len(name) <= 30 for name in names)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first layer is on top
    drawn(figure)


@pytest.mark.parametrize(("count", "regions"), [(1, 3), (1, 26), (20, 3), (8, 26)])
def test_panels_of_regions_and_distances(count: int, regions: int) -> None:
    report = made(count, regions, distances=True)
    figure = sparsity_report(report)
    shown = [layer for layer in report.layers if layer.regions]
    by_region, by_distance = figure.axes[1:3]
    sparsity = [[region.sparsity for region in layer.regions] for layer in shown]
    shares = [np.array(layer.distances) / sum(layer.distances) for layer in shown]
    for axes, expected in ((by_region, sparsity), (by_distance, shares)):
        if count == 1:
            bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
            values = [[bar.get_height() for bar in bars]]
        else:
            (mesh,) = axes.collections
            values = np.asarray(mesh.get_array()).reshape(len(shown), -1).tolist()
        np.testing.assert_allclose(values, expected)
    ends = [label.get_text() for label in by_distance.get_xticklabels()]
    assert ends == ["0", "250", "500", "1000", "2000", "5000", "10000", "21000"]
    assert by_distance.get_xlabel().endswith("[km]")
    drawn(figure)


def test_lines_over_training() -> None:
    layer = locally()
    optimizer = adam(layer)
    sparsifier = Sparsifier(layer, optimizer, "rigl", sparsity=0.6, schedule=OFTEN)
    reports = [sparsifier.report()]
    for batch in fields(6):
        train(layer, optimizer, sparsifier, [batch])
        reports.append(sparsifier.report())
    figure = sparsity_history(reports[::-1])
    for axes, key in zip(figure.axes, ("sparsity", "exploration", "churn"), strict=True):
        (line,) = axes.lines
        assert np.asarray(line.get_xdata()).tolist() == list(range(7))
        values = [getattr(report.layers[0], key) for report in reports]
        assert np.asarray(line.get_ydata()).tolist() == values
    assert len({report.layers[0].churn for report in reports}) > 1
    drawn(figure)


@pytest.mark.parametrize("count", [1, 20])
def test_a_line_for_each_layer_each_unlike_the_others(count: int) -> None:
    for steps in ([5], [0, 10, 20]):
        reports = [Report(step, made(count).layers) for step in steps]
        figure = sparsity_history(reports)
        for axes in figure.axes:
            looks = {(line.get_color(), str(line._dash_pattern)) for line in axes.lines}  # type: ignore[attr-defined]
            assert len(looks) == len(axes.lines) == count
        drawn(figure)


def scored(count: int, seed: int, scale: float = 1.0) -> list[Report]:
    """Models of one layer with other numbers of weights and accuracies."""
    rng = np.random.default_rng(seed)
    return [
        Report(9, (LayerReport("weight", 10**5, active, 10**5, 0.0, 400_000),), scale * accuracy)
        for active, accuracy in zip(
            rng.integers(1, 10**5, count).tolist(), rng.random(count).tolist(), strict=True
        )
    ]


@pytest.mark.parametrize("scale", [1.0, -3.0])
def test_accuracy_and_efficiency_over_weights(scale: float) -> None:
    runs = {"rigl": scored(5, 0, scale), "static": scored(1, 1, scale), "gmp": scored(30, 2, scale)}
    figure = sparsity_efficiency(runs)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(runs)
    for k, reports in enumerate(runs.values()):
        left = sorted((r.layers[0].active, r.accuracy or 0.0) for r in reports)
        for axes, values in zip(
            figure.axes, ([a for _, a in left], [a / n for n, a in left]), strict=True
        ):
            line = axes.lines[k]
            assert np.asarray(line.get_xdata()).tolist() == [n for n, _ in left]
            assert np.asarray(line.get_ydata()) == pytest.approx(values)
    assert figure.axes[0].get_xscale() == "log"
    assert figure.axes[1].get_yscale() == ("log" if scale > 0 else "linear")
    drawn(figure)


def test_one_line_has_no_legend_and_needs_no_weights() -> None:
    empty = Report(9, (LayerReport("weight", 10, 0, 10, 0.0, 40),), 0.5)
    figure = sparsity_efficiency([empty, *scored(3, 4)])
    assert not figure.legends
    assert figure.axes[0].get_xscale() == "linear"
    drawn(figure)


def test_title_says_the_accuracy() -> None:
    report = Report(1000, made(2).layers, 93.5)
    title = sparsity_report(report).get_suptitle()
    assert "accuracy 93.5" in title
    assert f"{report.efficiency:.3g}" in title


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(OptionError, match="`reports` is empty"):
        sparsity_efficiency([])
    with pytest.raises(OptionError, match="`reports` is empty"):
        sparsity_efficiency({})
    with pytest.raises(OptionError, match=r"`reports\['rigl'\]` has a report, after 1000 steps"):
        sparsity_efficiency({"gmp": scored(1, 0), "rigl": [made(1)]})
    with pytest.raises(OptionError, match="`reports` is empty"):
        sparsity_history([])
    with pytest.raises(OptionError, match="of different layers"):
        sparsity_history([made(1), made(2)])
    with pytest.raises(OptionError, match="holds no layers"):
        sparsity_report(Report(0, ()))


def test_an_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"scisparse\[plot\]"):
        sparsity_report(made(1))
