# SPDX-License-Identifier: Apache-2.0
"""Valid files of every layout that `pmni prepare` knows, with their readers, for helpers/fuzz.py to damage."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import scipy.io
from PIL import ExifTags, Image

from helpers.distorted_sphere import LENSES, WORLD, write_distorted, write_metashape
from helpers.importer_files import (
    NAMES,
    as_colors,
    world_mats,
    write_diligent,
    write_maps,
    write_model,
    write_transforms,
)
from helpers.scenes import AnalyticScene, make_tilted_ellipsoid
from pmni_nerfstudio.commands.prepare import PrepareCommand
from pmni_nerfstudio.data.camera_files import write_intrinsics
from pmni_nerfstudio.data.images import write_png
from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.importers.matlab import read_mat
from pmni_nerfstudio.importers.registry import FORMATS
from pmni_nerfstudio.importers.source import Frame, ImportOptions, Lens
from pmni_nerfstudio.importers.view_maps import has_cutout, photograph, read_stored_normals, size_of

Reader = Callable[[Path], object]

LAYOUTS = {
    "diligent": ("diligent-mv", "Calib_Results.mat"),
    "diligent_normals": ("diligent-mv", "view_01/Normal_gt.mat"),
    "neus": ("neus", "cameras_sphere.npz"),
    "rnb": ("rnb-neus", "cameras.npz"),
    "monosdf": ("monosdf", "cameras.npz"),
    "monosdf_normals": ("monosdf", "001_normal.npy"),
    "transforms": ("nerfstudio", "transforms.json"),
    "colmap_cameras_bin": ("colmap", "cameras.bin"),
    "colmap_images_bin": ("colmap", "images.bin"),
    "colmap_cameras_txt": ("colmap", "cameras.txt"),
    "colmap_images_txt": ("colmap", "images.txt"),
    "metashape": ("metashape", "cameras.xml"),
    "plain_matrix": ("plain", "K.txt"),
    "plain_intrinsics": ("plain", "intrinsics.json"),
    "plain_exif": ("plain", "images/001.jpg"),
    "plain_cutout": ("plain", "normal/001.png"),
}
"""Layout and the file of it that is damaged, by kind."""
FILES = ("mat", "mat_packed", "mat_normals", "npy_first", "png_size", "png_cutout", "jpeg_photo")
PARSERS = FILES + tuple(LAYOUTS)
WHOLE = tuple(f"whole_{kind}" for kind in LAYOUTS)
"""Cases that convert a layout to a whole scene instead of only reading it, which takes tens of times longer."""


def prepare_files(folder: Path) -> dict[str, tuple[Path, Reader]]:
    """A valid file of each kind and its reader."""
    truth = make_tilted_ellipsoid()
    found: dict[str, tuple[Path, Reader]] = {}
    for kind, (name, file) in LAYOUTS.items():
        for prefix, read in (("", partial(_read, name)), ("whole_", partial(_convert, name))):
            root = folder / f"{prefix}{kind}"
            _write(root, kind, truth)
            found[f"{prefix}{kind}"] = (root / file, partial(read, root))
    found |= _single_files(folder, truth)
    return found


def _read(name: str, root: Path, _: Path) -> object:
    return FORMATS[name].read(root, ImportOptions())


def _convert(name: str, root: Path, _: Path) -> None:
    """Run `pmni prepare`, which has to leave a whole scene or nothing."""
    out = root.with_name(f"{root.name}_made")
    shutil.rmtree(out, ignore_errors=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            PrepareCommand(src=root, out=out, format=name).main()
        except PmniError:
            assert not out.exists() and not list(root.parent.glob(f".{out.name}*"))
            raise
    assert (out / "mask").is_dir()


def _write(root: Path, kind: str, truth: AnalyticScene) -> None:
    if kind.startswith("diligent"):
        write_diligent(root, truth, has_mat="normals" in kind)
    elif kind == "transforms":
        write_transforms(root, truth)
    elif kind == "metashape":
        write_distorted(root, LENSES["tangential"])
        world = WORLD.format("3 -2 1")
        write_metashape(root / "cameras.xml", {"k1": 0.05, "p1": -0.03, "p2": 0.02}, world)
    elif kind.startswith("monosdf"):
        root.mkdir()
        for view, name in enumerate(NAMES):
            stored = np.where(truth.masks[view][..., None], truth.normals[view] / 2 + 0.5, 0)
            np.save(root / f"{name}_normal.npy", np.moveaxis(stored, -1, 0).astype(np.float32))
        np.savez_compressed(root / "cameras.npz", **world_mats(truth))
    else:
        write_maps(root, truth, NAMES, masks=None if "cutout" in kind else "mask")
        _write_cameras(root, kind, truth)


def _write_cameras(root: Path, kind: str, truth: AnalyticScene) -> None:
    """Write the camera files beside maps in normal/ and mask/."""
    if kind in ("neus", "rnb"):
        np.savez(root / LAYOUTS[kind][1], **world_mats(truth))
    elif kind.startswith("colmap"):
        write_model(root, truth, f".{kind[-3:]}", [f"{name}.png" for name in NAMES])
    elif kind == "plain_intrinsics":
        write_intrinsics(root / "intrinsics.json", truth.K[0], *truth.size)
    elif kind == "plain_exif":
        _write_photographs(root)
    else:
        np.savetxt(root / "K.txt", truth.K[0])
    if kind == "plain_cutout":
        for view, name in enumerate(NAMES):
            alpha = (truth.masks[view] * 255).astype(np.uint8)[..., None]
            colors = as_colors(truth.stored_normals(view, "camera"), truth.masks[view], 8)
            write_png(root / "normal" / f"{name}.png", np.concatenate([colors, alpha], axis=-1))


def _write_photographs(root: Path) -> None:
    (root / "images").mkdir()
    for name in NAMES:
        exif = Image.Exif()
        tags = exif.get_ifd(ExifTags.IFD.Exif)
        tags[ExifTags.Base.FocalLength] = 33.0
        tags[ExifTags.Base.FocalPlaneXResolution] = 180.0
        tags[ExifTags.Base.FocalPlaneResolutionUnit] = 3
        tags[ExifTags.Base.ExifImageWidth] = 144
        Image.new("RGB", (144, 120), (90, 80, 70)).save(root / "images" / f"{name}.jpg", exif=exif)


def _single_files(folder: Path, truth: AnalyticScene) -> dict[str, tuple[Path, Reader]]:
    for name in FILES:
        (folder / name).mkdir()
    maps = {"Normal_gt": truth.normals[0]}
    others = {"KK": truth.K[0], "text": "mask", "cell": np.array([1, "a"], dtype=object), "i": np.array([[1, 2]])}
    scipy.io.savemat(folder / "mat" / "a.mat", others)
    scipy.io.savemat(folder / "mat_packed" / "a.mat", {**others, **maps}, do_compression=True)
    scipy.io.savemat(folder / "mat_normals" / "a.mat", maps)
    np.save(folder / "npy_first" / "a.npy", np.moveaxis(truth.normals[0] / 2 + 0.5, -1, 0).astype(np.float32))
    pixels = np.dstack([as_colors(truth.normals[0], truth.masks[0], 8), truth.masks[0].astype(np.uint8) * 255])
    for name in ("png_size", "png_cutout"):
        write_png(folder / name / "a.png", pixels)
    Image.fromarray(pixels[..., :3]).save(folder / "jpeg_photo" / "a.jpg")
    bent = Lens((0.1, 0.0, 0.0, 0.0))
    size = truth.size

    def show(path: Path) -> object:
        return photograph(Frame("a", path, truth.K[0], lens=bent, image=path), truth.K[0], truth.K[0], size)

    return {
        "mat": (folder / "mat" / "a.mat", read_mat),
        "mat_packed": (folder / "mat_packed" / "a.mat", read_mat),
        "mat_normals": (folder / "mat_normals" / "a.mat", read_stored_normals),
        "npy_first": (folder / "npy_first" / "a.npy", read_stored_normals),
        "png_size": (folder / "png_size" / "a.png", size_of),
        "png_cutout": (folder / "png_cutout" / "a.png", has_cutout),
        "jpeg_photo": (folder / "jpeg_photo" / "a.jpg", show),
    }
