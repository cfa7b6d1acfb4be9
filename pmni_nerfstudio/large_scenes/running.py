# SPDX-License-Identifier: Apache-2.0
"""Blocks of a large scene, each trained in a process of its own, and their blend in one field."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import cast

import numpy as np
import torch
import yaml
from jaxtyping import Bool, Float
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.utils.rich_utils import CONSOLE

from pmni_nerfstudio.chunks import parse_memory
from pmni_nerfstudio.data.atomic import atomic_path
from pmni_nerfstudio.data.datamanager import PmniDataManagerConfig
from pmni_nerfstudio.data.dataparser import PmniDataParserConfig
from pmni_nerfstudio.data.files import read_json_object
from pmni_nerfstudio.data.folder_lock import lock_folder
from pmni_nerfstudio.data.images import open_npy
from pmni_nerfstudio.data.npz import hash_array
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.fields.blended_blocks import MAX_BLOCKS
from pmni_nerfstudio.fields.levels import training_bytes
from pmni_nerfstudio.geometry.interpolation import grid_points, lookup_volume
from pmni_nerfstudio.geometry.transforms import transform_points
from pmni_nerfstudio.large_scenes.block import CONFIG, FIELD, INTEGRATED, RECORD, SCENE, START
from pmni_nerfstudio.large_scenes.block_scenes import NORMALS, write_block_scene
from pmni_nerfstudio.large_scenes.block_views import pixels_of_blocks, windows_of
from pmni_nerfstudio.large_scenes.partition import Block, Partition, partition
from pmni_nerfstudio.model.initialization import Initialization
from pmni_nerfstudio.model.pmni_model import PmniModel, PmniModelConfig
from pmni_nerfstudio.registration.poses import Poses
from pmni_nerfstudio.registration.surface.sdf_grid import Surface
from pmni_nerfstudio.registration.views import Views
from pmni_nerfstudio.studies.engines import available_gpus, default_parallel_jobs, run_locally, run_on_ray
from pmni_nerfstudio.studies.processes import BIN_FOLDER, Cancellation, run_command

LOG = "log.txt"
_START_VERTICES = 129
"""Vertices per axis of the grid on which a block's process gets the registered surface."""
_LEAST_VIEWS = 3
"""Least number of views that determine the surface of a block."""
_MAX_WINDOW_POINTS = 20_000
"""Points of a block's surface whose pixels bound the parts of the frames that hold it."""


@dataclass(frozen=True)
class BlockResult:
    """Outcome of the process that reconstructed a block."""

    block: int
    reason: str | None
    """Why it failed; None if it did not."""


def run_block(
    job: int,
    out: Path,
    environment: Mapping[str, str] | None = None,
    bin_folder: Path = BIN_FOLDER,
    cancellation: Cancellation | None = None,
) -> BlockResult:
    """Reconstruct a block in a process of its own.

    Args:
        job: index of the block.
        out: folder of all blocks.
        environment: variables to add to the environment of the process.
        bin_folder: folder of the Python program.
        cancellation: allows another thread to cancel the block.

    Raises:
        Canceled: the block was canceled.
    """
    folder = block_folder(out, job)
    command = ["python", "-m", "pmni_nerfstudio.large_scenes.block", str(folder)]
    try:
        run_command(command, folder / LOG, bin_folder, environment, cancellation, f"block {job}")
    except PmniError as error:
        return BlockResult(job, str(error))
    return BlockResult(job, None)


def lost_block(job: int, reason: str, out: Path) -> BlockResult:
    """Result of a block whose worker the cluster lost."""
    del out
    return BlockResult(job, f"block {job}: {reason}")


def block_folder(out: Path, block: int) -> Path:
    """Folder of a block."""
    return out / f"{block:03d}"


def is_finished(folder: Path) -> bool:
    """Whether a block's folder holds its results."""
    return (folder / FIELD).is_file() and (folder / RECORD).is_file()


def reconstruct_blocks(
    config: TrainerConfig,
    model: PmniModel,
    views: Views,
    initialization: Initialization,
    world_from_unit: Float[np.ndarray, "4 4"],
    parent: Path,
) -> None:
    """Reconstruct the blocks of a surface in processes of their own, and fill the model's field with them.

    Blocks that an earlier call has finished with the same data and settings are not reconstructed again.

    Args:
        config: configuration of the run, whose settings hold for the blocks too.
        model: model whose field consists of blocks.
        views: training views at reduced resolution, with corrected normals and intrinsics.
        initialization: their poses, and the surface.
        world_from_unit: similarity from the unit-sphere world to the data world.
        parent: folder in which the folder of the blocks is created.

    Raises:
        PmniError: a block cannot be reconstructed.
    """
    assert model.field.blocks is not None
    surface = Surface(initialization.sdf.cpu().numpy())
    vertices = surface.mesh[0]
    parts = partition_for(model.config, model.field.config.grid_vertices, vertices, surface.voxel)
    out = (parent / _key(config, model, initialization)).resolve()
    out.mkdir(parents=True, exist_ok=True)
    included = np.ones(len(views), dtype=bool) if initialization.inlier_views is None else initialization.inlier_views
    CONSOLE.log(f"Blocks: {' x '.join(map(str, parts.counts))}, in {out}")
    with lock_folder(out):
        made = _prepare(config, model, views, initialization.c2w, surface, parts, included, world_from_unit, out)
        waiting = [block for block in made if not is_finished(block_folder(out, block))]
        if len(waiting) < len(made):
            CONSOLE.log(f"{len(made) - len(waiting)} of {len(made)} blocks are done.")
        failures = []
        with closing(_running(waiting, model.config, out)) as results:
            for result in results:
                failures += [] if result.reason is None else [result.reason]
                CONSOLE.log(_line(result, out, len(made)))
    if failures:
        raise PmniError(f"{len(failures)} of {len(made)} blocks could not be reconstructed; {failures[0]}")
    _fill(model, parts, made, out)


def partition_for(
    config: PmniModelConfig, levels: Sequence[int], vertices: Float[np.ndarray, "v 3"], voxel: float
) -> Partition:
    """Partition into the configured number of blocks, or into the fewest that fit the configured memory.

    Args:
        config: configuration of the model.
        levels: vertices per axis of the levels that one grid for the whole scene would have.
        vertices: vertices of the surface.
        voxel: edge of the cells of the grid that the surface was found on.

    Raises:
        PmniError: not even the most blocks fit the memory.
    """
    limit = parse_memory(config.max_memory)
    if config.blocks > 1 or limit is None:
        return partition(vertices, config.blocks, voxel)
    needed = 0
    for count in range(2, MAX_BLOCKS + 1):
        parts = partition(vertices, count, voxel)
        needed = training_bytes(block_levels(levels, max(block.radius for block in parts.blocks)))
        if needed <= limit:
            return parts
    raise PmniError(f"max-memory: each of {MAX_BLOCKS} blocks needs {-(-needed >> 20)}M; give more")


def _prepare(
    config: TrainerConfig,
    model: PmniModel,
    views: Views,
    c2w: Float[np.ndarray, "n 4 4"],
    surface: Surface,
    parts: Partition,
    included: Bool[np.ndarray, " n"],
    world_from_unit: Float[np.ndarray, "4 4"],
    out: Path,
) -> list[int]:
    """Write the inputs of all blocks; the indices of those that enough views show."""
    pixels = pixels_of_blocks(views, c2w, surface, parts, model.views, included)
    poses, vertices = Poses.from_c2w(c2w), surface.mesh[0]
    local = vertices @ parts.frame
    made = []
    for index, block in enumerate(parts.blocks):
        seen_by = pixels.views_of(index, views.masks)
        if block.radius == 0 or len(seen_by) < _LEAST_VIEWS:
            if block.radius > 0:
                CONSOLE.log(f"Block {index}: only {len(seen_by)} views show it; it keeps the registered surface.")
            continue
        made.append(index)
        folder = block_folder(out, index)
        if is_finished(folder):
            continue
        folder.mkdir(exist_ok=True)
        points = vertices[block.contains(local)]
        windows = windows_of(seen_by, points[:: -(-len(points) // _MAX_WINDOW_POINTS)], poses, model.views)
        unit_from_block = parts.unit_from_block(block)
        if not (folder / SCENE).is_dir():
            write_block_scene(
                folder / SCENE, index, model.views, c2w, pixels, windows, world_from_unit, unit_from_block
            )
        with atomic_path(folder / START) as path:
            np.save(path, _start(surface, block, unit_from_block))
        with atomic_path(folder / CONFIG) as path:
            levels = block_levels(_levels_of_the_whole(model), block.radius)
            path.write_text(yaml.dump(block_config(config, folder, levels)), "utf8")
    return made


def _start(surface: Surface, block: Block, unit_from_block: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "m m m"]:
    """The surface in the unit sphere of a block."""
    points = transform_points(unit_from_block, grid_points(_START_VERTICES).view(-1, 3).numpy())
    values = lookup_volume(surface.lookups[:1], points)[:, 0] / block.radius
    return values.reshape((_START_VERTICES,) * 3).astype(np.float32)


def _levels_of_the_whole(model: PmniModel) -> Sequence[int]:
    """Vertices per axis of the levels that blocks have parts of; none if each block follows its own maps."""
    # A limit of memory holds for parts of these levels, a number of blocks leaves the levels to the blocks.
    field = model.config.sdf_field if model.config.blocks > 1 else model.field.config
    return field.grid_vertices


def block_config(config: TrainerConfig, folder: Path, levels: tuple[int, ...]) -> TrainerConfig:
    """Configuration of the training of a block: that of the whole, at given poses and from the integrated surface.

    Args:
        config: configuration of the run.
        folder: folder of the block.
        levels: vertices per axis of the levels of its grid; none: chosen by its maps.
    """
    config = copy.deepcopy(config)
    config.method_name = "pmni-calibrated"
    config.output_dir, config.experiment_name, config.timestamp = folder / "run", "e", "t"
    config.load_dir = config.load_step = config.load_checkpoint = None
    config.vis, config.steps_per_save = "tensorboard", 1_000_000
    manager, model = (
        cast(PmniDataManagerConfig, config.pipeline.datamanager),
        cast(PmniModelConfig, config.pipeline.model),
    )
    config.data = manager.data = folder / SCENE
    manager.dataparser = PmniDataParserConfig(data=folder / SCENE, normals_folder=NORMALS)
    model.camera_optimizer.mode, model.registration, model.blocks = "off", False, 1
    model.max_memory = None
    model.initial_sdf = folder / INTEGRATED
    field = model.sdf_field
    field.encoding, field.detail_vertices, field.grid_vertices = "grid", 0, levels
    return config


def block_levels(whole: Sequence[int], radius: float) -> tuple[int, ...]:
    """Vertices per axis of a block's levels, with voxels as small as those of the levels over the whole scene.

    Args:
        whole: vertices per axis of each level over [-1, 1]^3; none if each block follows its own maps.
        radius: radius of the block.
    """
    if not whole:
        return ()
    halvings = len(whole) - 1
    coarsest = max(1, int(np.ceil((whole[-1] - 1) * radius / 2**halvings)))
    return tuple(coarsest * 2**level + 1 for level in range(halvings + 1))


def _key(config: TrainerConfig, model: PmniModel, initialization: Initialization) -> str:
    """Hash of what the blocks depend on, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    of_model = replace(model.config, block_jobs=None, block_engine="local", eval_num_rays_per_chunk=0)
    settings = (config.machine.seed, config.max_num_iterations, of_model, config.optimizers)
    digest.update(f"{metadata.version('pmni-nerfstudio')} {settings!r} {model.views.root.resolve()}".encode())
    for array in (initialization.c2w, initialization.sdf.cpu().numpy(), model.views.K):
        hash_array(digest, array)
    for view in range(model.views.num_views):
        hash_array(digest, model.views.masks[view])
        hash_array(digest, model.views.normals[view])
    return digest.hexdigest()[:16]


def _running(waiting: Sequence[int], config: PmniModelConfig, out: Path) -> Generator[BlockResult, None, None]:
    if not waiting:
        return (result for result in ())
    if config.block_engine == "ray":
        return run_on_ray(run_block, lost_block, waiting, out, config.block_jobs, on_start=CONSOLE.log)
    gpus = available_gpus()
    return run_locally(run_block, waiting, out, config.block_jobs or default_parallel_jobs(gpus), gpus)


def _line(result: BlockResult, out: Path, count: int) -> str:
    """One line about a block that has ended."""
    done = sum(is_finished(folder) for folder in out.iterdir() if folder.is_dir())
    if result.reason is not None:
        return f"Block {result.block} failed: {result.reason}"
    record = _record(block_folder(out, result.block))
    peak = "" if record["peak_mb"] is None else f", at most {record['peak_mb'] / 1024:.1f} GB of memory"
    return f"Block {result.block}: {record['seconds']:.0f} s{peak} ({done} of {count} done)"


def _record(folder: Path) -> dict:
    return read_json_object(folder / RECORD, "remove it to reconstruct this block again")


def _fill(model: PmniModel, parts: Partition, made: Sequence[int], out: Path) -> None:
    """Blend the blocks in the model's field."""
    field = model.field.blocks
    assert field is not None
    low, high = parts.cells()
    frame, ramp = torch.from_numpy(parts.frame), torch.from_numpy(parts.ramp)
    field.arrange(frame, torch.from_numpy(low), torch.from_numpy(high), ramp)
    sharpness = []
    for index in made:
        block, folder = parts.blocks[index], block_folder(out, index)
        grid = torch.from_numpy(np.array(open_npy(folder / FIELD), dtype=np.float32))
        field.fill(index, torch.from_numpy(block.center), block.radius, grid)
        sharpness.append(_record(folder)["inv_s"] / block.radius)
    model.field.set_min_inv_s(float(np.median(sharpness)) if sharpness else model.config.inv_s_floor[1])
