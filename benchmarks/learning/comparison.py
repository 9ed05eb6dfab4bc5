"""The finished runs of a study, compared with end to end seed by seed: how far apart, and how sure that is."""

import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.lib.results import about, axes

Line = dict[str, Any]
"""A finished run: "key", "name", its labels, "hardware", "torch", and what `curves.summary` says."""
Row = dict[str, Any]

TITLES = {
    "end_to_end": "end to end",
    "by_parts": "by parts",
    "learned": "by parts, learned priors",
    "head_1_quarter": "head 1 × quarter width",
    "head_1_half": "head 1 × half width",
    "head_1_full": "head 1 × full width",
    "head_2_half": "head 2 × half width",
    "like_1_half": "head 1 × half width, starts like the model",
    "like_1_full": "head 1 × full width, starts like the model",
    "like_2_full": "head 2 × full width, starts like the model",
    "head_2_half_deep": "head 2 × half width and all layers",
    "head_4_half": "head 4 × half width",
    "like_2_half": "head 2 × half width, starts like the model",
    "like_4_half": "head 4 × half width, starts like the model",
    "like_all_half": "head all × half width, starts like the model",
    "like_4_full": "head 4 × full width, starts like the model",
    "like_all_full": "head all × full width, starts like the model",
    "like_1_full_deep": "head 1 × full width and all layers, starts like the model",
    "like_2_half_deep": "head 2 × half width and all layers, starts like the model",
    "like_2_full_deep": "head 2 × full width and all layers, starts like the model",
    "like_all_half_deep": "head all × half width and all layers, starts like the model",
    "like_all_full_deep": "head all × full width and all layers, starts like the model",
    "tail_5": "best head, last 5 % end to end",
    "tail_10": "best head, last 10 % end to end",
    "tail_20": "best head, last 20 % end to end",
    "tail_33": "best head, last third end to end",
    "paper": "turns, last third end to end (the paper)",
}
STUDY = ("data", "steps", "batch", "clip", "device", "hardware")
"""Runs that are compared share these: a seed on another machine is another run."""


def read_lines(file: Path) -> list[Line]:
    """The finished runs in a study's file, or in a results file made of it; a line that was cut short is left out."""
    if file.suffix == ".json":
        return list(json.loads(file.read_text())["runs"])
    found = {}
    for text in file.read_text().splitlines() if file.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        found[line["key"]] = line
    return list(found.values())


def read_files(files: Iterable[Path]) -> list[Line]:
    """The finished runs of several files; ends this process where there are none."""
    lines = [line for file in files for line in read_lines(file)]
    if not lines:
        sys.exit(f"There is no finished run in {', '.join(map(str, files))}.")
    return lines


def grouped(lines: Iterable[Line], *labels: str) -> dict[tuple[Any, ...], list[Line]]:
    """The runs that share these labels, in the order of their first."""
    found = defaultdict(list)
    for line in lines:
        found[tuple(line.get(label) for label in labels)].append(line)
    return dict(found)


def by_seed(lines: Iterable[Line], value: str = "test") -> dict[int, float]:
    """Seed → a figure of its run, where it did not diverge."""
    return {line["seed"]: line[value] for line in lines if line.get(value) is not None}


def mean_error(values: Sequence[float]) -> tuple[float, float] | None:
    """Mean and its standard error (0 of one value); None of none."""
    if not values:
        return None
    return mean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def paired(lines: Iterable[Line], base: Iterable[Line], value: str = "test") -> list[float]:
    """A figure minus that of the base, for each seed that both have."""
    mine, theirs = by_seed(lines, value), by_seed(base, value)
    return [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]


def at_chosen_rate(lines: list[Line]) -> list[Line]:
    """An arm's runs at the learning rate that most seeds trained at; of several, the best on the held-out images."""

    def merit(runs: list[Line]) -> tuple[int, float]:
        return len(runs), -mean(run.get("validation") or math.inf for run in runs)

    return max(grouped(lines, "lr", "words").values(), key=merit)


def rows(lines: Sequence[Line]) -> list[Row]:
    """A row per study, number of parts and arm, the first of each being end to end."""
    found = []
    for study, ours in grouped(lines, *STUDY).items():
        arms = grouped(ours, "parts", "arm")
        base = arms.get((1, "end_to_end"))
        for parts in sorted({parts for parts, _ in arms} - {1}):
            chosen = {arm: at_chosen_rate(arms[parts, arm]) for arm in TITLES if (parts, arm) in arms}
            if base:
                chosen = {"end_to_end": at_chosen_rate(base), **chosen}
            for arm, runs in chosen.items():
                tried = base if arm == "end_to_end" and base else arms[parts, arm]
                row = {**dict(zip(STUDY, study, strict=True)), "parts": parts, "arm": arm}
                found.append({**row, **_figures(runs, tried, chosen, parts)})
    return found


def _figures(runs: list[Line], tried: list[Line], chosen: dict[str, list[Line]], parts: int) -> Row:
    """What the table says of an arm."""
    rates = sorted({line["lr"] for line in tried})
    test = mean_error(list(by_seed(runs).values()))
    base = chosen.get("end_to_end", [])
    apart, held_out = (mean_error(paired(runs, base, value)) for value in ("test", "validation"))
    gap = mean_error(paired(chosen.get("by_parts", []), base))
    shares = parts - 1 if runs[0]["parts"] == 1 else 1  # end to end, bytes are recorded for two processes
    seconds, sent = (list(by_seed(runs, name).values()) for name in ("seconds", "bytes"))
    return {
        "test": test and test[0],
        "minus_end_to_end": apart and apart[0],
        "standard_error": apart and apart[1],
        "held_out_minus_end_to_end": held_out and held_out[0],
        "held_out_standard_error": held_out and held_out[1],
        "gap_closed": 1 - apart[0] / gap[0] if apart and gap and gap[0] > 0 else None,
        "lr": runs[0]["lr"],
        "rates_tried": rates,
        "words": runs[0]["words"],
        "seconds": mean(seconds) if seconds else None,
        "bytes": shares * mean(sent) if sent else None,
        "seeds": len(runs),
        "diverged": sum("failed" in run for run in runs),
        "runs": len(tried),
    }


def tables(found: Sequence[Row]) -> str:
    """The rows as Markdown, a table per study and number of parts."""
    texts = []
    for (data, steps, batch, clip, device, hardware, parts), ours in grouped(found, *STUDY, "parts").items():
        heads = [f"{data}, {parts} parts", "test bits/dim", "minus end to end", "held out", "of the gap closed", "lr"]
        cells = [[*heads, "seconds", "MiB sent", "seeds (runs)"]]
        for row in ours:
            apart = row["minus_end_to_end"] is not None and row["arm"] != "end_to_end"
            edge = len(row["rates_tried"]) > 1 and row["lr"] in (row["rates_tried"][0], row["rates_tried"][-1])
            cells.append([TITLES[row["arm"]], number(row["test"], ".3f")])
            for kind in ("", "held_out_"):
                figures = row[f"{kind}minus_end_to_end"], row[f"{kind}standard_error"]
                cells[-1].append(f"{figures[0]:+.3f} ± {figures[1]:.3f}" if apart and None not in figures else "")
            cells[-1].append(number(row["gap_closed"], ".0%") if apart and row["arm"] != "by_parts" else "")
            cells[-1].append(f"{row['lr']:g}{' (edge)' * edge}")
            cells[-1] += [number(row["seconds"], ".0f"), number(row["bytes"] and row["bytes"] / 2**20, ".1f")]
            diverged = f", {row['diverged']} diverged" * bool(row["diverged"])
            cells[-1].append(f"{row['seeds']} ({row['runs']}{diverged})")
        settings = f"{data}: {steps:,} steps of {batch} images, clip {clip}, on {device} ({hardware})"
        texts.append(f"{settings}\n\n{markdown(cells)}\n")
    return "\n".join(texts)


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """Rows of a table, the first of them its headings."""
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(cells[0]), *lines[1:]])


def number(value: float | None, form: str) -> str:
    """For a table: a dash where there is no figure."""
    return "–" if value is None else format(value, form)


def draw(found: Sequence[Row]) -> Any:
    """A panel per study: how far each arm ends from end to end, with standard errors."""
    groups = grouped(found, *STUDY)
    figure, panels = axes(1, len(groups), figsize=(4 + 5 * len(groups), 5), sharey=True, squeeze=False)
    there = {row["arm"] for row in found}
    places = {arm: number for number, arm in enumerate(arm for arm in reversed(TITLES) if arm in there)}
    for (study, ours), panel in zip(groups.items(), panels[0], strict=True):
        for number, ((parts,), rows_of) in enumerate(grouped(ours, "parts").items()):
            shown = [row for row in rows_of if row["minus_end_to_end"] is not None and row["arm"] != "end_to_end"]
            heights = [places[row["arm"]] - 0.2 + 0.2 * number for row in shown]
            errors = [row["standard_error"] for row in shown]
            bits = [row["minus_end_to_end"] for row in shown]
            panel.errorbar(bits, heights, xerr=errors, fmt="o", capsize=3, label=f"{parts} parts")
        panel.axvline(0, color="black", linewidth=0.5)
        panel.set_yticks(list(places.values()), [TITLES[arm] for arm in places])
        panel.set(xlabel="test bits/dim minus end to end", title=f"{study[0]}, clip {study[3]}\n{study[5]}")
        panel.legend()
    return figure


def about_runs(lines: Sequence[Line]) -> dict[str, Any]:
    """The beginning of a results file: hardware and torch are those of the runs, not of who makes the table."""
    found = about({label: sorted({str(line.get(label)) for line in lines}) for label in STUDY})
    command, table, _ = found["command"].partition(" --table ")
    found["command"] = command + (table and f"{table}FILE")
    found["hardware"] = "; ".join(sorted({line["hardware"] for line in lines}))
    found["versions"]["torch"] = ", ".join(sorted({line["torch"] for line in lines}))
    return found


def without_curves(lines: Sequence[Line]) -> list[Line]:
    """The runs as a results file keeps them."""
    return [{name: value for name, value in line.items() if name not in ("curve", "key")} for line in lines]
