"""Tables of scores, drawn: their order, what they compare, what they tell."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from plot_cases import region, scores

from scisparse import plots
from scisparse.errors import DataError


def test_score_table_of_skills_is_turned_round() -> None:
    raw = scores(reference=region(2).drop_attrs())
    own = float(raw["crps_skill"])
    assert -3.0 < own < 0.9999
    made: dict[str, xr.Dataset | float] = {"raw": raw, "good": 0.9999, "bad": -3.0}
    (axes,) = plots.score_table(made, score="crps_skill", reference="raw").axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bad", "raw", "good"]
    expected = [f"{value:.4g}  ({value - own:+.3g})" for value in (-3.0, 0.9999)]
    texts = [text.get_text() for text in axes.texts]
    assert texts == [expected[0], f"{own:.4g}", expected[1]]
    assert axes.get_xlabel() == "CRPS skill over the reference, higher is better"
    markers = [line.get_marker() for line in axes.lines if len(np.asarray(line.get_xdata())) == 1]
    assert markers == ["D", "o", "o"]


@pytest.mark.parametrize(("score", "best"), [("bias", 0), ("spread_skill_ratio", 1)])
def test_score_table_orders_by_the_distance_from_what_is_best(score: str, best: int) -> None:
    made = {"far below": best - 0.9, "near above": best + 0.1, "above": best + 0.4}
    (axes,) = plots.score_table(made, score=score, reference="above").axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["far below", "above", "near above"]
    assert axes.get_xlabel() == f"{score}, best at {best}"
    assert [text.get_text() for text in axes.texts][::2] == [
        f"{best - 0.9:.4g}  (-1.3)",
        f"{best + 0.1:.4g}  (-0.3)",
    ]
    markers = [line.get_marker() for line in axes.lines if len(np.asarray(line.get_xdata())) == 1]
    assert markers == ["D", "o", "o"]


def test_score_table_takes_the_score_of_one_threshold() -> None:
    result = scores(thresholds=[0.3])
    (axes,) = plots.score_table({"raw": result, "other": 0.1}, score="brier_score").axes
    assert f"{float(result['brier_score'].item()):.4g}" in {text.get_text() for text in axes.texts}
    two = scores(thresholds=[0.3, 0.5])
    with pytest.raises(DataError, match=r"has dims \('threshold',\); select one, with .sel\(thr"):
        plots.score_table({"raw": two}, score="brier_score")
    plots.score_table({"raw": two.sel(threshold=0.5)}, score="brier_score")


def test_score_table_tells_numbers_of_cases_that_differ() -> None:
    all_cases = scores()

    def labels(**table: xr.Dataset | float) -> list[str]:
        (axes,) = plots.score_table(table).axes
        return sorted(label.get_text() for label in axes.get_yticklabels())

    assert labels(a=all_cases, b=all_cases, c=9.0) == ["a", "b", "c"]
    fewer = all_cases.assign(count=1234)
    assert labels(a=all_cases, b=fewer, c=9.0) == ["a (600 cases)", "b (1,234 cases)", "c"]
    with pytest.raises(DataError, match="'crps' of 'b' is nan; leave 'b' out"):
        plots.score_table({"a": all_cases, "b": np.nan})


def test_score_table_is_sorted_and_compares() -> None:
    figure = plots.score_table({"raw": 2.0, "good": 1.5, "bad": 2.2}, reference="raw")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bad", "raw", "good"]
    assert [text.get_text() for text in axes.texts] == ["2.2  (+10.0 %)", "2", "1.5  (-25.0 %)"]
    assert axes.get_xlabel() == "crps, lower is better"
    named = plots.score_table({"raw": scores()}, score="rmse")
    label = "root mean square error of the best guess [mm], lower is better"
    assert named.axes[0].get_xlabel() == label
