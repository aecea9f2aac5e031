"""The figures of ``gpu.py`` as a table for people and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from profile_table import KINDS, OTHER

TITLES = {"ours": "ours", "padded": "padded rows of ours", "trl": "TRL", "trl_liger": "TRL, Liger layers"}
REASONS = ("skipped", "out_of_memory", "failed")


def table(report: dict[str, Any]) -> str:
    """All figures, a block for each shape."""
    about = report["about"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number)
    rate = about["matrix_operations_per_second"] / 1e12
    lines = [
        f"{about['device']}, {about['date']}; Python {about['python']}, {versions}",
        f"bf16 autocast; MFU over {rate:.4g} TFLOP/s, the rate of large bf16 products measured here",
    ]
    for name, shape in report["shapes"].items():
        lines += ["", *_steps(name, shape["ways"]), "", *_kinds(shape["ways"])]
        if shape["grid"] is not None:
            lines += ["", *_grid(shape["grid"])]
    return "\n".join([*lines, "", f"everything in {report['seconds']:.0f} s"])


def _steps(name: str, ways: dict[str, Any]) -> list[str]:
    head = f"{'s per step (min to max)':>26} {'pairs/s':>8} {'MFU':>6} {'peak GiB (held)':>16} {'above held':>11}"
    lines = [f"{f'{name}: rows, way':<28}{head} {'times TRL':>10} {'of its memory':>14}"]
    for rows in ways["ours"]:
        lines += [_step(rows, way, found[rows], ways["trl"][rows]) for way, found in ways.items()]
    return lines


def _step(rows: str, way: str, found: dict[str, Any], trl: dict[str, Any]) -> str:
    start = f"{f'{rows}, {TITLES[way]}':<28}"
    if "seconds" not in found:
        return start + next(f"  {key.replace('_', ' ')}: {found[key]}" for key in REASONS if key in found)
    s = found["seconds"]
    span = f"{s['median']:.3f} ({s['min']:.3f} to {s['max']:.3f})"
    line = f"{start}{span:>26} {found['pairs_per_second']:>8.2f} {found['mfu']:>6.3f}"
    if "peak_gib" in found:
        peak = f"{found['peak_gib']:.1f} ({found['held_gib']:.1f})"
        line += f" {peak:>16} {found['above_gib']:>11.1f}"
    else:
        line += f" {'not measured':>16} {'':>11}"
    if "seconds" in trl:
        line += f" {trl['seconds']['median'] / s['median']:>10.2f}"
        if "above_gib" in found and "above_gib" in trl:
            line += f" {found['above_gib'] / trl['above_gib']:>14.2f}"
    # ours says so where its probe found that prompts cannot be shared
    return line + ("  FELL BACK to padded rows" if way == "ours" and found["mode"] == "padded" else "")


def _kinds(ways: dict[str, Any]) -> list[str]:
    """Where the time of one step goes."""
    found = {way: one["kinds"] for way, rows in ways.items() for one in rows.values() if "kinds" in one}
    if not found:
        return ["no step was profiled"]
    of = next(iter(found.values()))["of"]
    lines = [f"{f'one step on uf, ms of {of}':<42}" + "".join(f"{TITLES[way]:>22}" for way in found)]
    for kind in (*KINDS, OTHER):
        lines.append(f"  {kind:<40}" + "".join(f"{found[way]['milliseconds'][kind]:>22.1f}" for way in found))
    total = (sum(found[way]["milliseconds"].values()) for way in found)
    return [*lines, f"  {'all':<40}" + "".join(f"{value:>22.1f}" for value in total)]


def _grid(grid: dict[str, Any]) -> list[str]:
    lines = ["forward and backward: prompt + answer, pairs    shared s   padded s    ratio    ideal  share of ideal"]
    for point in grid.get("points", []):
        start = f"  {point['prompt']:>6} + {point['answer']:<5} {point['pairs']} pairs{'':<21}"
        if "ratio" in point:
            times = f"{point['tree']:>11.3f}{point['padded']:>11.3f}{point['ratio']:>9.2f}{point['ideal']:>9.2f}"
            lines.append(f"{start}{times}{point['share_of_ideal']:>15.0%}")
        else:
            lines.append(f"{start}  out of memory: {point['out_of_memory']}")
    if grid.get("mode") == "padded":
        lines.append("  the probe FELL BACK to padded rows on this model, so the shared column is not what a run does")
    return lines + ([f"  failed: {grid['failed']}"] if "failed" in grid else [])


def draw(report: dict[str, Any], path: Path) -> None:
    """Pairs a second by rows and way, a panel for each shape, and the grid's ratios beside the ideal ones."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    grids = {name: shape["grid"] for name, shape in report["shapes"].items() if (shape["grid"] or {}).get("points")}
    count = len(report["shapes"]) + len(grids)
    figure, axes = pyplot.subplots(1, count, figsize=(5 * count, 4), squeeze=False)
    panels = iter(axes[0])
    for name, shape in report["shapes"].items():
        _bars(next(panels), name, shape["ways"])
    for name, grid in grids.items():
        _ratios(next(panels), name, [point for point in grid["points"] if "ratio" in point])
    figure.suptitle(f"{report['about']['device']}, {report['about']['date']}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _bars(axis: Any, name: str, ways: dict[str, Any]) -> None:
    rows = list(ways["ours"])
    for place, (way, found) in enumerate(ways.items()):
        heights = [found[kind].get("pairs_per_second", 0.0) for kind in rows]
        axis.bar([i + 0.2 * place - 0.3 for i in range(len(rows))], heights, 0.2, label=TITLES[way])
    axis.set_xticks(range(len(rows)), rows)
    axis.set_title(f"{name}: pairs a second")
    axis.legend(fontsize=8)


def _ratios(axis: Any, name: str, points: list[dict[str, Any]]) -> None:
    labels = [f"{p['prompt']}+{p['answer']}, {p['pairs']}" for p in points]
    axis.bar(labels, [p["ratio"] for p in points], label="measured")
    axis.plot(labels, [p["ideal"] for p in points], "k_", markersize=18, label="ideal")
    axis.tick_params(axis="x", rotation=60, labelsize=8)
    axis.set_title(f"{name}: times as fast as padded rows")
    axis.legend(fontsize=8)
