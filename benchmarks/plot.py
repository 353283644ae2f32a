"""Figures of a run: how far ahead of each peer, and how near the roofline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["plot"]

STAGES = ("forward", "backward")
COLOURS = (
    *("#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377"),
    *("#66ccee", "#882255", "#dd8833", "#999999", "#111111"),
)


def plot(run: dict[str, Any], results: Path) -> list[Path]:
    """Draw bars and roofline as PNG files beside `results`, named after it; return the paths."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ValueError("plotting needs matplotlib; pip install 'scisparse[plot]'") from error
    paths = []
    for name, draw in (("bars", _bars), ("roofline", _roofline)):
        figure = draw(plt, run)
        paths.append(results.with_name(f"{results.stem}_{name}.png"))
        figure.savefig(paths[-1], dpi=150, bbox_inches="tight")
        plt.close(figure)
    return paths


def _bars(plt: Any, run: dict[str, Any]) -> Any:
    """Time of each implementation as a multiple of ours; one group of bars a case."""
    cases = run["cases"]
    peers = [(n, v) for c in cases for n, v in c["implementations"].items() if not v["ours"]]
    names = list(dict.fromkeys(n for n, v in peers if not v["not_run"]))
    bounds = {n for n, v in peers if not v["same"]}
    figure, axes = plt.subplots(2, 1, figsize=(10, 7), sharex=True, layout="constrained")
    most = max(len(c["implementations"]) - 1 for c in cases)
    width = 0.8 / max(1, most)
    for axis, stage in zip(axes, STAGES, strict=True):
        for index, name in enumerate(names):
            ratios = [_ratio(case, name, stage) for case in cases]
            places = [k + width * _place(case, name) for k, case in enumerate(cases)]
            bound = name in bounds
            axis.bar(
                *(places, ratios, width),
                label=f"{name} (another function, as a bound)" if bound else name,
                color=COLOURS[index % len(COLOURS)],
                hatch="///" if bound else None,
                edgecolor="white" if bound else None,
            )
        for k, case in enumerate(cases):
            best = case["summary"].get(stage, {}).get("speedup")
            if best:  # over the best peer, on the group's shortest bar
                peer = case["summary"][stage]["best_peer"]
                place = k + width * _place(case, peer)
                axis.annotate(f"{best:.1f}", (place, best), ha="center", va="bottom", fontsize=7)
        axis.axhline(1, color="black", linewidth=1)
        axis.axhline(8, color="black", linewidth=0.6, linestyle=":", label="8 times")
        axis.set_yscale("log")
        axis.set_ylabel(f"{stage}: time / ours")
        axis.grid(axis="y", alpha=0.3)
    axes[1].set_xticks(
        range(len(cases)), [c["shape"].replace(", ", "\n") for c in cases], fontsize=7
    )
    figure.suptitle(_title(run), fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=4, fontsize=8, loc="outside lower center")
    return figure


def _place(case: dict[str, Any], name: str) -> float:
    """Where a peer's bar stands in its group, in widths of a bar from the middle."""
    peers = [n for n, values in case["implementations"].items() if not values["ours"]]
    return peers.index(name) - (len(peers) - 1) / 2 if name in peers else 0.0


def _ratio(case: dict[str, Any], name: str, stage: str) -> float:
    values = case["implementations"].get(name, {}).get("milliseconds", {})
    ours = case["summary"].get(stage, {}).get("ours_ms")
    return values[stage] / ours if ours and stage in values else 0.0


def _roofline(plt: Any, run: dict[str, Any]) -> Any:
    """Operations a second over operations a byte, below the bandwidth measured in the run."""
    figure, axis = plt.subplots(figsize=(8, 5.5), layout="constrained")
    bandwidth = run["machine"]["bandwidth_GB_s"]
    reach = [0.1, 30.0]
    axis.plot(
        reach,
        [bandwidth * r for r in reach],
        color="black",
        label=f"{run['machine']['bandwidth']} at {bandwidth:.0f} GB/s",
    )
    axis.plot(
        reach, [0.8 * bandwidth * r for r in reach], color="black", linestyle=":", label="80 %"
    )
    for index, case in enumerate(run["cases"]):
        colour = COLOURS[index % len(COLOURS)]
        for stage, marker in zip(STAGES, "os", strict=True):
            part = case["summary"].get(stage)
            if part is None:
                continue
            intensity = case["cost"][f"{stage}_flops"] / case["cost"][f"{stage}_bytes"]
            label = case["shape"] if stage == "forward" else None
            marker_edge = "black" if index >= len(COLOURS) else colour
            axis.plot(
                intensity,
                part["GFLOP_s"],
                marker,
                color=colour,
                markeredgecolor=marker_edge,
                label=label,
            )
    axis.set(xscale="log", yscale="log", xlabel="operations / byte", ylabel="GFLOP/s")
    axis.legend(fontsize=7, title="circle: forward, square: backward", title_fontsize=7)
    axis.grid(alpha=0.3)
    axis.set_title(_title(run), fontsize=10)
    return figure


def _title(run: dict[str, Any]) -> str:
    machine = run["machine"]
    return (
        f"{machine['processor']} ({machine['instructions']}), {machine['threads']} threads, "
        f"torch {machine['torch']}"
    )
