# SPDX-License-Identifier: Apache-2.0
"""Damaged files for every reader of the package.

Bytes of good files are flipped, cut, spliced and set to values that break headers, from a seed. The damaged files are
read in a separate process whose memory and time are bounded by the system, so that a crash in a C library is a finding
as well. For longer runs by hand:

    cd tests && python -m helpers.fuzz SEED EXECUTIONS [READER ...]
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
import yaml
from PIL import Image

from helpers.importer_fuzz import PARSERS, prepare_files
from pmni_nerfstudio.data.camera_files import read_cameras, read_intrinsics, write_cameras, write_intrinsics
from pmni_nerfstudio.data.images import read_depth, read_mask, read_normals, write_exr, write_png
from pmni_nerfstudio.data.result_files import read_mesh, read_poses
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.evaluation.ground_truth import read_ground_truth
from pmni_nerfstudio.evaluation.stored_result import read_evaluated_result
from pmni_nerfstudio.studies.suite import read_suite
from pmni_nerfstudio.training.trained_run import read_config

VIEWS = 3


MEMORY = 6 << 30
"""Address space of the fuzzing process in bytes; torch alone maps half of it."""


SECONDS = 5
"""CPU time for one file of a few kilobytes."""


WAITING = 120
"""Wall time for one file, which bounds waiting."""


FUZZ = ("exr", "exr16", "png8", "png16", "npy", "mask", "jpeg", "depth", "cameras", "intrinsics", "poses", "poses_npz")


FUZZ += ("truth", "ply", "ply_text", "obj", "stl", "glb", "suite", "config", "metrics")


FUZZ += PARSERS


def good_files(folder: Path) -> dict[str, tuple[Path, Callable[[Path], object]]]:
    """A valid file of each kind and its reader."""
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(20, 24, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    K = np.tile(np.array([[100.0, 0, 12], [0, 100, 10], [0, 0, 1]]), (VIEWS, 1, 1))
    c2w = np.tile(np.eye(4), (VIEWS, 1, 1))
    c2w[:, :3, 3] = [(0, 0, -5), (0.5, 0, -5), (0, 0.5, -5)]
    paths = {
        name: folder / name / file
        for name, file in {
            **{"exr": "n.exr", "exr16": "n.exr", "png8": "n.png", "png16": "n.png", "npy": "n.npy", "mask": "m.png"},
            **{"jpeg": "m.jpg", "depth": "d.npy", "cameras": "cameras_sphere.npz", "intrinsics": "intrinsics.json"},
            **{"poses": "p.npy", "poses_npz": "p.npz", "truth": "truth.npz", "ply": "m.ply", "ply_text": "m.ply"},
            **{"obj": "m.obj", "stl": "m.stl", "glb": "m.glb", "suite": "s.yml", "config": "config.yml"},
            "metrics": "metrics.json",
        }.items()
    }
    for path in paths.values():
        path.parent.mkdir()
    write_exr(paths["exr"], normals)
    write_exr(paths["exr16"], normals, half=True)
    for name, kind in (("png8", np.uint8), ("png16", np.uint16)):
        write_png(paths[name], ((normals + 1) / 2 * np.iinfo(kind).max).astype(kind))
    np.save(paths["npy"], normals)
    write_png(paths["mask"], normals[..., 2] > 0)
    Image.fromarray(((normals[..., 2] > 0) * 255).astype(np.uint8)).save(paths["jpeg"])
    np.save(paths["depth"], np.abs(normals[..., 2]))
    write_cameras(paths["cameras"], K, c2w, np.eye(4))
    write_cameras(paths["poses_npz"], K, c2w, np.diag([9.0, 9, 9, 1]))
    write_intrinsics(paths["intrinsics"], K[0], 24, 20)
    np.save(paths["poses"], c2w)
    np.savez_compressed(
        paths["truth"], c2w=c2w, K=K[0], scale_mat=np.eye(4), depth=np.ones((VIEWS, 20, 24), np.float32)
    )
    mesh = trimesh.creation.icosphere(subdivisions=1)
    mesh.export(paths["truth"].with_name("mesh_Gt.ply"))
    mesh.export(paths["ply_text"], encoding="ascii")
    for name in ("ply", "obj", "stl", "glb"):
        mesh.export(paths[name])
    (paths["suite"].parent / "scene").mkdir()
    paths["suite"].write_text(
        'scenes: [scene, "sc*", {path: scene}]\nmethods: [pmni, {name: pmni-calibrated, flags: [--a, 500]}]\n'
        "seeds: [1, 2]\neval: [--threshold, '0.5']\n"
    )
    from pmni_nerfstudio.pmni_config import pmni

    paths["config"].write_text(yaml.dump(pmni.config))
    keys = ("scene", "config", "method", "similarity", "surface", "poses", "normals")
    record = {**dict.fromkeys(keys), "units": "mm", "aligned": True, "mesh": {"faces": 3}, "views": [{"name": "1"}]}
    paths["metrics"].write_text(json.dumps(record, indent=1))

    readers: dict[str, Callable[[Path], object]] = {
        **dict.fromkeys(("exr", "exr16", "png8", "png16", "npy"), read_normals),
        **dict.fromkeys(("mask", "jpeg"), read_mask),
        **dict.fromkeys(("ply", "ply_text", "obj", "stl", "glb"), read_mesh),
        **dict.fromkeys(("poses", "poses_npz"), lambda path: read_poses(path, VIEWS)),
        "depth": read_depth,
        "cameras": lambda path: read_cameras(path, VIEWS),
        "intrinsics": read_intrinsics,
        "truth": lambda path: read_ground_truth(path.parent),
        "suite": read_suite,
        "config": read_config,
        "metrics": lambda path: read_evaluated_result(path.parent),
    }
    return {name: (paths[name], readers[name]) for name in paths}


EDGES = [
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff\xff\x7f",
    b"\x7f\xff\xff\xff",
    b"\xff" * 4,
    b"\0" * 4,
    b"\xff" * 8,
]
"""Values that break sizes in headers, in both byte orders."""


WORDS = [
    b"9" * 30,
    b"-1",
    b"1e999",
    b"nan",
    b"null",
    b"\n",
    b"[" * 3000,
    b"{" * 3000,
    b"'",
    b"\xc3",
    b"!!python/name:os.system ",
]


WORDS += [b"!!int x", b"&a [*a, *a]", b"*a", b"\xff\xfe", b"(99999999,)", b"0.5", b"'O'", b"true"]


def damage(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Make one to four changes, most of them near the front, where headers are."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(min(len(out), rng.choice((64, 400, len(out)))) or 1)
        how = rng.randrange(7)
        if how == 0 and out:
            out[place % len(out)] ^= 1 << rng.randrange(8)
        elif how == 1 and out:
            out[place % len(out)] = rng.randrange(256)
        elif how == 2:
            edge = rng.choice(EDGES)
            out[place : place + len(edge)] = edge
        elif how == 3:
            del out[place : place + rng.choice((1, 4, 100))]
        elif how == 4:
            out = out[:place] + bytearray(rng.choice(WORDS)) + out[place + rng.choice((0, 1, 5)) :]
        elif how == 5:
            start = rng.randrange(len(other))
            out[place:place] = other[start : start + rng.choice((1, 8, 300))]
        else:
            out = out[: rng.randrange(len(out) + 1)]
    return bytes(out)


def damage_inside(data: bytes, other: bytes, rng: random.Random, folder: Path) -> bytes:
    """Damage one member of an archive and keep its checksums valid: they catch most damage of the archive itself."""
    source, target = folder / "in.zip", folder / "out.zip"
    source.write_bytes(data)
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as copy:
        names = archive.namelist()
        chosen = rng.choice(names)
        for name in names:
            content = archive.read(name)
            copy.writestr(name, damage(content, other, rng) if name == chosen else content)
    return target.read_bytes()


def damage_png(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Damage one chunk of a PNG and keep its checksums valid."""
    out, place = bytearray(data[:8]), 8
    chunks = []
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += size + 12
    chosen = rng.randrange(len(chunks))
    for i, (name, content) in enumerate(chunks):
        body = damage(content, other, rng) if i == chosen else content
        out += len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")
    return bytes(out)


def damaged(data: bytes, other: bytes, rng: random.Random, folder: Path) -> bytes:
    if rng.random() < 0.5 and data.startswith(b"PK"):
        return damage_inside(data, other, rng, folder)
    if rng.random() < 0.5 and data.startswith(b"\x89PNG"):
        return damage_png(data, other, rng)
    return damage(data, other, rng)


def finding(read: Callable[[Path], object], path: Path) -> str | None:
    """Fault in a reader's reaction to a file; None if it reads the file or refuses it with one line that names it."""
    try:
        read(path)
    except PmniError as error:
        line = str(error)
        return None if line.isprintable() and str(path.parent.parent) in line else f"line {line!r}"
    except BaseException as error:  # any other exception is a finding
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        at = "" if where is None else f" at {Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}"
        return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}{at}"
    return None


class Hang(BaseException):
    """A reader took too long."""


def fuzz(seed: int, executions: int, names: tuple[str, ...]) -> Counter[str]:
    """Read damaged files, and count the findings by reader and kind."""

    def alarm(*_: object) -> None:
        raise Hang(f"more than {SECONDS} s of work or {WAITING} s of waiting")

    faulthandler.enable()
    warnings.simplefilter("ignore")
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = good_files(folder) | prepare_files(folder)
        for kind in names:
            path, read = files[kind]
            assert finding(read, path) is None, kind
            read(path)  # a good file is read
        contents = {kind: path.read_bytes() for kind, (path, _) in files.items()}
        # The limit is on address space: memory counts as soon as it is allocated, touched or not.
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGALRM, alarm)
        signal.signal(signal.SIGPROF, alarm)
        for i in range(executions):
            kind = names[i % len(names)]
            rng = random.Random(f"{seed} {i}")
            path, read = files[kind]
            path.write_bytes(damaged(contents[kind], contents[rng.choice(FUZZ)], rng, folder))
            print(f"at {kind} {seed} {i}", file=sys.stderr, flush=True)  # a crash happened at the last line
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            signal.setitimer(signal.ITIMER_REAL, WAITING)
            what = finding(read, path)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            if what is not None:
                found[f"{kind}: {what}"] += 1
                if found[f"{kind}: {what}"] == 1:
                    print(f"finding {seed} {i} {kind}: {what}", flush=True)
    return found


def run(seed: int, executions: int, names: tuple[str, ...] = FUZZ) -> dict[str, Any]:
    """Run `fuzz` in a separate process; the JSON object that `main` prints."""
    command = [sys.executable, "-m", "helpers.fuzz", str(seed), str(executions), *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    end = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, check=False, env=environment)
    log = end.stderr.decode(errors="replace").splitlines()
    last = [line for line in log if line.startswith("at ")][-1:]
    assert end.returncode == 0, f"the process died ({end.returncode}) {last}: " + " | ".join(log[-30:])
    # OpenEXR prints lines of its own.
    return json.loads(next(line for line in end.stdout.decode().splitlines() if line.startswith('{"executions"')))


def main() -> None:
    """Print each finding, then one line of JSON with all of them."""
    seed, executions, *names = sys.argv[1:]
    start = time.monotonic()
    found = fuzz(int(seed), int(executions), tuple(names) or FUZZ)
    seconds = round(time.monotonic() - start, 1)
    print(json.dumps({"executions": int(executions), "seconds": seconds, "findings": dict(found)}))


if __name__ == "__main__":
    main()
