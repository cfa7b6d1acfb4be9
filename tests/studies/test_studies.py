# SPDX-License-Identifier: Apache-2.0
"""Suites and comparisons: with fake ns-train and pmni commands that count their starts, and (slow) with the real ones."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.documentation import documented_command, words_of
from helpers.programs import run_forked
from rich.console import Console

from pmni_nerfstudio.cli import main
from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.studies import engines
from pmni_nerfstudio.studies import job as job_module
from pmni_nerfstudio.studies.engines import run_locally, run_on_ray
from pmni_nerfstudio.studies.job import Job, JobResult, failed_result, run_job, unsupported_reason
from pmni_nerfstudio.studies.processes import ResourceUsage, run_command
from pmni_nerfstudio.studies.running import run_jobs
from pmni_nerfstudio.studies.suite import read_suite
from pmni_nerfstudio.studies.summary import columns_of, measure, method_statistics, result_table, write_results

TRAIN = """#!{python}
import os, pathlib, sys, time
words = sys.argv
method, out = words[1], pathlib.Path(words[words.index("--output-dir") + 1])
with open({log!r}, "a") as log:
    log.write(f"{{method}} {{os.environ.get('CUDA_VISIBLE_DEVICES', '-')}}\\n")
with open({log!r} + ".threads", "a") as log:
    log.write(os.environ.get("OMP_NUM_THREADS", "-") + "\\n")
try:
    time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
except KeyboardInterrupt:  # as nerfstudio: the end of a run, with code 0
    pass
if method == "bad":
    sys.exit("error: " + "the data are invalid")
if method == "bracketed":
    sys.exit("ValueError: no [/tmp/x] in [bold]")
if method == "framed":
    print("╭─ Unrecognized options ─╮\\n│ Unrecognized options: --no-such, 3 │\\n│ ─────── │")
    print("│ For full helptext, run ns-train --help │\\n╰────────────────────────╯")
    sys.exit(2)
with open({log!r} + ".ends", "a") as log:
    log.write(f"{{method}}\\n")
run = out / "e" / method / "t"
run.mkdir(parents=True)
(run / "config.yml").write_text(" ".join(words))
"""
EVAL = """#!{python}
import json, pathlib, sys
words = sys.argv
out = pathlib.Path(words[words.index("--output-dir") + 1])
out.mkdir(parents=True)
config = pathlib.Path(words[words.index("--load-config") + 1]).read_text().split()
seed = int(config[config.index("--machine.seed") + 1])
record = {{"units": "mm", "poses": {{"rot_deg": 0.1 * seed}}, "normals": {{"mae_deg": 1.0}},
          "surface": {{"chamfer": seed + 0.5, "chamfer_pct": 2.0, "fscore": 0.9}}}}
(out / "metrics.json").write_text(json.dumps(record))
"""


@pytest.fixture
def fake_commands(tmp_path: Path) -> Path:
    """Folder with fake commands ns-train and pmni, which take no time; each training adds a line to its file `started`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("ns-train", TRAIN), ("pmni", EVAL)):
        (folder / name).write_text(text.format(python=sys.executable, log=str(folder / "started")))
        (folder / name).chmod(0o755)
    return folder


def started(fake_commands: Path) -> list[str]:
    log = fake_commands / "started"
    return log.read_text().splitlines() if log.is_file() else []


def wait_for_starts(fake_commands: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(started(fake_commands)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def scenes(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).mkdir()
    return [folder / name for name in names]


def run(
    jobs: Sequence[Job], out: Path, fake_commands: Path, parallel: int = 1, gpus: Sequence[str] = ()
) -> list[JobResult]:
    out.mkdir(exist_ok=True)
    engine = lambda remaining: run_locally(run_job, remaining, out, parallel, gpus, fake_commands)  # noqa: E731
    return run_jobs(jobs, out, engine, Console(quiet=True), lambda method: None)


def test_finished_jobs_are_not_run_again_and_new_ones_are_added(tmp_path: Path, fake_commands: Path):
    one, two = scenes(tmp_path, "one", "two")
    jobs = [Job("a", one, 1), Job("a", one, 2), Job("b", two, 1)]
    results = run(jobs, tmp_path / "out", fake_commands)
    assert [(o.method, o.seed, measure(o, "rot_deg")) for o in results] == [("a", 1, 0.1), ("a", 2, 0.2), ("b", 1, 0.1)]
    assert all(o.seconds and o.seconds > 0 and o.peak_gb and o.peak_gb > 0.001 for o in results)
    more = run([*jobs, Job("b", two, 1, ("--other",))], tmp_path / "out", fake_commands)
    assert more[:3] == results and len(started(fake_commands)) == 4
    assert len({job.name for job in jobs}) == 3


def test_a_failed_job_is_reported_and_the_others_go_on(tmp_path: Path, fake_commands: Path):
    (one,) = scenes(tmp_path, "one")
    results = run([Job("bad", one), Job("good", one)], tmp_path / "out", fake_commands)
    assert results[0].metrics is None and "the data are invalid" in str(results[0].reason)
    assert "log.txt" in str(results[0].reason) and results[1].reason is None
    run([Job("bad", one), Job("good", one)], tmp_path / "out", fake_commands)
    assert [line.split()[0] for line in started(fake_commands)] == ["bad", "good", "bad"]  # tried again


def test_unsupported_methods_are_reported_and_not_started(tmp_path: Path, fake_commands: Path):
    (one,) = scenes(tmp_path, "one")
    engine = lambda remaining: run_locally(run_job, remaining, tmp_path, 1, (), fake_commands)  # noqa: E731
    found = run_jobs([Job("a", one), Job("b", one)], tmp_path, engine, Console(quiet=True), {"a": "no GPU"}.get)
    assert [o.reason for o in found] == ["no GPU", None]
    assert started(fake_commands) == ["b -"]


def test_unknown_methods_are_errors_that_list_the_known_ones():
    assert unsupported_reason("pmni") is None and unsupported_reason("neus-facto-small") is None
    assert "neus-facto-small" in str(unsupported_reason("neus-facto"))
    with pytest.raises(PmniError, match="pmni-calibrated"):
        unsupported_reason("nemo")


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("bracketed", "ns-train bracketed: ValueError: no [/tmp/x] in [bold] (see "),
        ("framed", "ns-train framed: Unrecognized options: --no-such, 3 (see "),
    ],
)
def test_the_reason_of_a_failure_is_the_last_error_message_of_the_command(
    method: str, reason: str, tmp_path: Path, fake_commands: Path
):
    """Brackets are not read as console markup, and frames are stripped."""
    (one,) = scenes(tmp_path, "one")
    (tmp_path / "out").mkdir()
    console = Console(record=True, file=io.StringIO())
    engine = lambda remaining: run_locally(run_job, remaining, tmp_path / "out", 1, (), fake_commands)  # noqa: E731
    (result,) = run_jobs([Job(method, one)], tmp_path / "out", engine, console, lambda method: None)
    assert result.reason is not None and result.reason.startswith(reason)
    assert reason in console.export_text()


def test_each_gpu_runs_one_job_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lock, busy, most, used = threading.Lock(), Counter(), Counter(), Counter()

    def fake_job(job: Job, out: Path, environment: dict[str, str], *_) -> JobResult:
        gpu = environment["CUDA_VISIBLE_DEVICES"]
        with lock:
            busy[gpu] += 1
            used[gpu] += 1
            most[gpu] = max(most[gpu], busy[gpu])
        time.sleep(0.02)
        with lock:
            busy[gpu] -= 1
        return failed_result(job, "", out)

    jobs = [Job("a", tmp_path, seed) for seed in range(12)]
    assert len(list(run_locally(fake_job, jobs, tmp_path, 2, ("3", "5")))) == 12
    assert most == {"3": 1, "5": 1} and used.total() == 12


def test_available_gpus_are_those_of_cuda_visible_devices(monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert engines.available_gpus() == ["0", "1", "2"] and engines.default_parallel_jobs(engines.available_gpus()) == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    assert engines.available_gpus() == ["4", "GPU-7"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    assert engines.available_gpus() == [] and engines.default_parallel_jobs([]) == 4


def test_parallel_jobs_divide_the_cores(tmp_path: Path, fake_commands: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    (one,) = scenes(tmp_path, "one")
    run([Job("a", one, 1)], tmp_path / "out", fake_commands, parallel=1)
    run([Job("a", one, 2)], tmp_path / "out", fake_commands, parallel=2)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    run([Job("a", one, 3)], tmp_path / "out", fake_commands, parallel=2)
    assert (fake_commands / "started.threads").read_text().split() == ["-", "3", "5"]


def test_a_method_with_other_flags_is_another_method_in_the_statistics(tmp_path: Path, fake_commands: Path):
    (one,) = scenes(tmp_path, "one")
    jobs = [Job("a", one, 1), Job("a", one, 3, ("--x", "y z"))]
    run(jobs, tmp_path / "out", fake_commands)
    results = run(jobs, tmp_path / "out", fake_commands)  # read from the records of the first run
    found = method_statistics(results)
    assert {label: row["of"]["chamfer"] for label, row in found.items()} == {"a": (1.5, None), "a --x y z": (3.5, None)}
    with write_results(tmp_path, "suite", results)[1].open() as file:
        assert [row["flags"] for row in csv.DictReader(file)] == ["", "--x 'y z'"]


def test_the_output_folder_can_be_moved(tmp_path: Path, fake_commands: Path):
    (one,) = scenes(tmp_path, "one")
    run([Job("a", one)], tmp_path / "out", fake_commands)
    (tmp_path / "out").rename(tmp_path / "moved")
    (found,) = run([Job("a", one)], tmp_path / "moved", fake_commands)
    assert (Path(found.folder) / "result" / "metrics.json").is_file() and len(started(fake_commands)) == 1


def test_memory_is_the_peak_of_the_process(tmp_path: Path):
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    (tmp_path / "large").write_text(f"#!{sys.executable}\nx = b'1' * ({own + 200} << 20)\n")
    (tmp_path / "large").chmod(0o755)
    assert own + 200 < run_command(["large"], tmp_path / "log", tmp_path).peak_mb < own + 300


SUITE = """
import sys
from pathlib import Path
from rich.console import Console
from pmni_nerfstudio.studies.engines import run_locally
from pmni_nerfstudio.studies.job import run_job
from pmni_nerfstudio.studies.running import run_jobs
from pmni_nerfstudio.studies.suite import read_suite
out, bin_folder = Path(sys.argv[2]), Path(sys.argv[3])
jobs = read_suite(Path(sys.argv[1]))
run_jobs(jobs, out, lambda remaining: run_locally(run_job, remaining, out, 1, (), bin_folder), Console(), lambda method: None)
"""


def test_a_killed_suite_can_be_continued(tmp_path: Path, fake_commands: Path):
    """Killed during its third run: the first two are not repeated, and no child process outlives the suite."""
    scenes(tmp_path, "s1", "s2")
    (tmp_path / "suite.yml").write_text('scenes: ["s*"]\nmethods: [a, b]\nseeds: [1]\n')
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", SUITE, *(str(tmp_path / n) for n in ("suite.yml", "out", "bin"))]
    suite = subprocess.Popen(command, env={**os.environ, "FAKE_SECONDS": "1.5"}, stdout=subprocess.DEVNULL)
    wait_for_starts(fake_commands, 3)
    suite.send_signal(signal.SIGKILL)
    suite.wait()
    time.sleep(2.0)  # an orphaned process would finish in this time
    records = sorted(path.parent.name for path in (tmp_path / "out").glob("*/record.json"))
    assert len(records) == 2 and not list((tmp_path / "out").glob("*/run/e/*/t/config.yml"))[2:]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert len(started(fake_commands)) == 5  # four, and the interrupted one
    assert len(list((tmp_path / "out").glob("*/record.json"))) == 4


def test_ctrl_c_kills_the_running_job_and_keeps_the_finished_ones(tmp_path: Path, fake_commands: Path):
    """An interrupted run does not count as finished, although ns-train exits with code 0 on Ctrl-C."""
    scenes(tmp_path, "s1", "s2")
    (tmp_path / "suite.yml").write_text('scenes: ["s*"]\nmethods: [a, b]\nseeds: [1]\n')
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", SUITE, *(str(tmp_path / n) for n in ("suite.yml", "out", "bin"))]
    slow = {**os.environ, "FAKE_SECONDS": "1.5"}
    # A terminal sends Ctrl-C to all processes of the group.
    suite = subprocess.Popen(command, env=slow, stdout=subprocess.PIPE, text=True, start_new_session=True)
    wait_for_starts(fake_commands, 3)
    os.killpg(suite.pid, signal.SIGINT)
    output, _ = suite.communicate(timeout=60)
    assert suite.returncode == 130 and "run the same command again" in output
    time.sleep(2.0)  # an orphaned process would finish in this time
    assert len(list((tmp_path / "out").glob("*/record.json"))) == 2
    assert len(started(fake_commands)) == 3 and len((fake_commands / "started.ends").read_text().split()) == 2
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert len(started(fake_commands)) == 5
    assert len(list((tmp_path / "out").glob("*/record.json"))) == 4


def test_lengths_in_different_units_are_in_no_table():
    def result(units: str, seed: int) -> JobResult:
        metrics = {"units": units, "surface": {"chamfer": 1.0, "chamfer_pct": 2.0, "fscore": 0.5}}
        return JobResult("a", "scene", seed, 1.0, 1.0, metrics, None, "folder")

    same = [result("mm", 1), result("mm", 2)]
    assert "Chamfer, mm" in columns_of(same).values() and method_statistics(same)["a"]["of"]["chamfer"] == (1.0, 0.0)
    mixed = [result("mm", 1), result("object units", 2)]
    assert not [header for header in columns_of(mixed).values() if "units" in header or "mm" in header]
    of = method_statistics(mixed)["a"]["of"]
    assert "chamfer" not in of and of["chamfer_pct"] == (2.0, 0.0)
    headers = [str(column.header) for column in result_table(mixed, "title").columns]
    assert headers == ["method", *columns_of(mixed).values()]


def test_mean_and_standard_deviation(tmp_path: Path, fake_commands: Path):
    (one,) = scenes(tmp_path, "one")
    results = run([*(Job("a", one, seed) for seed in (1, 2, 6)), Job("bad", one)], tmp_path / "out", fake_commands)
    found = method_statistics(results)
    assert found["a"]["runs"] == 3 and found["a"]["failed"] == 0 and found["bad"]["failed"] == 1
    assert found["a"]["of"]["chamfer"] == pytest.approx((3.5, np.sqrt(7.0)))  # 1.5, 2.5, 6.5
    assert found["a"]["of"]["mae_deg"] == (1.0, 0.0) and found["bad"]["of"]["chamfer"] == (None, None)
    files = write_results(tmp_path, "suite", results)
    rows = files[1].read_text().splitlines()
    assert len(rows) == 5 and rows[0].startswith("method,scene,seed,rot_deg,chamfer,")
    assert len(json.loads(files[0].read_text())["outcomes"]) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scenes: [s1\n", "not valid YAML"),
        ("scenes: [2020-99-99]\nmethods: [pmni]\n", "not valid YAML"),
        ("scenes: " + "[" * 5000, "not valid YAML"),
        ("- 1\n", "needs the keys"),
        ("scenes: [s1]\n", "needs the keys"),
        ("scenes: [s1]\nmethods: [pmni]\nsedes: [1]\n", "sedes: is not a key"),
        ("scenes: [nowhere]\nmethods: [pmni]\n", "'nowhere': no such folder"),
        ("scenes: ['x*']\nmethods: [pmni]\n", "no such folder"),
        ("scenes: []\nmethods: [pmni]\n", "scenes: must be a list"),
        ("scenes: [s1]\nmethods: [{nam: pmni}]\n", "methods:"),
        ("scenes: [s1]\nmethods: [{name: pmni, flags: 3}]\n", "flags: must be a list"),
        ("scenes: [s1]\nmethods: [pmni]\nseeds: [one]\n", "seeds: must be whole numbers"),
        ("scenes: [{path: s1, truth: t}]\nmethods: [pmni]\n", "no such ground-truth folder"),
        ("scenes: [s1]\nmethods: [!!python/object/apply:os.system [ls]]\n", "not valid YAML"),
    ],
)
def test_errors_in_a_suite_file_are_one_line(text: str, message: str, tmp_path: Path):
    scenes(tmp_path, "s1")
    (tmp_path / "suite.yml").write_text(text)
    with pytest.raises(PmniError, match=message) as error:
        read_suite(tmp_path / "suite.yml")
    assert "\n" not in str(error.value) and "suite.yml" in str(error.value)


def test_a_suite_combines_every_scene_with_every_method_and_seed(tmp_path: Path):
    scenes(tmp_path, "s1", "s2", "other", "truth")
    (tmp_path / "suite.yml").write_text(
        "scenes: ['s?', {path: other, truth: truth}]\nmethods: [pmni, {name: m, flags: [--x, 3]}]\nseeds: [1, 2]\n"
    )
    jobs = read_suite(tmp_path / "suite.yml")
    assert len(jobs) == 3 * 2 * 2
    assert {job.flags for job in jobs if job.method == "m"} == {("--x", "3")}
    assert {job.ground_truth for job in jobs if job.scene.name == "other"} == {tmp_path / "truth"}


def test_scenes_are_patterns_or_paths_relative_to_the_suite_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("data/b/scene", "data/a/scene", "data/a/other", "x[1]"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "suite.yml").write_text(f"scenes: ['data/*/scene', 'x[1]', {tmp_path}/data/a/o*]\nmethods: [pmni]\n")
    monkeypatch.chdir(tmp_path)  # the paths of the jobs are absolute
    found = [job.scene for job in read_suite(Path("suite.yml"))]
    assert found == [tmp_path / name for name in ("data/a/scene", "data/b/scene", "x[1]", "data/a/other")]


def test_a_missing_ray_cluster_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ray = pytest.importorskip("ray")

    def no_cluster(**_) -> None:
        raise ConnectionError("Could not connect\nto it")

    monkeypatch.setattr(ray, "init", no_cluster)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(PmniError, match="RAY_ADDRESS=auto: .*Could not connect to it"):
        list(run_on_ray(run_job, failed_result, [], tmp_path, None))
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:port", "127.0.0.1:99999"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(PmniError, match=f"RAY_ADDRESS={address}: no connection"):
            list(run_on_ray(run_job, failed_result, [], tmp_path, None))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PmniError, match="isn't installed; run pip install"):
        list(run_on_ray(run_job, failed_result, [], tmp_path, None))


@pytest.mark.slow
def test_ray_runs_the_jobs(tmp_path: Path, fake_commands: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (one,) = scenes(tmp_path, "one")
    jobs = [Job("a", one, seed) for seed in (1, 2)] + [Job("bad", one)]
    (tmp_path / "out").mkdir()
    messages: list[str] = []
    found = list(run_on_ray(run_job, failed_result, jobs, tmp_path / "out", 1, fake_commands, messages.append))
    assert {o.seed: o.metrics["surface"]["chamfer"] for o in found if o.metrics} == {1: 1.5, 2: 2.5}
    assert sum(o.reason is not None for o in found) == 1 and "1 node" in messages[0]
    assert len(started(fake_commands)) == 3


# ---- with real commands


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scene with rough poses, and its ground truth."""
    folder = tmp_path_factory.mktemp("real") / "scene"
    SynthCommand(out=folder, views=6, width=48, height=40, mesh_resolution=48, rotation_noise_deg=3).main()
    return folder


@pytest.fixture
def forked_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real ns-train and pmni, without the time of their imports, and with coarse meshes."""

    def run_coarse(command: Sequence[str], log: Path, **options: Any) -> ResourceUsage:
        return run_forked([*command, *(["--resolution", "128"] if "eval" in command else [])], log, **options)

    monkeypatch.setattr(job_module, "run_command", run_coarse)


def logged_commands(folder: Path) -> Callable[[list[str]], ResourceUsage]:
    return partial(run_command, log=folder / "log.txt")


def test_calibrated_methods_get_the_true_poses(scene: Path, tmp_path: Path):
    from pmni_nerfstudio.data.scene import read_scene

    data = job_module._prepare_data(Job("pmni-calibrated", scene), tmp_path, logged_commands(tmp_path))
    rough, given = read_scene(scene), read_scene(data)
    true = np.load(scene / "truth" / "truth.npz")["c2w"]
    assert given.c2w is not None and rough.c2w is not None
    np.testing.assert_allclose(given.c2w, true, atol=1e-6)
    assert np.abs(rough.c2w - true).max() > 0.01
    np.testing.assert_array_equal(given.normals, rough.normals)
    assert job_module._prepare_data(Job("pmni", scene), tmp_path, logged_commands(tmp_path)) == scene


@pytest.mark.slow
@pytest.mark.usefixtures("forked_commands")
def test_methods_are_compared_on_one_scene(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    few = "--max-num-iterations 30"
    methods = (f"pmni-calibrated {few}", f"pmni {few}", f"neus-facto {few}")
    words = words_of(documented_command("pmni compare"), {"DIR": scene, "OUT/compared": tmp_path / "out"})
    main([*words[1:], "--methods", *methods])
    printed = capsys.readouterr().out
    assert "running neus-facto-small instead" in printed and "compare.html" in printed
    found = json.loads((tmp_path / "out" / "compare.json").read_text())["outcomes"]
    assert [o["method"] for o in found] == ["pmni-calibrated", "pmni", "neus-facto-small"]
    assert all(o["reason"] is None for o in found), [o["reason"] for o in found]
    assert found[0]["metrics"]["surface"]["chamfer_pct"] < 2
    assert [o["metrics"]["aligned"] for o in found] == [False, True, False]
    page = (tmp_path / "out" / "compare.html").read_text()
    assert all(o["method"] in page for o in found) and "rendered normals" in page


def test_depth_maps_are_written_to_a_copy_of_the_scene(scene: Path, tmp_path: Path):
    """Also if the scene already has an empty folder for them."""
    (scene / "integration").mkdir()
    try:
        data = job_module._prepare_data(Job("pmni-original", scene), tmp_path, logged_commands(tmp_path))
        assert len(list((data / "integration" / "depth").glob("*.npy"))) == 6
        assert not list((scene / "integration").iterdir())
    finally:
        (scene / "integration").rmdir()


def test_an_unbalanced_quote_is_a_one_line_error(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["compare", str(scene), "--output-dir", str(tmp_path / "out"), "--methods", "pmni 'a"])
    assert "error: methods: pmni 'a: No closing quotation" in capsys.readouterr().err


def test_an_invalid_scene_is_reported_before_any_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (one,) = scenes(tmp_path, "one")
    with pytest.raises(SystemExit):
        main(["compare", str(one), "--output-dir", str(tmp_path / "out")])
    assert f"error: {one}" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("forked_commands")
def test_a_suite_prints_mean_and_standard_deviation(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "suite.yml").write_text(
        f"scenes: [{scene}]\nmethods: [{{name: pmni-calibrated, flags: [--max-num-iterations, 30]}}]\nseeds: [1, 2]\n"
    )
    substitutions = {"SUITE.yml": tmp_path / "suite.yml", "OUT/suite": tmp_path / "out"}
    main(words_of(documented_command("pmni suite"), substitutions)[1:])
    assert "±" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "suite.json").read_text())
    assert list(found["methods"]) == ["pmni-calibrated --max-num-iterations 30"]
    mean, deviation = found["methods"]["pmni-calibrated --max-num-iterations 30"]["of"]["chamfer_pct"]
    assert 0 < mean < 2 and 0 < deviation < mean
