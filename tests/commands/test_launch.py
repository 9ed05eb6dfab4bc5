"""The files under launch/: what they say is checked, and they are run where what they need is there."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from pipeflow.config import settle
from pipeflow.distributed import grid
from pipeflow.storage import checkpoint
from tests.support.slurm import cluster, why_not

LAUNCH = Path(__file__).parents[2] / "launch"
SHELL = ["local.sh", "agents.sh", "slurm.sbatch"]
SMALL = [
    *("--device", "cpu", "--glow.levels", "2", "--glow.steps", "3", "--glow.hidden", "8", "--data.batch", "12"),
    *("--eval_every", "1000", "--parallel.heartbeat_s", "1"),
]
# The fields of kubeflow.org/v1 PyTorchJob, as its API types have them (pytorch_types.go, common_types.go), and those of
# core/v1 that the file uses: name → kind, or the fields of what it holds.
POD = {
    "terminationGracePeriodSeconds": int,
    "containers": [
        {
            "name": str,
            "image": str,
            "command": [str],
            "args": [str],
            "resources": {"limits": {"nvidia.com/gpu": int}},
            "volumeMounts": [{"name": str, "mountPath": str}],
        }
    ],
    "volumes": [{"name": str, "persistentVolumeClaim": {"claimName": str}, "emptyDir": {"medium": str}}],
}
JOB = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "nprocPerNode": str,
        "elasticPolicy": {
            **dict.fromkeys(["minReplicas", "maxReplicas", "maxRestarts", "rdzvPort"], int),
            **dict.fromkeys(["rdzvBackend", "rdzvHost", "rdzvId"], str),
        },
        "runPolicy": {
            **dict.fromkeys(["cleanPodPolicy", "managedBy"], str),
            **dict.fromkeys(["backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"], int),
        },
        "pytorchReplicaSpecs": {"Worker": {"replicas": int, "restartPolicy": str, "template": {"spec": POD}}},
    },
}


def assert_fits(found, fields, where=""):
    if isinstance(fields, dict):
        assert isinstance(found, dict), where
        assert found.keys() <= fields.keys(), (where, found.keys() - fields.keys())
        for name in found:
            assert_fits(found[name], fields[name], f"{where}.{name}")
    elif isinstance(fields, list):
        assert isinstance(found, list) and found, where
        for each in found:
            assert_fits(each, fields[0], where)
    else:
        assert type(found) is fields, (where, found)


@pytest.fixture(scope="module")
def job():
    return yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())


def test_the_kubernetes_job_has_published_fields_alone(job):
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert_fits(job, JOB)


def test_an_unknown_field_would_be_found(job):
    wrong = json.loads(json.dumps(job))
    wrong["spec"]["elasticPolicy"]["nodes"] = 4
    with pytest.raises(AssertionError, match="nodes"):
        assert_fits(wrong, JOB)


def test_the_kubernetes_job_agrees_with_itself(job):
    spec, worker = job["spec"], job["spec"]["pytorchReplicaSpecs"]["Worker"]
    elastic, pod = spec["elasticPolicy"], worker["template"]["spec"]
    assert elastic["minReplicas"] == elastic["maxReplicas"] == worker["replicas"]
    (container,) = pod["containers"]
    assert container["name"] == "pytorch", "the operator looks for a container of this name"
    assert spec["nprocPerNode"] == str(container["resources"]["limits"]["nvidia.com/gpu"])
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert worker["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
    config, resume = settle([*container["command"][3:], *container["args"]])
    assert resume == "auto" and config.run_dir.startswith("/shared/")
    size = worker["replicas"] * int(spec["nprocPerNode"])
    config.check_world(size, grid(config.cut.parts, size, config.parallel.replicas).replicas)


@pytest.mark.parametrize("name", SHELL)
def test_shellcheck_finds_nothing(name):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", str(LAUNCH / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def environment():
    """With this interpreter's torchrun, and this checkout."""
    here = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(LAUNCH.parent)}
    return os.environ | here


@pytest.mark.parametrize(
    ("words", "named"), [(["local.sh"], "PROCESSES"), pytest.param(["agents.sh", "2"], "", marks=pytest.mark.slow)]
)
def test_on_one_host_it_runs_and_goes_on(words, named, environment, tmp_path):
    phases = json.dumps([{"schedule": "simultaneous", "steps": 2}])
    launcher = [str(LAUNCH / words[0]), *words[1:]]
    more = {named: "2"} if named else {"MASTER_PORT": str(free_port())}
    for _ in range(2):
        done = subprocess.run(
            [*launcher, "--run_dir", str(tmp_path / "run"), *SMALL, "--phases", phases],
            env=environment | more,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0 and "exitcode" not in done.stderr, done.stderr
    assert "nothing is left to do" in done.stdout
    assert json.loads((tmp_path / "run" / "result.json").read_text())["processes"] == 2


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_agents_without_a_number_of_processes():
    done = subprocess.run([str(LAUNCH / "agents.sh")], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "the number of processes comes first" in done.stderr


@pytest.mark.slow
def test_slurm_says_that_a_job_has_failed_when_it_is_not_queued_again(environment, tmp_path):
    if reason := why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm-") as base, cluster(Path(base)) as found:
        batch = ["sbatch", "--parsable", "--wait", f"--output={tmp_path}/output", str(LAUNCH / "slurm.sbatch")]
        env = found | environment | {"SLURM_CONF": found["SLURM_CONF"], "PROCESSES": "2", "REQUEUES": "0"}
        command = [*batch, "--run_dir", str(tmp_path / "run"), *SMALL, "--cut.parts", "99"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        state = subprocess.run(
            ["scontrol", "show", "job", done.stdout.strip()], env=env, capture_output=True, text=True, check=True
        ).stdout
    assert "JobState=FAILED" in state and done.returncode, (state, (tmp_path / "output").read_text())
    assert "pipeflow: " in (tmp_path / "output").read_text()


@pytest.mark.slow
def test_slurm_queues_a_preempted_job_again_and_it_goes_on(environment, tmp_path):
    if reason := why_not():
        pytest.skip(reason)
    run, output = tmp_path / "run", tmp_path / "output"
    phases = json.dumps([{"schedule": "simultaneous", "steps": 4000}, {"schedule": "end_to_end", "steps": 20}])
    words = ["--run_dir", str(run), *SMALL, "--phases", phases, "--checkpoint.every", "100", "--checkpoint.keep", "100"]
    with tempfile.TemporaryDirectory(prefix="slurm-") as base, cluster(Path(base)) as found:

        def ask(*command: str, **more: str) -> str:
            env = found | environment | {"SLURM_CONF": found["SLURM_CONF"]} | more
            return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout

        def job() -> str:
            return ask("scontrol", "show", "job", number)

        def until(condition):
            deadline = time.monotonic() + 240
            while not condition():
                assert time.monotonic() < deadline, f"{job()}\n{output.read_text()}"
                time.sleep(0.5)

        options = ["--parsable", "--nodes=2"]
        batch = [*options, "--partition=low", f"--output={output}", str(LAUNCH / "slurm.sbatch")]
        number = ask("sbatch", *batch, *words, PROCESSES="1").strip()
        until(lambda: checkpoint.steps_saved(run))
        ask("sbatch", *options, "--partition=high", f"--output={tmp_path}/other", "--wrap", "true")
        until(lambda: "Restarts=1" in job())
        assert not (run / "result.json").exists()
        until(lambda: "COMPLETING" not in job())
        time.sleep(5)  # a job that starts within the second of its end is refused: its credential counts as used up;
        ask("scontrol", "update", f"jobid={number}", "StartTime=now")  # Slurm itself waits for two minutes
        until(lambda: (run / "result.json").exists())
    assert "stopped at step" in output.read_text() and "goes on from" in output.read_text()
    assert json.loads((run / "result.json").read_text())["processes"] == 2
