"""Two runs side by side."""

from __future__ import annotations

from typing import Any

from benchmarks.report import failures

__all__ = ["compare"]

ALLOWED = 0.05  # loss of speed that is taken for noise


def compare(base: dict[str, Any], new: dict[str, Any]) -> tuple[list[str], bool]:
    """Compare how far ours is ahead of the best peer, which holds on a slower machine as well.

    Return a line for each case and stage, and whether one has lost more than 5 %, is wrong or gone.
    """
    if base["suite"] != new["suite"]:
        raise ValueError(
            f"the base is of suite {base['suite']!r}, the other of {new['suite']!r}; compare runs "
            "of one suite"
        )
    before, after = _parts(base), _parts(new)
    lines = [f"{failure}  FAILED" for failure in failures(new)]
    lines += [
        f"{label}: was {before[label]['ours_ms']:.3g} ms  GONE"
        for label in before
        if label not in after
    ]
    regressed = bool(lines)
    for label, part in after.items():
        old = before.get(label)
        if old is None:
            lines.append(f"{label}: new, {part['ours_ms']:.3g} ms")
            continue
        measure = "speedup" if "speedup" in old and "speedup" in part else "ours_ms"
        gain = part[measure] / old[measure]
        gain = gain if measure == "speedup" else 1 / gain
        slower = gain < 1 - ALLOWED
        regressed = regressed or slower
        flag = "  SLOWER" if slower else ""
        lines.append(f"{label}: {measure} {old[measure]:.3g} -> {part[measure]:.3g}{flag}")
    return lines, regressed


def _parts(run: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is known of ours, by case and stage."""
    return {
        f"{case['name']} {stage}": part
        for case in run["cases"]
        for stage, part in case["summary"].items()
    }
