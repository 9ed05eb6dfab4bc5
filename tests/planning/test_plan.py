"""The command as users type it: what it prints and writes, and what it refuses."""

import json
import re
import struct

import pytest

from pipeflow.plan import main
from pipeflow.planning import place_processes
from pipeflow.units import rate

SMALL = ["--glow.levels", "2", "--glow.steps", "3", "--glow.hidden", "8", "--data.init_batch", "64", "--device", "cpu"]
PHASES = ["--phases", "[{schedule: simultaneous, steps: 6}, {schedule: alternate, steps: 6, turn_steps: 2}]"]
JOINED = ["--phases", "[{schedule: end_to_end, steps: 4}]"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty directory to work in; one process, whatever environment the tests run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.with_name(tmp_path.name + "-cache")))
    monkeypatch.setattr("pipeflow.planning.measure._MOST", 3)  # what is measured does not matter here
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """(directory, exit code) of one plan that many tests look at."""
    directory = tmp_path_factory.mktemp("plan") / "run"
    return directory, main(["--run_dir", str(directory), *SMALL, *PHASES, "--link", "1Gb/s", "--memory", "1GB"])


def found(directory):
    return json.loads((directory / "plan.json").read_text())


def test_a_plan_says_all_that_it_promises(planned):
    directory, code = planned
    assert code == 0
    plan = found(directory)
    assert plan["image"] == [1, 8, 8] and plan["images"] == 1500 and plan["batch"] == 48
    assert (plan["link_bits_per_s"], plan["memory_bytes"]) == (1e9, 1e9)
    assert plan["at"] == [1, 4] and [part["flow_steps"] for part in plan["parts"]] == [[1, 1], [2, 4], [5, 6]]
    assert sum(part["share"] for part in plan["parts"]) == pytest.approx(1)
    for part in plan["parts"]:
        assert min(part[name] for name in ("forward_s", "backward_s", "update_s", "memory_bytes", "parameters")) > 0
        assert part["fits"] is True
    assert [part["sent_shape"] for part in plan["parts"]] == [[48, 4, 4, 4], [48, 8, 2, 2], None]
    assert [part["sent_bytes"] for part in plan["parts"]] == [48 * 4 * 65, 48 * 4 * 33, 0]
    assert [(way["way"], way["devices"]) for way in plan["ways"]] == [
        ("one device", 1), ("by parts", 3), ("DDP", 3), ("1F1B", 3),
    ]  # fmt: skip
    slowest = max(part["forward_s"] + part["backward_s"] + part["update_s"] for part in plan["parts"])
    assert plan["ways"][1]["images_per_s"] == pytest.approx(48 / slowest)
    assert plan["least_link_bits_per_s"] == pytest.approx(8 * 48 * 4 * 65 / slowest)
    assert [ways[-1]["devices"] for ways in plan["best"]] == [1, 2, 3, 4, 5, 6]  # no more than flow steps
    assert [row["steps"] for row in plan["phases"]] == [6, 6]
    assert all(set(row["seconds"]) >= {"one device", "3 devices"} for row in plan["phases"])
    assert plan["placement"] is None and plan["config"]["glow"]["hidden"] == 8
    first, prior = plan["profile"]["steps"][0], plan["profile"]["priors"][0]
    assert first["parameters"] + prior["parameters"] == plan["parts"][0]["parameters"]


def test_no_cut_of_its_devices_is_expected_to_be_faster_than_the_best(planned):
    plan = found(planned[0])
    ours = next(way for way in plan["best"][2] if way["way"] == "by parts")
    assert ours["images_per_s"] >= plan["ways"][1]["images_per_s"] * (1 - 1e-9)


def test_the_picture_is_a_picture(planned):
    data = (planned[0] / "plan.png").read_bytes()
    assert data.startswith(b"\x89PNG") and min(struct.unpack(">II", data[16:24])) > 300
    assert b"pipeflow.plan" in data


def test_the_tables_say_what_the_file_says(capsys):
    assert main(["--run_dir", "run", *SMALL, *JOINED]) == 0
    said, plan = capsys.readouterr(), found_here()
    assert said.err == "" and max(map(len, said.out.splitlines())) <= 120
    assert "links of 10 Gb/s" in said.out and "48×4×4×4" in said.out
    for part in plan["parts"]:
        assert f"{part['parameters']:,}" in said.out
    for way in plan["ways"]:
        assert re.search(rf"^{way['way']}.* {rate(way['images_per_s'])} ", said.out, re.MULTILINE), way["way"]
    assert f"{rate(plan['phases'][0]['images_per_s']['one device'])} images/s" in said.out
    assert "run: plan.json and plan.png are there." in said.out


def found_here(directory="run"):
    with open(f"{directory}/plan.json") as stream:
        return json.load(stream)


def test_auto_plans_with_the_fewest_micro_batches_that_fit(here, capsys):
    words = [*SMALL, *PHASES, "--parallel.micro_batches", "auto"]
    assert (
        main([*words, "--memory", "1GB", "--out", "many"]) == main([*words, "--memory", "0.4MB", "--out", "few"]) == 0
    )
    assert " micro-batches.\n" in capsys.readouterr().out
    counts = [found(here / name)["config"]["parallel"]["micro_batches"] for name in ("many", "few")]
    assert counts[0] == 1 < counts[1]
    assert main([*words, "--parallel.memory", "0.4MB", "--out", "setting"]) == 0
    assert found(here / "setting")["config"]["parallel"]["micro_batches"] == counts[1]
    assert main([*words, "--memory", "0.01MB"]) == 2
    assert "even with 48 micro-batches" in capsys.readouterr().err


def test_shares_of_memory_add_up(planned, capsys):
    assert main([*SMALL, *PHASES, "--ema", "0.9"]) == 0
    table = capsys.readouterr().out.split("Of each part's memory:\n")[1].split("\n\n")[0].splitlines()
    assert table[0].split()[:5] == ["part", "weights", "gradients", "moments", "averages"]
    for line in table[1:]:
        assert sum(map(int, re.findall(r"(\d+) %", line))) == pytest.approx(100, abs=3)


def test_out_leaves_the_run_directory_alone(here):
    assert main(["--", "--run_dir", "run", "--out", "elsewhere/plans", *SMALL, *JOINED]) == 0
    assert sorted(path.name for path in (here / "elsewhere/plans").iterdir()) == ["plan.json", "plan.png"]
    assert not (here / "run").exists()


def test_what_does_not_fit_is_said(capsys):
    assert main(["--run_dir", "run", "--memory", "0.1MB", *SMALL, *JOINED]) == 0
    out = capsys.readouterr().out
    assert "Note: By parts, part" in out and "needs more memory than a device has." in out
    assert "Note: End to end every process holds the whole model" in out and "too much" in out
    assert not found_here()["ways"][0]["fits"]


def test_a_number_of_processes_that_train_would_refuse_is_said(capsys):
    assert main(["--run_dir", "run", "--data.batch", "50", *SMALL, *JOINED]) == 0
    assert "Note: data.batch is 50, which 3 processes cannot share evenly" in capsys.readouterr().out


def test_a_pipeline_end_to_end_is_planned_as_one(capsys):
    engine = ["--end_to_end.engine", "pipeline", "--data.batch", "50"]
    assert main(["--run_dir", "run", "--memory", "0.1MB", *SMALL, *JOINED, *engine]) == 0
    out = capsys.readouterr().out
    assert "Note: End to end a process of the pipeline needs more memory" in out and "the whole model" not in out
    assert "cannot share evenly" not in out  # 50 images are 5 micro-batches of 10
    alone, three = list(found_here()["phases"][-1]["seconds"].values())[:2]
    assert alone / 3 < three


def test_hosts_show_who_sits_where(capsys):
    assert (
        main(
            ["--run_dir", "run", "--hosts", "2", "--gpus-per-host", "6", *SMALL, "--cut.at", "[1,2,4]", *FOUR, *JOINED]
        )
        == 0
    )
    out, plan = capsys.readouterr().out, found_here()
    assert "2 hosts × 6 GPUs = 4 stages × 3 replicas" in out and "2 of 3 chains within a host" in out
    assert re.search(r"^2 +0:4 rank 4 +0:5 rank 5 → +1:0 rank 6 +1:1 rank 7$", out, re.MULTILINE)
    assert [seat["rank"] for seat in plan["placement"]] == list(range(12))
    assert plan["placement"][6] == place_processes(4, 2, 6).processes[6]._asdict() | {"parts": [2, 3]}
    assert [way["devices"] for way in plan["ways"]] == [1, 12, 12, 12]
    assert plan["parts"][0]["sent_shape"][0] == 16  # a replica's share of 48 images


def test_unequal_replicas_are_planned_and_the_best_are_told(capsys):
    hosts = ["--hosts", "2", "--gpus-per-host", "2", "--parallel.replicas", "[2, 1, 1]"]
    assert main(["--run_dir", "run", *SMALL, *JOINED, *PHASES, *hosts]) == 0
    out, plan = capsys.readouterr().out, found_here()
    assert "2 hosts × 2 GPUs = 2 + 1 + 1 replicas of each part" in out
    assert re.search(r"^1 +0:0 rank 0 → +1:0 rank 2 +1:1 rank 3$\n^2 +0:1 rank 1 → +– +–$", out, re.MULTILINE)
    assert [part["sent_shape"] and part["sent_shape"][0] for part in plan["parts"]] == [24, 48, None]
    assert [way["devices"] for way in plan["ways"]] == [1, 4, 4, 4]
    assert plan["ways"][1]["replicas"] == [2, 1, 1] and "4 devices" in plan["phases"][0]["seconds"]
    best = [[way for way in ways if way["way"] == "replicas"] for ways in plan["best"]]
    assert [len(ways) for ways in best] == [0, 0, 1, 1, 1, 1] and best[2][0]["replicas"] == [1, 1, 1]
    assert max(map(len, out.splitlines())) <= 120
    for (way,) in best[2:]:
        assert re.search(
            rf" {' [+] '.join(map(str, way['replicas']))} +{rate(way['images_per_s'])}$", out, re.MULTILINE
        )


FOUR = ["--cut.scheme", "explicit", "--cut.parts", "4"]


def test_devices_beyond_this_machine_are_simulated(here, capsys):
    stream = here / "earlier" / "metrics" / "part-1.jsonl"
    stream.parent.mkdir(parents=True)
    line = {"step": 0, "phase": 1, "learn": True, "time": 1e9, "bits_per_dim": 3.0, "wait_s": 0.0, "send_s": 0.0}
    times = [9.0, *[1.0] * 15, 2.0, 2.0, 2.0, 2.0]  # the first tenth does not count
    lines = [json.dumps({**line, "step": step, "compute_s": time}) for step, time in enumerate(times)]
    stream.write_text("\n".join(lines) + "\n")
    simulated = ["--devices", "12", "--hosts", "3", "--between-hosts", "100Mb/s", "--mtbf", "10h", "--latency", "5us"]
    assert main(["--run_dir", "run", *simulated, "--jitter-from", "earlier", *SMALL, *JOINED]) == 0
    out, scaling = capsys.readouterr().out, found_here()["scaling"]
    assert "12 devices, links of 10 Gb/s, 3 hosts joined by 100 Mb/s; a device fails every 10 h" in out
    assert max(map(len, out.splitlines())) <= 120
    assert list(scaling) == ["by parts", "by parts + tail", "DDP", "1F1B"]
    for way, rows in scaling.items():
        assert [row["devices"] for row in rows] == [1, 2, 4, 8, 12]
        assert re.search(rf"^{re.escape(way)} .* {rate(rows[-1]['goodput'])} ", out, re.MULTILINE), way
        assert all(0 < row["goodput"] < row["images_per_s"] for row in rows)
    assert scaling["DDP"][0]["images_per_s"] < found_here()["ways"][0]["images_per_s"], (
        "some batches take twice as long"
    )
    assert found_here()["placement"] is None


def test_fewer_gpus_than_parts_hold_several(capsys):
    assert main(["--run_dir", "run", "--hosts", "1", "--gpus-per-host", "2", *SMALL, *JOINED]) == 0
    assert "parts 1–2" in capsys.readouterr().out
    assert main(["--run_dir", "run", "--hosts", "1", "--gpus-per-host", "1", *SMALL, *JOINED]) == 0
    assert [way["way"] for way in found_here()["ways"]] == ["one device"]


def test_a_balanced_cut_is_measured(capsys):
    assert main(["--run_dir", "run", "--cut.scheme", "balanced", "--cut.parts", "2", *SMALL, *JOINED]) == 0
    assert len(found_here()["at"]) == 1 and 1 <= found_here()["at"][0] <= 5


def test_a_published_data_set_is_not_needed_for_its_plan():
    words = ["--data.name", "cifar10", "--data.root", "nowhere", "--data.batch", "2"]
    assert main(["--run_dir", "run", *SMALL, *JOINED, *words]) == 0
    assert (found_here()["image"], found_here()["images"]) == ([3, 32, 32], 50_000)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--link", "fast"], "--link: 'fast' is not a speed such as 10Gb/s"),
        (["--link", "10GB/s"], "--link: '10GB/s' is not a speed"),
        (["--link"], "--link: expected one argument"),
        (["--memory", "80"], "--memory: '80' is not an amount such as 80GB"),
        (["--hosts", "4"], "--hosts and --gpus-per-host belong together"),
        (["--hosts", "x", "--gpus-per-host", "8"], "--hosts: invalid int value: 'x'"),
        (["--hosts", "0", "--gpus-per-host", "8"], "0 hosts cannot be placed"),
        (["--hosts", "4", "--gpus-per-host", "8"], "the nearest are 30 and 33"),
        (["--hosts", "30", "--gpus-per-host", "6"], "data.batch is 48, which 60 replicas cannot share"),
        (["--devices", "8", "--link", "0Mb/s"], "--link: '0Mb/s' is not a speed"),
        (["--devices", "8", "--between-hosts", "0b/s"], "--between-hosts: '0b/s' is not a speed"),
        (["--devices", "8", "--mtbf=-5h"], "--mtbf: '-5h' is not a time such as 5000h"),
        (["--devices", "8", "--hosts", "3"], "8 devices are not 3 equal hosts"),
        (["--devices", "0"], "0 devices are not 1 equal hosts"),
        (["--devices", "1021"], "1021 devices are no stages × replicas with 2 to 6 stages"),
        (["--devices", "8", "--hosts", "2", "--gpus-per-host", "4"], "leave --gpus-per-host out"),
        (["--devices", "8", "--jitter-from", "nowhere"], "--jitter-from nowhere holds no metrics of training"),
        (["--mtbf", "5000h"], "--mtbf is for a simulation; give --devices as well"),
        (["--resume", "auto"], "--resume is an option of pipeflow.train"),
        (["--lnk", "1Gb/s"], "--lnk is no setting"),
        (["--glow.hidden", "many"], "glow.hidden is many; it must be a whole number"),
        (["--config", "nowhere.yaml"], "nowhere.yaml is no file that can be read"),
        (["--data.batch", "9999"], "data.batch is 9999, but digits has only 1500 training images"),
        (["--glow.levels", "4"], "multiples of 16"),
        (
            ["--data.image_size", "9", "--data.name", "mnist"],
            "data.image_size is 9, but the images of 'mnist' are 28×28",
        ),
        (["--device", "cuda:7"], "device is cuda:7"),
        (["--phases", "[{schedule: sequential, steps: 2}]"], "cannot be shared by 3 parts"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(words, sentence, here, capsys):
    assert main(["--run_dir", "run", *SMALL, *JOINED, *words]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("pipeflow: ") and len(said.err.splitlines()) == 1
    assert sentence in said.err
    assert not list(here.iterdir())


def test_one_process_plans_for_many(here, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert main(["--run_dir", "run", *SMALL, *JOINED]) == 2
    assert "start it without torchrun" in capsys.readouterr().err and not list(here.iterdir())


@pytest.mark.parametrize("name", ["plan.json", "plan.png"])
def test_what_is_no_plan_is_not_written_over(name, here, capsys):
    (here / "run").mkdir()
    (here / "run" / name).write_text("mine")
    assert main(["--run_dir", "run", *SMALL, *JOINED]) == 2
    assert "is no plan, and is not written over" in capsys.readouterr().err
    assert (here / "run" / name).read_text() == "mine" and len(list((here / "run").iterdir())) == 1


def test_a_folder_called_like_a_plan_is_said(here, capsys):
    (here / "run" / "plan.json").mkdir(parents=True)
    assert main(["--run_dir", "run", *SMALL, *JOINED]) == 2
    assert "plan.json is no plan, and is not written over" in capsys.readouterr().err


def test_a_file_in_the_way_is_said(here, capsys):
    (here / "run").write_text("mine")
    assert main(["--run_dir", "run", *SMALL, *JOINED]) == 2
    assert "run is a file" in capsys.readouterr().err
    (here / "file").write_text("mine")
    assert main(["--run_dir", "new", "--out", "file/plans", *SMALL, *JOINED]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_images_that_are_held_out_train_nothing(here):
    phases = ["--phases", "[{schedule: simultaneous, epochs: 1}]"]
    assert main(["--run_dir", "run", *SMALL, *phases, "--data.validation", "540"]) == 0
    plan = found(here / "run")
    assert plan["images"] == 960 and [row["steps"] for row in plan["phases"]] == [20]
