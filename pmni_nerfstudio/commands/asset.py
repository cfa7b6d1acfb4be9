# SPDX-License-Identifier: Apache-2.0
"""`pmni asset`: a result as glTF files, with levels of detail and baked textures."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pmni_nerfstudio.errors import PmniError, print_warnings

if TYPE_CHECKING:
    from pmni_nerfstudio.evaluation.stored_result import StoredResult
    from pmni_nerfstudio.export.asset import AssetWriter, Level
    from pmni_nerfstudio.export.asset_frame import AssetFrame
    from pmni_nerfstudio.export.photographs import Photograph
    from pmni_nerfstudio.material.appearance import Appearance
    from pmni_nerfstudio.material.find_capture import FoundCapture

RECORD, RELIT = "asset.json", "relit.png"
"""Names of the file with units, axes and levels, and of the comparison with a view that was held out."""


@dataclass(kw_only=True)
class AssetCommand:
    """Write a result as binary glTF (y up, meters) for other programs.

    Each level of detail has a texture atlas, the full mesh's normals as a tangent-space normal map, ambient
    occlusion, and colors if the scene has photographs or albedo maps; mesh_lod.glb holds all levels. If the scene was
    made from images under known lights, roughness and specular are estimated, and relit.png compares a view that was
    held out with its rendering.
    """

    result: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RESULT")]
    """Folder that `pmni eval`, `pmni export` or `pmni register` wrote, or a mesh file."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Output folder, created if necessary. Files that an earlier run wrote there and this one does not are removed."""
    faces: tuple[int, ...] = (100_000, 25_000, 5_000)
    """Numbers of faces of the levels of detail."""
    texture_size: int = 2048
    """Side length of the textures in pixels."""
    color: Literal["auto", "lights", "albedo", "image", "none"] = "auto"
    """Source of the base color. lights: the images under known lights that the scene was made from, which also give
    roughness and specular. albedo, image: that folder of the scene. auto: the first of these that exists."""
    lights: Path | None = None
    """Capture with images under known lights; by default the one that `pmni photometric` made the scene from."""
    encoding: Literal["auto", "srgb", "linear"] = "auto"
    """Encoding of the photographs; auto: sRGB with 8 bits, linear with 16 bits or floats. Albedo is linear."""
    formats: tuple[Literal["glb", "obj", "stl"], ...] = ("glb",)
    """File formats. OBJ with its textures and STL have the data's axes and units."""
    occlusion: bool = True
    """Bake ambient occlusion."""
    up: Literal["x", "y", "z", "-x", "-y", "-z"] | None = None
    """Axis of the data's world that points up (--up=-y for negative ones); by default found from the cameras."""
    units: str | None = None
    """Units of the data: m, dm, cm, mm, um, km, in or ft; by default those of the result. Data without a scale (object
    units) are written with one unit as one meter."""
    data: Path | None = None
    """Scene folder with masks and photographs; by default the one that the result refers to, if it exists."""
    poses: Path | None = None
    """Poses of the cameras (.npy or .npz); by default those beside the mesh."""

    def main(self) -> None:
        """Read the result, write the files and print a summary.

        Raises:
            PmniError: An option is out of range, a file is missing or invalid, or the output folder is not writable.
        """
        self._check()
        start = time.perf_counter()
        # Open3D and nerfstudio take seconds to import, and are not needed for --help or invalid options.
        from rich.console import Console

        from pmni_nerfstudio.data.atomic import write_json
        from pmni_nerfstudio.data.files import output_folder
        from pmni_nerfstudio.evaluation.stored_result import read_result
        from pmni_nerfstudio.export.asset import AssetOptions, AssetSource, AssetWriter, frame_record
        from pmni_nerfstudio.export.asset_frame import METERS, asset_frame
        from pmni_nerfstudio.export.gltf import Reflectance

        if self.units is not None and self.units not in METERS:
            raise PmniError(f"units: {self.units} is not known; give one of {', '.join(METERS)}")
        result = read_result(self.result, data=self.data, poses_file=self.poses)
        mesh, mesh_file = result.mesh, result.mesh_file
        if mesh is None or mesh_file is None:
            raise PmniError(f"{self.result}: has no mesh; give a folder that `pmni eval` or `pmni export` wrote")
        frame = asset_frame(self.up, self.units or units_of(result), result.c2w)
        found = self._capture(result)
        color_folder, photographs = ("lights", None) if found else self._photographs(result)
        earlier = _earlier_files(self.out)
        console = Console(stderr=True)
        with output_folder(self.out), tempfile.TemporaryDirectory(prefix="pmni_asset_") as temporary:
            appearance, reflectance = None, Reflectance()
            if found is not None:
                with console.status("Estimating the material"):
                    appearance = self._measure(result, found, Path(temporary))
                photographs, reflectance = appearance.photographs, appearance.reflectance
            source = AssetSource(mesh, frame, photographs, reflectance)
            writer = AssetWriter(
                self.out, source, AssetOptions(self.faces, self.texture_size, self.occlusion, self.formats)
            )
            with console.status("Writing the levels of detail"):
                levels = self._write_levels(writer)
                lod_file = writer.write_all_in_one()
        record = {
            "source": str(mesh_file),
            "source_faces": len(mesh.faces),
            **frame_record(frame),
            "texture_size": self.texture_size,
            "base_color": color_folder,
            "material": None if appearance is None else appearance.record(),
            "levels": [asdict(level) for level in levels],
            "all_levels": None if lod_file is None else lod_file.name,
            "seconds": time.perf_counter() - start,
        }
        write_json(self.out / RECORD, record)
        if mesh_file.resolve() not in earlier:  # otherwise they are this run's input
            for path in filter(Path.is_file, earlier - _written_files(self.out, record)):
                path.unlink()
        _print_summary(frame, levels[0].unseen, record["seconds"])
        if writer.too_bright > 0.001:
            line = f"{writer.too_bright:.1%} of the surface are brighter than white, which is 1, and clipped"
            remedy = "" if color_folder == "lights" else f"; scale the images in {color_folder}/"
            print_warnings([line + remedy])

    def _check(self) -> None:
        if not self.faces or min(self.faces) < 4:
            raise PmniError(f"faces: {self.faces} is out of range; give one or more numbers of at least 4")
        if not 16 <= self.texture_size <= 16384:
            raise PmniError(f"texture-size: {self.texture_size} is out of range; give a number from 16 to 16384")
        if not self.formats:
            raise PmniError("formats: is empty; give one or more of glb, obj, stl")

    def _write_levels(self, writer: AssetWriter) -> list[Level]:
        """Write the levels, with a line for each."""
        levels = []
        for level in writer.levels():
            name = ", ".join(file for file in level.files if file.startswith(f"{level.name}."))
            print(f"wrote {self.out / name}: {level.faces:,} faces, {level.bytes / 1e6:.1f} MB", flush=True)
            levels.append(level)
        return levels

    def _capture(self, result: StoredResult) -> FoundCapture | None:
        """Images under known lights; None if there are none, or they are not wanted."""
        from pmni_nerfstudio.material.find_capture import find_capture

        if self.color not in ("auto", "lights"):
            if self.lights is not None:
                raise PmniError(f"--lights: has no use with --color {self.color}; leave out one of them")
            return None
        wanted = self.color == "lights" or self.lights is not None
        if result.scene is None or result.c2w is None:
            if wanted:
                option = "--color lights" if self.lights is None else "--lights"
                missing = "scene" if result.scene is None else "poses"
                raise PmniError(f"{option}: {self.result} has no {missing}; give --data and --poses")
            return None
        found = find_capture(result.scene, self.lights)
        if isinstance(found, str | None) and wanted:
            reason = found or f"{result.scene.root} was not made by pmni photometric; give --lights"
            raise PmniError(f"--color lights: images under known lights are not found: {reason}")
        if isinstance(found, str):
            print(f"{'material':<12}not estimated, images under known lights are not found: {found}")
            return None
        return found

    def _measure(self, result: StoredResult, found: FoundCapture, temporary: Path) -> Appearance:
        """Estimate the material, write relit.png and print what was found."""
        from pmni_nerfstudio.data.images import write_png
        from pmni_nerfstudio.material.appearance import measure_appearance

        scene, c2w, mesh = result.scene, result.c2w, result.mesh
        assert scene is not None and c2w is not None and mesh is not None
        appearance = measure_appearance(found, scene, c2w, mesh, temporary)
        for line in appearance.lines():
            print(f"{'material':<12}{line}", flush=True)
        if appearance.relit is not None:
            write_png(self.out / RELIT, appearance.relit.picture)
            print(f"wrote {self.out / RELIT}: photograph, rendered image, difference", flush=True)
        print_warnings(appearance.warnings())
        return appearance

    def _photographs(self, result: StoredResult) -> tuple[str | None, Callable[[], Iterable[Photograph]] | None]:
        """The folder of the colors, and what reads them; None if there are none, or they are not wanted."""
        from pmni_nerfstudio.export.photographs import find_colors, read_photographs

        if self.color == "none":
            return None, None
        scene, c2w = result.scene, result.c2w
        colors = None if scene is None else find_colors(scene, "auto" if self.color == "lights" else self.color)
        if scene is None or colors is None or c2w is None:
            missing = "scene" if scene is None else "images in image/ or albedo/" if colors is None else "poses"
            line = f"{self.result} has no {missing}"
            if self.color != "auto":
                raise PmniError(f"--color {self.color}: {line}; give --data and --poses, or leave out --color")
            print(f"no colors: {line}")
            return None, None
        return colors.folder, lambda: read_photographs(scene, c2w, colors, self.encoding)


def _earlier_files(folder: Path) -> set[Path]:
    """Files that an earlier run wrote into a folder, by its asset.json; none if that is missing or damaged."""
    import json

    try:
        return _written_files(folder, json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _written_files(folder: Path, record: dict[str, Any]) -> set[Path]:
    """Absolute paths of the files beside the asset.json that holds a record.

    Raises:
        KeyError, TypeError: the record is something else.
    """
    names = [name for level in record["levels"] for name in level["files"]]
    if record["all_levels"] is not None:
        names.append(record["all_levels"])
    if record["material"] is not None and record["material"]["held_out"] is not None:
        names.append(RELIT)
    # Whatever the record names, only files that this command writes into its folder.
    folder = folder.resolve()
    return {folder / name for name in names if Path(name).name == name and (name == RELIT or name.startswith("mesh_"))}


def units_of(result: StoredResult) -> str | None:
    """Units of a result's mesh: those of its evaluation or else of its scene; None if not known."""
    from pmni_nerfstudio.evaluation.metrics_file import OBJECT_UNITS, SCALED_UNITS

    scene = result.scene
    # The figures of an evaluation may be in the units of the ground truth, to whose scale the mesh was brought for them.
    if scene is not None and scene.c2w is None:
        return OBJECT_UNITS
    if result.record:
        return None if scene is None and result.record["aligned"] else result.record["units"]
    return None if scene is None else SCALED_UNITS


def _print_summary(frame: AssetFrame, unseen: float | None, seconds: float) -> None:
    up = " ".join(f"{value:.3g}" for value in frame.up)
    scale = "one unit is one meter in the files" if frame.meters is None else f"{frame.meters:g} m per unit"
    rows = [("units", f"{frame.units} ({scale})"), ("up", f"{up} ({frame.up_from})"), ("seconds", f"{seconds:.1f}")]
    if unseen is not None:
        rows.insert(0, ("colors", f"{1 - unseen:.1%} of the surface are seen in a view; the rest is filled"))
    for label, value in rows:
        print(f"{label:<12}{value}")
    if frame.meters is None:
        print_warnings([f"the scale is not known ({frame.units}); give --units if the data have one"])
