"""Two runs side by side."""

from __future__ import annotations

from typing import Any

__all__ = ["compare"]

ALLOWED = 0.05  # loss of speed that is taken for noise


def compare(base: dict[str, Any], new: dict[str, Any]) -> tuple[list[str], bool]:
    """Compare how far ours is ahead of the best peer, which holds on a slower machine as well.

    Return a line for each case and stage, and whether one has lost more than 5 %.
    """
    before = {case["name"]: case["summary"] for case in base["cases"]}
    lines, regressed = [], False
    for case in new["cases"]:
        for stage, part in case["summary"].items():
            old = before.get(case["name"], {}).get(stage)
            label = f"{case['name']} {stage}"
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
