"""The page of a report: stories and their figures → one HTML file that needs nothing else.

Notebooks and TensorBoard need something that runs. This page has no script and no reference to anything outside it:
it can be mailed, printed, put beside a paper, and read years later.
"""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from itertools import pairwise
from typing import Any

from ..config import Config, PhaseConfig
from ..model import scheme_cut
from .run_figures import REPORT_MAKER, Drawing, amount, duration
from .run_history import Story

NONE = "–"
_MIB = 2.0**20
_CSS = """
:root { color-scheme: light dark; --ink: #1c1c1c; --quiet: #5c5c5c; --paper: #fff; --rule: #d8d8d8; --soft: #f5f5f3; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --quiet: #a8a8a8; --paper: #171717; --rule: #3c3c3c; --soft: #222; }
  figure.drawn img { filter: invert(0.92) hue-rotate(180deg) brightness(1.15); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 76rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.4rem; margin: 3rem 0 0.5rem; padding-top: 1rem; border-top: 2px solid var(--ink); }
h3 { font-size: 1.1rem; margin: 2rem 0 0.5rem; }
p, li { max-width: 46rem; }
.lead { color: var(--quiet); margin: 0 0 1rem; }
.headline { font-size: 1.15rem; margin: 1rem 0; }
.headline data { font-size: 2.4rem; font-weight: 650; line-height: 1.1; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.94rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 1.4rem 0.35rem 0; border-bottom: 1px solid var(--rule); }
th, td { text-align: left; vertical-align: top; }
thead th { border-bottom-color: var(--ink); }
td { min-width: 7rem; max-width: 26rem; }
td.number { text-align: right; min-width: 0; }
small, figcaption { color: var(--quiet); font-size: 0.86rem; }
small { display: block; }
figure { margin: 1.5rem 0; }
figcaption { max-width: 46rem; margin-top: 0.4rem; }
figcaption b { color: var(--ink); display: block; font-size: 1rem; }
figure.drawn .scroll { background: var(--paper); }
figure.drawn img { display: block; width: 100%; max-width: 50rem; height: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 0 2.5rem; }
.pair > * { min-width: 0; }
.sheets { display: flex; flex-wrap: wrap; gap: 1.5rem; }
.sheets figure { margin: 0.5rem 0; max-width: 100%; }
.sheets img { display: block; width: 21rem; max-width: 100%; height: auto; image-rendering: pixelated; }
pre { background: var(--soft); padding: 1rem; overflow-x: auto; font-size: 0.85rem; line-height: 1.4; }
summary { cursor: pointer; font-weight: 600; }
@media screen and (max-width: 40rem) {
  figure.drawn img { min-width: 34rem; }
  td { min-width: 9rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; }
  .pair, .sheets { display: block; }
  .sheets figure { display: inline-block; margin-right: 0.5rem; }
  .sheets img { width: 6.5cm; }
  figure.drawn img { max-width: 14.5cm; }
  td { min-width: 0; }
}
"""


def page(stories: Sequence[Story], drawings: Sequence[Sequence[Drawing]], compared: Drawing | None) -> str:
    """The whole HTML file.

    Args:
        stories: the runs, in the order in which they are told.
        drawings: the figures of each.
        compared: the figure of all of them, if there are several.
    """
    many = len(stories) > 1
    title = f"{len(stories)} runs compared" if many else stories[0].name
    top = "" if many else f'<p class="lead">{_lead(stories[0])}</p>{_headline(stories[0])}'
    body = [f"<h1>{escape(title)}</h1>", top, "<h3>Results</h3>", _results(stories), _drawn(compared)]
    for story, figures in zip(stories, drawings, strict=True):
        head = f'<h2>{escape(story.name)}</h2><p class="lead">{_lead(story)}</p>{_headline(story)}' if many else ""
        body.append(f"<article>{head}{_told(story, figures)}</article>")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="generator" content="{REPORT_MAKER}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}: pipeflow</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, body))
        + "\n</body>\n</html>\n"
    )


def _told(story: Story, figures: Sequence[Drawing]) -> str:
    """Everything about one run below its headline."""
    by_file = {figure.file.rsplit("-", 1)[-1]: figure for figure in figures}
    pieces = ["<h3>Learning</h3>", _drawn(by_file.get("loss_epoch.png"))]
    pieces += [
        '<div class="pair">',
        _drawn(by_file.get("loss_time.png")),
        _drawn(by_file.get("loss_bytes.png")),
        "</div>",
    ]
    pieces += ['<div class="pair">', _drawn(by_file.get("ledger.png")), _drawn(by_file.get("shares.png")), "</div>"]
    pieces += [_busiest(story), _sheets(story), _checkpoints(story)]
    pieces.append(f"<h3>Settings</h3>{_folded('config.yaml', story.settings)}")
    return "\n".join(filter(None, pieces))


def _lead(story: Story) -> str:
    """What the run is, in a sentence."""
    config, result = story.config, story.result or {}
    glow, many = config.glow, result.get("processes")
    processes = f", in {many} process{'es' * (many != 1)}" if many else ""
    device = result.get("device") or (f"device {config.device}" if config.device != "auto" else None)
    model = f"a Glow of {glow.levels} levels × {glow.steps} steps × {glow.hidden} channels"
    text = f"{config.data.name}: {model if config.flow == 'glow' else config.flow} in "
    text += f"{config.cut.parts} part{'s' * (config.cut.parts != 1)} ({_cut(config)}){processes}"
    text += f" on {device}" if device else ""
    anew = [f"cut anew at step {step} (before: {_cut(old)})" for step, old in story.until if _cut(old) != _cut(config)]
    return escape("; ".join([text, *anew]) + ".")


def _headline(story: Story) -> str:
    line = _last(story)
    bits = _number(line["bits_per_dim"], 4) if line and line["complete"] else NONE
    return f'<p class="headline">{bits} test bits/dim of the model{_where(story)}</p>'


def _where(story: Story) -> str:
    """How far a run is that is not finished."""
    if story.result:
        return ""
    line, reached = _last(story), int(story.steps[-1])
    scored = f"evaluated at step {line['step']}, epoch {line['epoch']:.1f}" if line else "not evaluated yet"
    if line and not line["complete"]:
        scored = f"not evaluated yet: until step {line['step']} its last part had not begun to learn"
    of = f" of {story.planned}" if story.planned else ""
    seen = datetime.fromtimestamp(max(float(track.time[-1]) for track in story.tracks), UTC)
    return (
        f"<small>Not finished: {scored}. The metrics reach step {reached}{of} "
        f"({seen:%Y-%m-%d %H:%M} UTC); the run goes on, or was interrupted.</small>"
    )


def _results(stories: Sequence[Story]) -> str:
    """The table: a column a run."""
    rows: list[tuple[str, list[str]]] = [
        ("approach", [escape(", then ".join(map(_words, story.config.phases))) for story in stories]),
        ("parts", [str(story.config.cut.parts) for story in stories]),
        ("cut", [escape(_cut(story.config)) for story in stories]),
        ("learning rate", [escape(_by_phase([_rate(phase) for phase in story.config.phases])) for story in stories]),
        ("test bits/dim", [_scored(story) for story in stories]),
        ("minutes", [_minutes(story) for story in stories]),
        ("images/s, by phase", [_by_phase(_speeds(story)) for story in stories]),
        ("peak memory by rank (MiB)", [_of_ranks(story, "peak_memory_bytes") for story in stories]),
        ("peak GPU memory by rank (MiB)", [_of_ranks(story, "peak_gpu_memory_bytes") for story in stories]),
        ("forward by parts, computed (MiB)", [_forward(story) for story in stories]),
        ("backward by parts (bytes)", ["0<small>by construction</small>" for _ in stories]),
        ("sent by rank, measured (MiB)", [_of_ranks(story, "bytes_sent") for story in stories]),
        ("received by rank, measured (MiB)", [_of_ranks(story, "bytes_received") for story in stories]),
    ]
    if any(story.config.activations == "invert" for story in stories):
        rows.append(("drift of inverted inputs, at most, by phase", [_by_phase(_drifts(story)) for story in stories]))
    head = "".join(f'<th scope="col">{escape(story.name)}</th>' for story in stories)
    lines = (
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for name, cells in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">run</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
        "<p><small>The cut is given in flow steps a part. Measured bytes are those of all TCP sockets open at the end: "
        "latents, evaluations, gradients end to end and control traffic together. “–” is what the files do not "
        "say.</small></p>"
    )


def _scored(story: Story) -> str:
    line = _last(story)
    if line is None or not line["complete"]:
        return NONE
    bits = _number(line["bits_per_dim"], 4)
    return bits if story.result else f"{bits}<small>at step {line['step']}; not finished</small>"


def _minutes(story: Story) -> str:
    if story.result:
        return _number(sum(phase["seconds"] for phase in story.result["phases"]) / 60, 2)
    if story.newest is None:
        return NONE
    seconds = sum(phase["seconds"] for phase in story.newest.phases) + story.newest.elapsed["seconds"]
    return f"{_number(seconds / 60, 2)}<small>until step {story.newest.step}; not finished</small>"


def _speeds(story: Story) -> list[str]:
    """Images per second of each phase that has ended."""
    known = {leg.number: leg.ended.get("images_per_s") for leg in story.legs if leg.ended}
    speeds = {number: _number(speed, 0) for number, speed in known.items() if speed is not None}
    return [speeds.get(number, NONE) for number in range(1, len(story.config.phases) + 1)]


def _drifts(story: Story) -> list[str]:
    """The largest drift of any part in each phase that has ended."""
    known = {leg.number: leg.ended.get("drift") for leg in story.legs if leg.ended}
    most = {number: max(drift["drift"] for drift in parts.values()) for number, parts in known.items() if parts}
    shown = {number: f'<data value="{value!r}">{value:.1e}</data>' for number, value in most.items()}
    return [shown.get(number, NONE) for number in range(1, len(story.config.phases) + 1)]


def _of_ranks(story: Story, name: str) -> str:
    """Bytes by rank; – where all are 0, which is written where nothing can be measured."""
    sizes = (story.result or {}).get(name) or []
    alone = name.startswith("bytes") and len(sizes) == 1  # one process sends nothing, and that is a measurement
    return ", ".join(_number(size / _MIB, 1) for size in sizes) if any(sizes) or alone else NONE


def _forward(story: Story) -> str:
    if story.sent is None:
        return NONE
    return _number(story.sent[-1] / _MIB, 2) + ("" if story.result else "<small>so far</small>")


def _busiest(story: Story) -> str:
    """Which part computes longest in each phase by parts."""
    items = []
    for leg in story.legs:
        tracks = [
            within for track in story.tracks if len((within := track.within(leg)).step) and track.part is not None
        ]
        spent = [float(track.compute.sum()) for track in tracks]
        if len(tracks) > 1 and max(spent) > 0:
            most = max(range(len(tracks)), key=spent.__getitem__)
            each = 1e3 * spent[most] / len(tracks[most].step)
            items.append(
                f"<li>Phase {leg.number}, {leg.name}: {tracks[most].name} computes longest, {each:.3g} ms a step and "
                f"{100 * spent[most] / sum(spent):.0f} % of what all parts compute.</li>"
            )
    return f"<h3>The bottleneck</h3><ul>{''.join(items)}</ul>" if items else ""


def _sheets(story: Story) -> str:
    figures = []
    for step, png in story.samples:
        leg = next((leg for leg in story.legs if leg.first <= step <= leg.last), None)
        when = f"step {step}" + (f", phase {leg.number}: {leg.name}" if leg else "")
        picture = f'<img alt="Samples of the model at step {step}" src="{_embedded(png)}">'
        figures.append(f"<figure>{picture}<figcaption>{when}</figcaption></figure>")
    return f'<h3>Samples</h3><div class="sheets">{"".join(figures)}</div>' if figures else ""


def _checkpoints(story: Story) -> str:
    if not story.saved and not story.saves:
        return ""
    said = {line["step"]: line for line in story.saves}
    rows = []
    for saved in story.saved:
        line = said.get(saved.step)
        cells = [
            str(saved.step),
            NONE if saved.bits_per_dim is None else _number(saved.bits_per_dim, 4),
            _number(saved.bytes / _MIB, 2),
            _number(1e3 * line["stall_s"], 2) if line else NONE,
            _number(line["write_s"], 2) if line else NONE,
        ]
        wrong = f'<tr><td colspan="5"><small>{escape(saved.wrong)}</small></td></tr>' if saved.wrong else ""
        rows.append("<tr>" + "".join(f'<td class="number">{cell}</td>' for cell in cells) + f"</tr>{wrong}")
    names = ("step", "test bits/dim", "on disk (MiB)", "training held up (ms)", "written in (s)")
    head = "<thead><tr>" + "".join(f'<th scope="col">{name}</th>' for name in names) + "</tr></thead>"
    stalls = [line["stall_s"] for line in story.saves]
    text = ""
    if stalls:
        text = f"<p>{len(stalls)} saved in all, of which those on disk are listed. Together they held training up for "
        text += (
            f"{duration(sum(stalls))}, the longest for {duration(max(stalls))}; {amount(story.saves[-1]['bytes'])} of "
        )
        text += "weights, priors and moments were written last.</p>"
    listed = f'<div class="scroll"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>' if rows else ""
    return f"<h3>Checkpoints</h3>{text}{listed}"


def _drawn(figure: Drawing | None) -> str:
    if figure is None:
        return ""
    picture = f'<img alt="{escape(figure.title)}" src="{_embedded(figure.png)}">'
    caption = f"<figcaption><b>{escape(figure.title)}</b>{escape(figure.caption)}</figcaption>"
    return f'<figure class="drawn"><div class="scroll">{picture}</div>{caption}</figure>'


def _folded(name: str, text: str) -> str:
    return f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"


def _embedded(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"


def _last(story: Story) -> dict[str, Any] | None:
    """The latest evaluation: the result's where the run is finished."""
    if story.result:
        return {"bits_per_dim": story.result["test_bits_per_dim"], "complete": True}
    return story.evaluations[-1] if story.evaluations else None


def _words(phase: PhaseConfig) -> str:
    """A phase, as people would say it."""
    name = phase.schedule.replace("_", " ")
    turn = (phase.turn_steps, phase.turn_epochs or 1.0) if phase.schedule == "alternate" else None
    length = _length(phase.steps, phase.epochs)
    return f"{length} {name}" + (f" in turns of {_length(*turn)}" if turn else "")


def _length(steps: int | None, epochs: float | None) -> str:
    number, unit = (steps, "step") if steps else (epochs, "epoch")
    return f"{number:g} {unit}{'s' * (number != 1)}"


def _cut(config: Config) -> str:
    """Flow steps of each part, as far as the settings say."""
    if config.flow != "glow":
        return f"borders at {', '.join(map(str, config.cut.at))}" if config.cut.at else config.cut.scheme
    at = scheme_cut(config.cut, config.glow.levels, config.glow.steps)
    ends = [0, *at, config.glow.levels * config.glow.steps]
    return " + ".join(str(end - start) for start, end in pairwise(ends))


def _rate(phase: PhaseConfig) -> str:
    return " / ".join(f"{rate:g}" for rate in (phase.lr if isinstance(phase.lr, list) else [phase.lr]))


def _by_phase(cells: Iterable[str]) -> str:
    """One entry a phase; one alone where all are alike."""
    cells = list(cells)
    return cells[0] if len(set(cells)) == 1 else ", ".join(cells)


def _number(value: float, digits: int) -> str:
    """A figure for people, with all its digits for programs."""
    return f'<data value="{float(value)!r}">{value:,.{digits}f}</data>'
