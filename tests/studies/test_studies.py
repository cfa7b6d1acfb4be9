# SPDX-License-Identifier: Apache-2.0
"""Suites and comparisons: with commands that only pretend, whose every start is counted; and with real ones, slowly."""

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

import numpy as np
import pytest
from helpers.readme import readme_command, words_of
from rich.console import Console

from pmni_nerfstudio.cli import main
from pmni_nerfstudio.commands.synth import SynthCommand
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.studies import engines
from pmni_nerfstudio.studies import job as job_module
from pmni_nerfstudio.studies.engines import run_locally, run_on_ray
from pmni_nerfstudio.studies.job import Job, Outcome, why_not, with_reason
from pmni_nerfstudio.studies.processes import Spent, run_command
from pmni_nerfstudio.studies.running import do_jobs
from pmni_nerfstudio.studies.suite import read_suite
from pmni_nerfstudio.studies.summary import spreads, value, write_outcomes

TRAIN = """#!{python}
import os, pathlib, sys, time
words = sys.argv
method, out = words[1], pathlib.Path(words[words.index("--output-dir") + 1])
with open({log!r}, "a") as log:
    log.write(f"{{method}} {{os.environ.get('CUDA_VISIBLE_DEVICES', '-')}}\\n")
with open({log!r} + ".threads", "a") as log:
    log.write(os.environ.get("OMP_NUM_THREADS", "-") + "\\n")
try:
    time.sleep(float(os.environ.get("PRETEND_SECONDS", "0")))
except KeyboardInterrupt:  # as nerfstudio: the end of a run, with code 0
    pass
if method == "bad":
    sys.exit("error: " + "the data are nonsense")
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
def pretended(tmp_path: Path) -> Path:
    """A folder with an ns-train and a pmni that take no time; what was trained stands in its file `started`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("ns-train", TRAIN), ("pmni", EVAL)):
        (folder / name).write_text(text.format(python=sys.executable, log=str(folder / "started")))
        (folder / name).chmod(0o755)
    return folder


def started(pretended: Path) -> list[str]:
    log = pretended / "started"
    return log.read_text().splitlines() if log.is_file() else []


def wait_for_starts(pretended: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(started(pretended)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def scenes(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).mkdir()
    return [folder / name for name in names]


def do(jobs: Sequence[Job], out: Path, pretended: Path, at_once: int = 1, gpus: Sequence[str] = ()) -> list[Outcome]:
    out.mkdir(exist_ok=True)
    runner = lambda left: run_locally(left, out, at_once, gpus, pretended)  # noqa: E731
    return do_jobs(jobs, out, runner, Console(quiet=True), lambda method: None)


def test_every_job_is_done_once_and_what_is_new_is_added(tmp_path: Path, pretended: Path):
    one, two = scenes(tmp_path, "one", "two")
    jobs = [Job("a", one, 1), Job("a", one, 2), Job("b", two, 1)]
    outcomes = do(jobs, tmp_path / "out", pretended)
    assert [(o.method, o.seed, value(o, "rot_deg")) for o in outcomes] == [("a", 1, 0.1), ("a", 2, 0.2), ("b", 1, 0.1)]
    assert all(o.seconds and o.seconds > 0 and o.peak_gb and o.peak_gb > 0.001 for o in outcomes)
    more = do([*jobs, Job("b", two, 1, ("--other",))], tmp_path / "out", pretended)
    assert more[:3] == outcomes and len(started(pretended)) == 4
    assert len({job.name for job in jobs}) == 3


def test_a_failure_is_told_and_ends_nothing(tmp_path: Path, pretended: Path):
    (one,) = scenes(tmp_path, "one")
    outcomes = do([Job("bad", one), Job("good", one)], tmp_path / "out", pretended)
    assert outcomes[0].metrics is None and "the data are nonsense" in str(outcomes[0].reason)
    assert "log.txt" in str(outcomes[0].reason) and outcomes[1].reason is None
    do([Job("bad", one), Job("good", one)], tmp_path / "out", pretended)
    assert [line.split()[0] for line in started(pretended)] == ["bad", "good", "bad"]  # tried again


def test_what_cannot_run_here_is_listed_and_not_begun(tmp_path: Path, pretended: Path):
    (one,) = scenes(tmp_path, "one")
    runner = lambda left: run_locally(left, tmp_path, 1, (), pretended)  # noqa: E731
    found = do_jobs([Job("a", one), Job("b", one)], tmp_path, runner, Console(quiet=True), {"a": "no GPU"}.get)
    assert [o.reason for o in found] == ["no GPU", None]
    assert started(pretended) == ["b -"]


def test_methods_are_known_or_named():
    assert why_not("pmni") is None and why_not("neus-facto-small") is None
    assert "neus-facto-small" in str(why_not("neus-facto"))
    with pytest.raises(PmniError, match="pmni-calibrated"):
        why_not("nemo")


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("bracketed", "ns-train bracketed: ValueError: no [/tmp/x] in [bold] (all"),
        ("framed", "ns-train framed: Unrecognized options: --no-such, 3 (all"),
    ],
)
def test_a_reason_is_what_the_command_said_last(method: str, reason: str, tmp_path: Path, pretended: Path):
    """Brackets in it are no markup, and frames no words."""
    (one,) = scenes(tmp_path, "one")
    (tmp_path / "out").mkdir()
    console = Console(record=True, file=io.StringIO())
    runner = lambda left: run_locally(left, tmp_path / "out", 1, (), pretended)  # noqa: E731
    (outcome,) = do_jobs([Job(method, one)], tmp_path / "out", runner, console, lambda method: None)
    assert outcome.reason is not None and outcome.reason.startswith(reason)
    assert reason in console.export_text()


def test_each_gpu_has_one_job_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lock, busy, most, used = threading.Lock(), Counter(), Counter(), Counter()

    def pretend(job: Job, out: Path, environment: dict[str, str], *_) -> Outcome:
        gpu = environment["CUDA_VISIBLE_DEVICES"]
        with lock:
            busy[gpu] += 1
            used[gpu] += 1
            most[gpu] = max(most[gpu], busy[gpu])
        time.sleep(0.02)
        with lock:
            busy[gpu] -= 1
        return with_reason(job, "", out)

    monkeypatch.setattr(engines, "run_job", pretend)
    jobs = [Job("a", tmp_path, seed) for seed in range(12)]
    assert len(list(run_locally(jobs, tmp_path, 2, ("3", "5")))) == 12
    assert most == {"3": 1, "5": 1} and used.total() == 12


def test_gpus_are_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert engines.gpu_ids() == ["0", "1", "2"] and engines.jobs_at_once(engines.gpu_ids()) == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    assert engines.gpu_ids() == ["4", "GPU-7"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    assert engines.gpu_ids() == [] and engines.jobs_at_once([]) == 4


def test_jobs_share_the_cores(tmp_path: Path, pretended: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    (one,) = scenes(tmp_path, "one")
    do([Job("a", one, 1)], tmp_path / "out", pretended, at_once=1)
    do([Job("a", one, 2)], tmp_path / "out", pretended, at_once=2)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    do([Job("a", one, 3)], tmp_path / "out", pretended, at_once=2)
    assert (pretended / "started.threads").read_text().split() == ["-", "3", "5"]


def test_other_flags_are_another_method(tmp_path: Path, pretended: Path):
    (one,) = scenes(tmp_path, "one")
    jobs = [Job("a", one, 1), Job("a", one, 3, ("--x", "y z"))]
    do(jobs, tmp_path / "out", pretended)
    outcomes = do(jobs, tmp_path / "out", pretended)  # read from their records
    found = spreads(outcomes)
    assert {label: row["of"]["chamfer"] for label, row in found.items()} == {"a": (1.5, None), "a --x y z": (3.5, None)}
    with write_outcomes(tmp_path, "suite", outcomes)[1].open() as file:
        assert [row["flags"] for row in csv.DictReader(file)] == ["", "--x 'y z'"]


def test_a_folder_may_be_moved(tmp_path: Path, pretended: Path):
    (one,) = scenes(tmp_path, "one")
    do([Job("a", one)], tmp_path / "out", pretended)
    (tmp_path / "out").rename(tmp_path / "moved")
    (found,) = do([Job("a", one)], tmp_path / "moved", pretended)
    assert (Path(found.folder) / "result" / "metrics.json").is_file() and len(started(pretended)) == 1


def test_memory_is_the_most_that_a_process_held(tmp_path: Path):
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    (tmp_path / "large").write_text(f"#!{sys.executable}\nx = b'1' * ({own + 200} << 20)\n")
    (tmp_path / "large").chmod(0o755)
    assert own + 200 < run_command(["large"], tmp_path / "log", tmp_path).peak_mb < own + 300


SUITE = """
import sys
from pathlib import Path
from rich.console import Console
from pmni_nerfstudio.studies.engines import run_locally
from pmni_nerfstudio.studies.running import do_jobs
from pmni_nerfstudio.studies.suite import read_suite
out, bin_folder = Path(sys.argv[2]), Path(sys.argv[3])
jobs = read_suite(Path(sys.argv[1]))
do_jobs(jobs, out, lambda left: run_locally(left, out, 1, (), bin_folder), Console(), lambda method: None)
"""


def test_a_suite_that_is_killed_goes_on_where_it_was(tmp_path: Path, pretended: Path):
    """In the middle of its third run: the first two are not done again, and nobody works on after the kill."""
    scenes(tmp_path, "s1", "s2")
    (tmp_path / "suite.yml").write_text('scenes: ["s*"]\nmethods: [a, b]\nseeds: [1]\n')
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", SUITE, *(str(tmp_path / n) for n in ("suite.yml", "out", "bin"))]
    suite = subprocess.Popen(command, env={**os.environ, "PRETEND_SECONDS": "1.5"}, stdout=subprocess.DEVNULL)
    wait_for_starts(pretended, 3)
    suite.send_signal(signal.SIGKILL)
    suite.wait()
    time.sleep(2.0)  # an orphan would finish now
    records = sorted(path.parent.name for path in (tmp_path / "out").glob("*/record.json"))
    assert len(records) == 2 and not list((tmp_path / "out").glob("*/run/e/*/t/config.yml"))[2:]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert len(started(pretended)) == 5  # four, and the one that was cut off
    assert len(list((tmp_path / "out").glob("*/record.json"))) == 4


def test_ctrl_c_ends_what_is_at_work_and_keeps_what_was_done(tmp_path: Path, pretended: Path):
    """A run that Ctrl-C cut short is no result, though it ends with code 0: not for this start, nor for the next."""
    scenes(tmp_path, "s1", "s2")
    (tmp_path / "suite.yml").write_text('scenes: ["s*"]\nmethods: [a, b]\nseeds: [1]\n')
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-c", SUITE, *(str(tmp_path / n) for n in ("suite.yml", "out", "bin"))]
    slow = {**os.environ, "PRETEND_SECONDS": "1.5"}
    # the terminal sends it to all processes of the group
    suite = subprocess.Popen(command, env=slow, stdout=subprocess.PIPE, text=True, start_new_session=True)
    wait_for_starts(pretended, 3)
    os.killpg(suite.pid, signal.SIGINT)
    told, _ = suite.communicate(timeout=60)
    assert suite.returncode == 130 and "goes on from there" in told
    time.sleep(2.0)  # an orphan would finish now
    assert len(list((tmp_path / "out").glob("*/record.json"))) == 2
    assert len(started(pretended)) == 3 and len((pretended / "started.ends").read_text().split()) == 2
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert len(started(pretended)) == 5
    assert len(list((tmp_path / "out").glob("*/record.json"))) == 4


def test_mean_and_spread(tmp_path: Path, pretended: Path):
    (one,) = scenes(tmp_path, "one")
    outcomes = do([*(Job("a", one, seed) for seed in (1, 2, 6)), Job("bad", one)], tmp_path / "out", pretended)
    found = spreads(outcomes)
    assert found["a"]["runs"] == 3 and found["a"]["failed"] == 0 and found["bad"]["failed"] == 1
    assert found["a"]["of"]["chamfer"] == pytest.approx((3.5, np.sqrt(7.0)))  # 1.5, 2.5, 6.5
    assert found["a"]["of"]["mae_deg"] == (1.0, 0.0) and found["bad"]["of"]["chamfer"] == (None, None)
    files = write_outcomes(tmp_path, "suite", outcomes)
    rows = files[1].read_text().splitlines()
    assert len(rows) == 5 and rows[0].startswith("method,scene,seed,rot_deg,chamfer,")
    assert len(json.loads(files[0].read_text())["outcomes"]) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scenes: [s1\n", "no YAML"),
        ("scenes: [2020-99-99]\nmethods: [pmni]\n", "no YAML"),
        ("scenes: " + "[" * 5000, "no YAML"),
        ("- 1\n", "needs the keys"),
        ("scenes: [s1]\n", "needs the keys"),
        ("scenes: [s1]\nmethods: [pmni]\nsedes: [1]\n", "sedes: is no key"),
        ("scenes: [nowhere]\nmethods: [pmni]\n", "'nowhere': no such folder"),
        ("scenes: ['x*']\nmethods: [pmni]\n", "no such folder"),
        ("scenes: []\nmethods: [pmni]\n", "scenes: must be a list"),
        ("scenes: [s1]\nmethods: [{nam: pmni}]\n", "methods:"),
        ("scenes: [s1]\nmethods: [{name: pmni, flags: 3}]\n", "flags: must be a list"),
        ("scenes: [s1]\nmethods: [pmni]\nseeds: [one]\n", "seeds: are whole numbers"),
        ("scenes: [{path: s1, truth: t}]\nmethods: [pmni]\n", "no such truth folder"),
        ("scenes: [s1]\nmethods: [!!python/object/apply:os.system [ls]]\n", "no YAML"),
    ],
)
def test_mistakes_in_a_suite_are_one_line(text: str, message: str, tmp_path: Path):
    scenes(tmp_path, "s1")
    (tmp_path / "suite.yml").write_text(text)
    with pytest.raises(PmniError, match=message) as error:
        read_suite(tmp_path / "suite.yml")
    assert "\n" not in str(error.value) and "suite.yml" in str(error.value)


def test_a_suite_is_every_scene_with_every_method_and_seed(tmp_path: Path):
    scenes(tmp_path, "s1", "s2", "other", "truth")
    (tmp_path / "suite.yml").write_text(
        "scenes: ['s?', {path: other, truth: truth}]\nmethods: [pmni, {name: m, flags: [--x, 3]}]\nseeds: [1, 2]\n"
    )
    jobs = read_suite(tmp_path / "suite.yml")
    assert len(jobs) == 3 * 2 * 2
    assert {job.flags for job in jobs if job.method == "m"} == {("--x", "3")}
    assert {job.truth for job in jobs if job.scene.name == "other"} == {tmp_path / "truth"}


def test_scenes_are_patterns_or_names_from_the_file_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("data/b/scene", "data/a/scene", "data/a/other", "x[1]"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "suite.yml").write_text(f"scenes: ['data/*/scene', 'x[1]', {tmp_path}/data/a/o*]\nmethods: [pmni]\n")
    monkeypatch.chdir(tmp_path)  # the paths are whole, wherever the jobs run
    found = [job.scene for job in read_suite(Path("suite.yml"))]
    assert found == [tmp_path / name for name in ("data/a/scene", "data/b/scene", "x[1]", "data/a/other")]


def test_no_ray_where_it_should_be_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ray = pytest.importorskip("ray")

    def nobody(**_) -> None:
        raise ConnectionError("Could not connect\nto it")

    monkeypatch.setattr(ray, "init", nobody)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(PmniError, match="RAY_ADDRESS=auto: .*Could not connect to it"):
        list(run_on_ray([], tmp_path, None))
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:port", "127.0.0.1:99999"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(PmniError, match=f"RAY_ADDRESS={address}: nobody answers"):
            list(run_on_ray([], tmp_path, None))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PmniError, match="isn't installed: pip install"):
        list(run_on_ray([], tmp_path, None))


@pytest.mark.slow
def test_ray_does_the_same(tmp_path: Path, pretended: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (one,) = scenes(tmp_path, "one")
    jobs = [Job("a", one, seed) for seed in (1, 2)] + [Job("bad", one)]
    (tmp_path / "out").mkdir()
    told: list[str] = []
    found = list(run_on_ray(jobs, tmp_path / "out", 1, pretended, told.append))
    assert {o.seed: o.metrics["surface"]["chamfer"] for o in found if o.metrics} == {1: 1.5, 2: 2.5}
    assert sum(o.reason is not None for o in found) == 1 and "1 node" in told[0]
    assert len(started(pretended)) == 3


# ---- with real commands


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rough poses, and the truth in its folder."""
    folder = tmp_path_factory.mktemp("real") / "scene"
    SynthCommand(out=folder, views=6, width=48, height=40, mesh_resolution=48, rotation_noise_deg=3).main()
    return folder


def in_log(folder: Path) -> Callable[[list[str]], Spent]:
    return partial(run_command, log=folder / "log.txt")


def test_methods_with_given_poses_get_the_true_ones(scene: Path, tmp_path: Path):
    from pmni_nerfstudio.data.scene import read_scene

    data = job_module._data_for(Job("pmni-calibrated", scene), tmp_path, in_log(tmp_path))
    rough, given = read_scene(scene), read_scene(data)
    true = np.load(scene / "truth" / "truth.npz")["c2w"]
    assert given.c2w is not None and rough.c2w is not None
    np.testing.assert_allclose(given.c2w, true, atol=1e-6)
    assert np.abs(rough.c2w - true).max() > 0.01
    np.testing.assert_array_equal(given.normals, rough.normals)
    assert job_module._data_for(Job("pmni", scene), tmp_path, in_log(tmp_path)) == scene


@pytest.mark.slow
def test_methods_are_compared_on_one_scene(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    few = "--max-num-iterations 30"
    methods = (f"pmni-calibrated {few}", f"pmni {few}", f"neus-facto {few}")
    words = words_of(readme_command("pmni compare"), {"DIR": scene, "OUT/compared": tmp_path / "out"})
    main([*words[1:], "--methods", *methods])
    printed = capsys.readouterr().out
    assert "neus-facto-small runs in its place" in printed and "compare.html" in printed
    found = json.loads((tmp_path / "out" / "compare.json").read_text())["outcomes"]
    assert [o["method"] for o in found] == ["pmni-calibrated", "pmni", "neus-facto-small"]
    assert all(o["reason"] is None for o in found), [o["reason"] for o in found]
    assert found[0]["metrics"]["surface"]["chamfer_pct"] < 2
    assert [o["metrics"]["aligned"] for o in found] == [False, True, False]
    page = (tmp_path / "out" / "compare.html").read_text()
    assert all(o["method"] in page for o in found) and "rendered normals" in page


def test_depth_maps_are_made_in_a_copy(scene: Path, tmp_path: Path):
    """Also where the scene has that folder, without them."""
    (scene / "integration").mkdir()
    try:
        data = job_module._data_for(Job("pmni-original", scene), tmp_path, in_log(tmp_path))
        assert len(list((data / "integration" / "depth").glob("*.npy"))) == 6
        assert not list((scene / "integration").iterdir())
    finally:
        (scene / "integration").rmdir()


def test_quotes_that_do_not_end_are_one_line(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["compare", str(scene), "--output-dir", str(tmp_path / "out"), "--methods", "pmni 'a"])
    assert "error: methods: pmni 'a: No closing quotation" in capsys.readouterr().err


def test_a_broken_scene_is_told_before_anything_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (one,) = scenes(tmp_path, "one")
    with pytest.raises(SystemExit):
        main(["compare", str(one), "--output-dir", str(tmp_path / "out")])
    assert f"error: {one}" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_suite_runs_and_says_mean_and_spread(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "suite.yml").write_text(
        f"scenes: [{scene}]\nmethods: [{{name: pmni-calibrated, flags: [--max-num-iterations, 30]}}]\nseeds: [1, 2]\n"
    )
    stand_for = {"SUITE.yml": tmp_path / "suite.yml", "OUT/suite": tmp_path / "out"}
    main(words_of(readme_command("pmni suite"), stand_for)[1:])
    assert "±" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "suite.json").read_text())
    assert list(found["methods"]) == ["pmni-calibrated --max-num-iterations 30"]
    mean, spread = found["methods"]["pmni-calibrated --max-num-iterations 30"]["of"]["chamfer_pct"]
    assert 0 < mean < 2 and 0 < spread < mean
