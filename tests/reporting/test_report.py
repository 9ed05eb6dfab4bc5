"""The report: it says what the files say, of finished runs and others, and nothing that they do not say."""

import json
import shutil
import subprocess
import sys
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeflow.config import PhaseConfig
from pipeflow.report import main
from pipeflow.reporting import read_run
from pipeflow.reporting import write_report as report
from pipeflow.training import fit
from tests.support.processes import in_processes
from tests.support.small_runs import fit_in, small_config

PHASES = [
    PhaseConfig("simultaneous", steps=8, lr=[1e-3, 2e-3, 5e-4]),
    PhaseConfig("alternate", steps=6, turn_steps=2),
    PhaseConfig("end_to_end", steps=4),
]
FIGURES = {"loss_epoch.png", "loss_time.png", "loss_bytes.png", "ledger.png", "shares.png"}
# Digits are 64 numbers, also after part 1; half of them have left before part 3. Batches of 12, 4 bytes a number.
BORDERS = (12 * (64 + 1) * 4, 12 * (32 + 1) * 4)
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """A page taken apart; asserts that its tags are balanced."""

    def __init__(self, file):
        super().__init__()
        self.html = file.read_text(encoding="utf-8")
        self.open, self.attributes, self.rows, self.text = [], [], {}, ""
        self.row = []
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "tr":
            self.row = []
        if tag in ("td", "th"):
            self.row.append({"text": "", "values": []})
        if tag == "data" and "td" in self.open:
            self.row[-1]["values"].append(float(dict(attrs)["value"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"
        if tag == "tr" and len(self.row) > 1:
            self.rows.setdefault(self.row[0]["text"], self.row[1:])

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
            if {"td", "th"} & set(self.open):
                self.row[-1]["text"] += data

    @property
    def images(self):
        """The embedded pictures."""
        return [value for tag, name, value in self.attributes if (tag, name) == ("img", "src")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run = tmp_path_factory.mktemp("report") / "run"
    fit(small_config(run, PHASES, eval_every=0.04))  # every 5 steps
    return run


@pytest.fixture
def run(made, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def told(made):
    return Page(report([made]))


def change(run, file, by):
    """Rewrites the lines of a stream: `by` returns a line, or None to leave it out."""
    path = run / "metrics" / file
    lines = [by(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines if line is not None))


def cut_off(run, step):
    """As if the run had been interrupted behind `step`, while it wrote a line."""
    (run / "result.json").unlink()
    for path in (run / "metrics").glob("*.jsonl"):
        change(run, path.name, lambda line: line if line["step"] <= step else None)
        path.write_text(path.read_text() + f'{{"step": {step + 1}, "pha')
    for path in (run / "checkpoints").glob("step-*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)


# --- what it says


def test_the_table_says_what_the_result_says(made, told):
    result = json.loads((made / "result.json").read_text())
    values = {name: cells[0]["values"] for name, cells in told.rows.items()}
    assert values["test bits/dim"] == [result["test_bits_per_dim"]]
    assert values["minutes"] == [pytest.approx(sum(result["seconds"]) / 60)]
    assert values["images/s, by phase"] == result["images_per_s"]
    assert values["peak memory by rank (MiB)"] == [size / 2**20 for size in result["peak_memory_bytes"]]
    assert values["sent by rank, measured (MiB)"] == [size / 2**20 for size in result["bytes_sent"]]
    texts = {name: cells[0]["text"] for name, cells in told.rows.items()}
    assert (
        texts["approach"] == "8 steps simultaneous, then 6 steps alternate in turns of 2 steps, then 4 steps end to end"
    )
    assert (texts["parts"], texts["cut"]) == ("3", "1 + 3 + 2")
    assert texts["learning rate"] == "0.001 / 0.002 / 0.0005, 0.001, 0.001"
    assert texts["test bits/dim"] == f"{result['test_bits_per_dim']:.4f}"
    assert texts["peak GPU memory by rank (MiB)"] == "–"
    assert "Not finished" not in told.text


def test_bytes_forward_are_those_of_the_packets(told):
    """Alternate: the turns of parts 2 and 3 use border 1, those of part 3 border 2."""
    expected = (8 + 4) * BORDERS[0] + (8 + 2) * BORDERS[1]
    assert told.rows["forward by parts, computed (MiB)"][0]["values"] == [expected / 2**20]


def test_bytes_forward_follow_the_wire(run):
    """In bf16 a latent takes 2 bytes a number; a log-likelihood still takes 4."""
    settings = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(settings.replace("wire: fp32", "wire: bf16"))
    expected = (8 + 4) * 12 * (64 * 2 + 4) + (8 + 2) * 12 * (32 * 2 + 4)
    page = Page(report([run]))
    assert page.rows["forward by parts, computed (MiB)"][0]["values"] == [expected / 2**20]


def test_figures_are_pictures_and_the_page_holds_the_same(made, told):
    files = {path.name: path.read_bytes() for path in (made / "report").iterdir()}
    assert set(files) == FIGURES
    for name, png in files.items():
        picture = Image.open(BytesIO(png))
        assert picture.format == "PNG" and picture.width == 1080, name
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50, f"{name} is blank"
    sheets = {path.read_bytes() for path in (made / "samples").iterdir()}
    assert len(sheets) == len(PHASES)
    assert {b64decode(source.split(",", 1)[1]) for source in told.images} == {*files.values(), *sheets}


def test_a_wheel_holds_the_template(tmp_path):
    root = Path(__file__).parents[2]
    build = [sys.executable, "setup.py", "--quiet", "build", "--build-base", str(tmp_path / "build")]
    egg = ["egg_info", "--egg-base", str(tmp_path)]
    subprocess.run([*build, *egg], cwd=root, check=True, capture_output=True)
    (built,) = tmp_path.glob("build/lib*/pipeflow/reporting/templates/page.html.jinja")
    assert built.read_bytes() == (root / "pipeflow/reporting/templates/page.html.jinja").read_bytes()


def test_the_page_needs_nothing_else(told):
    assert all(source.startswith("data:image/png;base64,") for source in told.images)
    assert "http://" not in told.html and "https://" not in told.html and "url(" not in told.html
    assert {tag for tag, _, _ in told.attributes} & {"script", "link", "iframe", "object"} == set()
    assert not [name for _, name, _ in told.attributes if name.startswith("on")]
    assert len([value for _, name, value in told.attributes if name == "alt" and value]) == len(told.images)
    assert ("meta", "content", "width=device-width, initial-scale=1") in told.attributes


def test_settings_and_checkpoints_are_there(made, told):
    assert (made / "config.yaml").read_text() in told.text
    for line in map(json.loads, (made / "metrics" / "checkpoints.jsonl").read_text().splitlines()):
        cells = told.rows[str(line["step"])]
        manifest = json.loads((made / "checkpoints" / f"step-{line['step']}" / "manifest.json").read_text())
        assert cells[0]["values"] == [manifest["test_bits_per_dim"]]
        assert cells[2]["values"] == [pytest.approx(1e3 * line["stall_s"])]
        assert cells[3]["values"] == [line["write_s"]]


def test_the_bottleneck_is_named(run):
    def slow(line):
        return line | {"compute_s": 5.0 if line["phase"] == 2 else 0.001}

    for number in (1, 2, 3):
        change(run, f"part-{number}.jsonl", slow if number == 2 else lambda line: line | {"compute_s": 0.01})
    text = Page(report([run])).text
    assert "Phase 1, simultaneous: part 1 computes longest, 10 ms a step" in text
    assert "Phase 2, alternate: part 2 computes longest, 5e+03 ms a step" in text


def test_names_are_text_and_not_tags(run):
    odd = run.rename(run.with_name('<b>a & "b"\''))
    assert '<b>a & "b"\'' in Page(report([odd])).text


# --- time


def test_an_interruption_is_no_training(run):
    before = read_run(run)
    for name in ("part-1", "part-2", "part-3", "end_to_end"):
        change(run, f"{name}.jsonl", lambda line: line | {"time": 1e9 + line["step"] + 3600 * (line["step"] > 11)})
    history = read_run(run)
    assert (history.seconds[-1], history.paused) == (16.0, 3601.0)
    assert history.at(history.seconds, np.array([0, 1, 11, 12, 18])).tolist() == [0.0, 0.0, 10.0, 10.0, 16.0]
    assert (history.steps == before.steps).all() and history.steps.tolist() == list(range(1, 19))
    assert "Left out: 60 min." in Page(report([run])).text


# --- runs of other kinds


def test_a_run_that_was_interrupted(run):
    cut_off(run, 16)
    page = Page(report([run]))
    latest = json.loads((run / "metrics" / "evaluation.jsonl").read_text().splitlines()[-2])
    scored = page.rows["test bits/dim"][0]
    assert latest["step"] == 15
    assert scored["values"] == [latest["bits_per_dim"]] and f"at step {latest['step']}; not finished" in scored["text"]
    assert "The metrics reach step 16 of 18" in page.text
    assert page.rows["images/s, by phase"][0]["text"].endswith(", –")
    assert page.rows["peak memory by rank (MiB)"][0]["text"] == "–"
    assert "until step 14" in page.rows["minutes"][0]["text"]


def test_a_run_before_its_first_checkpoint_and_evaluation(run):
    cut_off(run, 3)
    page = Page(report([run]))
    assert "–" in page.text and "not evaluated yet" in page.text
    for name in ("test bits/dim", "minutes", "images/s, by phase", "forward by parts, computed (MiB)"):
        assert page.rows[name][0]["text"] == "–", name
    assert {path.name for path in (run / "report").iterdir()} == {"loss_epoch.png", "loss_time.png", "shares.png"}


def test_a_result_of_before_the_run_went_on_is_not_taken(run):
    settings = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(settings.replace("phases:\n", "phases:\n- {schedule: end_to_end, steps: 4}\n"))
    assert read_run(run).result is None


def test_sequential_whose_last_part_has_not_begun(tmp_path):
    fit(small_config(tmp_path / "run", [PhaseConfig("sequential", steps=15)], eval_every=0.04))
    cut_off(tmp_path / "run", 7)
    page = Page(report([tmp_path / "run"]))
    assert "until step 5 its last part had not begun to learn" in page.text
    assert page.rows["test bits/dim"][0]["text"] == "–"


def test_end_to_end_alone(tmp_path):
    fit(small_config(tmp_path / "run", [PhaseConfig("end_to_end", steps=3)]))
    page = Page(report([tmp_path / "run"]))
    assert {path.name for path in (tmp_path / "run" / "report").iterdir()} == FIGURES - {"loss_bytes.png"}
    assert page.rows["forward by parts, computed (MiB)"][0]["values"] == [0.0]
    assert "bottleneck" not in page.text


def test_three_processes(tmp_path):
    """What sockets carried is at least what is computed: evaluations and control come on top."""
    config = small_config(tmp_path / "run", PHASES)
    in_processes(3, fit_in, config, directory=tmp_path / "meet")
    page = Page(report([config.run_dir]))
    sent = page.rows["sent by rank, measured (MiB)"][0]["values"]
    assert len(page.rows["peak memory by rank (MiB)"][0]["values"]) == 3
    assert "in 3 processes" in page.text
    if sys.platform == "linux":
        assert len(sent) == 3 and sum(sent) >= page.rows["forward by parts, computed (MiB)"][0]["values"][0]


def test_several_runs(made, run, tmp_path, capsys):
    cut_off(run, 16)
    assert main([str(made), str(run), "--out", str(tmp_path / "both.html")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'both.html'}: the report")
    page = Page(tmp_path / "both.html")
    one, other = page.rows["test bits/dim"]
    assert "not finished" in other["text"] and "not finished" not in one["text"]
    assert [cell["text"] for cell in page.rows["run"]] == [str(made), str(run)], "both directories are called run"
    expected = {f"{number}-{name}" for number in (1, 2) for name in FIGURES} | {"compared.png"}
    assert {path.name for path in (tmp_path / "both").iterdir()} == expected
    assert "2 runs compared" in page.text


# --- where it writes


def test_a_report_is_made_anew_and_nothing_else_is_touched(run):
    first = report([run]).read_bytes()
    (run / "report" / "mine.txt").write_text("mine")
    Image.new("RGB", (2, 2)).save(run / "report" / "mine.png")
    shutil.copy(run / "report" / "ledger.png", run / "report" / "9-ledger.png")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert report([run]).read_bytes() == first
    del before[run / "report" / "9-ledger.png"]
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def damaged_line(run):
    lines = (run / "metrics" / "part-2.jsonl").read_text().splitlines()
    (run / "metrics" / "part-2.jsonl").write_text("\n".join([lines[0], lines[1][:20], *lines[2:]]) + "\n")


def line_of_another_kind(run):
    change(run, "part-1.jsonl", lambda line: line | {"bits_per_dim": "low"})


def no_metrics(run):
    shutil.rmtree(run / "metrics")


def write(name, text):
    def damage(run):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(text)

    return damage


def nothing(run):
    pass


WRONG = {
    "no such directory": (nothing, ["nowhere"], "nowhere is no run directory: it has no config.yaml."),
    "a directory that is no run": (nothing, ["run/metrics"], "run/metrics is no run directory"),
    "no metrics yet": (no_metrics, ["run"], "run has no metrics yet"),
    "a damaged line": (damaged_line, ["run"], "part-2.jsonl is damaged: line 2 is no line of metrics"),
    "a line of another kind": (line_of_another_kind, ["run"], "part-1.jsonl is damaged: line 1 is no line"),
    "a list of metrics": (write("metrics/part-1.jsonl", "[1]\n"), ["run"], "part-1.jsonl is damaged: line 1"),
    "an evaluation of nothing": (
        write("metrics/evaluation.jsonl", '{"step": 1, "epoch": 0.1, "dequantisation": 4.1, "parts": [0]}\n'),
        ["run"],
        "evaluation.jsonl is damaged: the line of step 1 is no evaluation",
    ),
    "damaged settings": (write("config.yaml", "seed: [\n"), ["run"], "The settings in run/config.yaml are damaged"),
    "settings that are none": (write("config.yaml", "seed"), ["run"], "The settings in run/config.yaml are damaged"),
    "other settings": (
        write("config.yaml", "phases: [{schedule: end_to_end, steps: 2}]"),
        ["run"],
        "its metrics tell of phase 2, which config.yaml does not have",
    ),
    "a damaged result": (write("result.json", "{"), ["run"], "result.json is damaged: it is no result of a run."),
    "out without a folder": (nothing, ["run", "--out", "no/a.html"], "there is no folder no; make it first."),
    "out of another kind": (nothing, ["run", "--out", "a.txt"], "it must end in .html."),
    "out that is no report": (write("a.html", "<p>mine"), ["run", "--out", "run/a.html"], "is no report, and is not"),
    "a file in place of the folder": (write("a", ""), ["run", "--out", "run/a.html"], "run/a is a file"),
    "a figure that is not ours": (
        write("report/ledger.png", "mine"),
        ["run"],
        "run/report/ledger.png is no figure of a report, and is not written over.",
    ),
    "a run twice": (nothing, ["run", "./run"], "run is given twice"),
    "no run": (nothing, [], "the following arguments are required: RUN"),
    "an unknown option": (nothing, ["run", "--outt", "a.html"], "there is no option --outt"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_a_sentence_and_nothing_is_written(name, run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    damage, words, message = WRONG[name]
    damage(run)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    assert main(words) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("pipeflow: ") and message in line and not said.out, line
    assert before == {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}


# --- in a browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MEASURE = """<!DOCTYPE html><iframe src="{page}" style="width:{width}px; height:900px; border:0"></iframe>
<script>onload = () => {{ let inner = document.querySelector("iframe").contentDocument.documentElement;
document.title = inner.clientWidth + " shows " + inner.scrollWidth }}</script>"""


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser on this machine: {', '.join(BROWSERS)}")

    def browse(*words):
        command = [found, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return browse


def test_a_browser_shows_the_page(browser, made, told, tmp_path):
    bits = json.loads((made / "result.json").read_text())["test_bits_per_dim"]
    assert f">{bits:.4f}</data>" in browser("--dump-dom", (made / "report.html").as_uri())
    browser("--window-size=1200,900", f"--screenshot={tmp_path / 'a.png'}", (made / "report.html").as_uri())
    picture = Image.open(tmp_path / "a.png")
    assert picture.size == (1200, 900) and len(np.unique(np.asarray(picture.convert("L")))) > 50


@pytest.mark.parametrize("width", [1200, 400])
def test_the_page_never_scrolls_sideways(width, browser, made, told, tmp_path):
    (tmp_path / "frame.html").write_text(MEASURE.format(page=(made / "report.html").as_uri(), width=width))
    dom = browser("--allow-file-access-from-files", "--dump-dom", (tmp_path / "frame.html").as_uri())
    assert f"<title>{width} shows {width}</title>" in dom
