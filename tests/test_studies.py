# SPDX-License-Identifier: Apache-2.0
"""Suites and comparisons: with commands that only pretend, whose every start is counted; and with real ones, slowly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pmni_nerfstudio.cli import main
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.studies import job as job_module
from pmni_nerfstudio.studies.engines import run_locally, run_on_ray
from pmni_nerfstudio.studies.job import Job, Outcome, why_not
from pmni_nerfstudio.studies.running import do_jobs
from pmni_nerfstudio.studies.suite import read_suite
from pmni_nerfstudio.studies.summary import spreads, write_outcomes
from pmni_nerfstudio.synth.command import SynthCommand

TRAIN = """#!{python}
import os, pathlib, sys, time
words = sys.argv
method, out = words[1], pathlib.Path(words[words.index("--output-dir") + 1])
with open({log!r}, "a") as log:
    log.write(f"{{method}} {{os.environ.get('CUDA_VISIBLE_DEVICES', '-')}}\\n")
time.sleep(float(os.environ.get("PRETEND_SECONDS", "0")))
if method == "bad":
    sys.exit("error: " + "the data are nonsense")
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
    assert [(o.method, o.seed, o.metrics["poses"]["rot_deg"]) for o in outcomes] == [
        ("a", 1, 0.1),
        ("a", 2, 0.2),
        ("b", 1, 0.1),
    ]
    assert all(o.seconds > 0 and o.peak_gb > 0.001 for o in outcomes)
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


def test_each_gpu_has_one_job(tmp_path: Path, pretended: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PRETEND_SECONDS", "0.3")
    (one,) = scenes(tmp_path, "one")
    do([Job("a", one, seed) for seed in range(4)], tmp_path / "out", pretended, at_once=2, gpus=("3", "5"))
    assert sorted(started(pretended)) == ["a 3", "a 3", "a 5", "a 5"]


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
    deadline = time.monotonic() + 120
    while len(started(pretended)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    suite.send_signal(signal.SIGKILL)
    suite.wait()
    time.sleep(2.0)  # an orphan would finish now
    records = sorted(path.parent.name for path in (tmp_path / "out").glob("*/record.json"))
    assert len(records) == 2 and not list((tmp_path / "out").glob("*/run/e/*/t/config.yml"))[2:]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert len(started(pretended)) == 5  # four, and the one that was cut off
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
        ("- 1\n", "needs the keys"),
        ("scenes: [s1]\n", "needs the keys"),
        ("scenes: [s1]\nmethods: [pmni]\nsedes: [1]\n", "sedes: is no key"),
        ("scenes: [nowhere]\nmethods: [pmni]\n", "nowhere: no such folder"),
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


def test_methods_with_given_poses_get_the_true_ones(scene: Path, tmp_path: Path):
    from pmni_nerfstudio.data.scene import read_scene

    data = job_module._data_for(Job("pmni-calibrated", scene), tmp_path, job_module.BIN)
    rough, given = read_scene(scene), read_scene(data)
    true = np.load(scene / "truth" / "truth.npz")["c2w"]
    np.testing.assert_allclose(given.c2w, true, atol=1e-6)
    assert np.abs(rough.c2w - true).max() > 0.01
    np.testing.assert_array_equal(given.normals, rough.normals)
    assert job_module._data_for(Job("pmni", scene), tmp_path, job_module.BIN) == scene


@pytest.mark.slow
def test_methods_are_compared_on_one_scene(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    few = "--max-num-iterations 30"
    methods = (f"pmni-calibrated {few}", f"pmni {few}", f"neus-facto {few}")
    main(["compare", str(scene), "--output-dir", str(tmp_path / "out"), "--methods", *methods])
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
    data = job_module._data_for(Job("pmni-original", scene), tmp_path, job_module.BIN)
    assert len(list((data / "integration" / "depth").glob("*.npy"))) == 6
    assert not (scene / "integration").exists()


@pytest.mark.slow
def test_a_suite_runs_and_says_mean_and_spread(scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "suite.yml").write_text(
        f"scenes: [{scene}]\nmethods: [{{name: pmni-calibrated, flags: [--max-num-iterations, 30]}}]\nseeds: [1, 2]\n"
    )
    main(["suite", str(tmp_path / "suite.yml"), "--output-dir", str(tmp_path / "out")])
    assert "±" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "suite.json").read_text())
    mean, spread = found["methods"]["pmni-calibrated"]["of"]["chamfer_pct"]
    assert 0 < mean < 2 and 0 < spread < mean
