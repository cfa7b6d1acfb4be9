# SPDX-License-Identifier: Apache-2.0
"""`pmni objects` on three spheres; common surface and training, which other tests cover, are replaced by exact ones and by
meshes that are too large."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from helpers.programs import run_forked
from helpers.several_objects import APART, RADIUS, TOUCHING, ball, make_spheres, shuffled

from pmni_nerfstudio.cli import main
from pmni_nerfstudio.data.atomic import write_json
from pmni_nerfstudio.data.result_files import read_mesh
from pmni_nerfstudio.data.scene import Scene, read_scene
from pmni_nerfstudio.model.initialization import Initialization
from pmni_nerfstudio.objects import common_poses
from pmni_nerfstudio.studies import engines
from pmni_nerfstudio.studies import job as job_module
from pmni_nerfstudio.studies.job import RECORD, Job, JobResult

TOO_LARGE = 1.02


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Jobs that were trained: the mesh of each is the sphere about the middle of its scene, slightly too large."""
    jobs: list[Job] = []

    def run(work: object, remaining: list[Job], out: Path, *_) -> Iterator[JobResult]:
        for job in remaining:
            scene = read_scene(job.scene)
            assert scene.unknown is not None
            center = scene.world_from_unit[:3, 3]
            nearest = np.linalg.norm(np.array(APART) - center, axis=1).argmin()
            result = out / job.name / "result"
            result.mkdir(parents=True)
            ball(APART[nearest], TOO_LARGE * RADIUS).export(result / "mesh.ply")
            metrics = {"normals": {"mae_deg": 0.5}}
            made = JobResult(job.method, str(job.scene), 42, 1.0, 1.0, metrics, None, str(result.parent))
            jobs.append(job)
            write_json(out / job.name / RECORD, asdict(made))
            yield made

    def at_given_poses(scene: Scene) -> Initialization:
        assert scene.c2w is not None
        return Initialization(scene.c2w, torch.from_numpy(make_spheres(views=2).sdf))

    monkeypatch.setattr(engines, "run_locally", run)
    monkeypatch.setattr(common_poses, "surface_at_given_poses", at_given_poses)
    return jobs


@pytest.fixture
def capture(tmp_path: Path) -> Callable[..., Path]:
    def make(labels: Callable[[np.ndarray], np.ndarray] = np.asarray) -> Path:
        spheres = make_spheres(size=(48, 40))
        folder = spheres.write(tmp_path / "scene", labels(spheres.labels))
        truth = folder / "truth"
        (truth / "objects").mkdir(parents=True)
        meshes = {name: ball(center) for name, center in zip("abc", APART)}
        for name, mesh in meshes.items():
            mesh.export(truth / "objects" / f"{name}.ply")
        trimesh.util.concatenate(list(meshes.values())).export(truth / "mesh_Gt.ply")
        scene = spheres.scene
        np.savez(truth / "truth.npz", c2w=scene.c2w, K=scene.K, scale_mat=np.eye(4), depth=scene.depths)
        return folder

    return make


def test_meshes_scores_and_scene_file_by_object(tmp_path, capture, trained, capsys):
    scene, out = capture(shuffled), tmp_path / "out"
    command = ["objects", str(scene), "--output-dir", str(out), "--poses", "given", "--truth", str(scene / "truth")]
    main(command)
    assert len(trained) == 3 and {job.method for job in trained} == {"pmni-calibrated"}
    record = json.loads((out / "objects.json").read_text())
    assert record["labels"]["matched"] and record["contacts"] == [] and record["missing"] == []
    assert sorted(entry["scores"]["truth"] for entry in record["objects"]) == ["a", "b", "c"]
    for entry in record["objects"]:
        assert entry["scores"]["whole"]["chamfer"] == pytest.approx((TOO_LARGE - 1) * RADIUS, rel=0.1)
        assert (out / entry["mesh"]).is_file() and (out / entry["run"]).is_dir()
        assert max(entry["hidden"].values()) > 0.1
    read = trimesh.load(out / "scene.glb")
    assert isinstance(read, trimesh.Scene)
    assert set(read.graph.nodes_geometry) == {"object_1", "object_2", "object_3"}
    capsys.readouterr()
    main(command)
    assert len(trained) == 3 and "3 of 3 jobs are finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jobs", "0"], "jobs: 0 is not positive"),
        (["--train", "pmni-calibrated 'x"], "quote flags as in a shell"),
        (["--truth", "nowhere"], "truth.npz: is missing"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, capture, trained, capsys, options, message):
    scene = capture()
    with pytest.raises(SystemExit) as stopped:
        main(["objects", str(scene), "--output-dir", str(tmp_path / "out"), "--poses", "given", *options])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and not trained


def test_a_scene_without_labels_is_refused(tmp_path, trained, capsys):
    scene = make_spheres(size=(48, 40)).scene.write(tmp_path / "scene")
    with pytest.raises(SystemExit):
        main(["objects", str(scene), "--output-dir", str(tmp_path / "out")])
    assert "instance: no such folder; put a label image of each view there" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_touching_objects_are_trained_and_do_not_overlap(tmp_path, monkeypatch):
    """With real trainings, so short that the surfaces are rough."""
    monkeypatch.setattr(job_module, "run_command", run_forked)
    spheres = make_spheres(TOUCHING, views=8, size=(48, 40))
    scene, out = spheres.write(tmp_path / "scene"), tmp_path / "out"
    options = ["--poses", "given", "--resolution", "64", "--train", "pmni-calibrated --max-num-iterations 10"]
    main(["objects", str(scene), "--output-dir", str(out), *options])
    record = json.loads((out / "objects.json").read_text())
    for contact in record["contacts"]:
        assert contact["before"]["depth"] > 0 and contact["after"]["depth"] == 0
    meshes = [read_mesh(out / entry["mesh"]) for entry in record["objects"]]
    assert len(meshes) == 2 and all(mesh.is_watertight for mesh in meshes)
    for mesh, center in zip(meshes, TOUCHING):
        radius = np.linalg.norm(mesh.vertices - center, axis=1)
        assert np.abs(radius - RADIUS).mean() < 0.01
    assert not meshes[0].contains(meshes[1].vertices).any() and not meshes[1].contains(meshes[0].vertices).any()
