# SPDX-License-Identifier: Apache-2.0
"""`pmni prepare SRC OUT`: a scene folder from what other programs and data sets have on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pmni_nerfstudio.errors import PmniError


@dataclass(kw_only=True)
class PrepareCommand:
    """Make a scene folder of another layout's normal maps, masks and cameras; what SRC is is recognised.

    diligent-mv (as released, one object or all), rnb-neus, neus (IDR, DTU: with normal maps), monosdf, nerfstudio
    (transforms.json), colmap, metashape (XML), plain (normal maps alone, without poses). Normal maps are looked for in
    normal*/, masks in mask*/, by the views' names; without masks the object is where there are normals. Distortion is
    removed. OUT is there when all of it is, or not at all.
    """

    src: tyro.conf.Positional[Path]
    """The source's folder; nothing is written there."""
    out: tyro.conf.Positional[Path]
    """The scene's folder, to be made; with several objects in SRC, one in it for each."""
    format: Annotated[
        Literal["auto", "diligent-mv", "monosdf", "rnb-neus", "neus", "nerfstudio", "colmap", "metashape", "plain"],
        tyro.conf.arg(name="from"),
    ] = "auto"
    """What SRC is; auto: recognised by its files."""
    size: str | None = None
    """Size of the maps as WIDTHxHEIGHT; without it the size that most views have. Normals, masks and intrinsics follow."""
    normals: str | None = None
    """Folder of the normal maps in SRC, where there are several; or TIP19Li or PAMI16Park in DiLiGenT-MV."""
    axes: Literal["auto", "camera", "opencv", "directx", "world"] = "auto"
    """Of the stored normals. camera: x right, y up, z to the viewer. opencv: x right, y down, z forward. directx: x right, y down, z to the viewer. world: the world's. auto: what the format has, or what fits the maps."""
    focal: float | None = None
    """Focal length in pixels of the maps, for a source without cameras."""
    fov: float | None = None
    """Horizontal field of view in degrees, in the place of --focal."""
    mesh: Path | None = None
    """Mesh in the source's world that the unit sphere shall hold, in the place of the source's own sphere."""
    refit: bool = False
    """Fit the unit sphere to the masks' visual hull, although the source has one."""
    overwrite: bool = False
    """Replace a scene that is there, once the new one is done."""

    def main(self) -> None:
        """Recognise, read, convert, check, and print what was made.

        Raises:
            PmniError: a mistake in the source or the options, or OUT is there already.
        """
        self._check_options()
        if not self.src.is_dir():
            what = "is no folder" if self.src.exists() else "does not exist"
            raise PmniError(f"{self.src}: {what}: give the source's folder")
        from pmni_nerfstudio.data.scene import is_scene
        from pmni_nerfstudio.importers.registry import FORMATS, recognise

        if self.format == "auto" and is_scene(self.src):
            print(f"{self.src}: has the layout of SuperNormal and PMNI, which is read as it is: nothing to do")
            return
        name = recognise(self.src) if self.format == "auto" else self.format
        if name is None:
            raise PmniError(
                f"{self.src}: is nothing that is known ({', '.join(FORMATS)}), and holds no normal maps (normal*/): "
                "look one folder deeper, or say what it is with --from"
            )
        parts = FORMATS[name].parts(self.src)
        if not parts:
            raise PmniError(f"{self.src}: holds no scene of the format {name}: look one folder deeper")
        for part, folder in parts.items():
            self._convert(name, folder, self.out / part)

    def _check_options(self) -> None:
        if self.focal is not None and self.fov is not None:
            raise PmniError("--focal and --fov: give one of them")
        if self.focal is not None and not 0 < self.focal < float("inf"):
            raise PmniError(f"--focal: {self.focal} is no focal length: give pixels, more than 0")
        if self.fov is not None and not 0 < self.fov < 180:
            raise PmniError(f"--fov: {self.fov} is no field of view: give degrees between 0 and 180")
        self._size()

    def _size(self) -> tuple[int, int] | None:
        if self.size is None:
            return None
        from pmni_nerfstudio.data.resample import MIN_SIDE

        words = self.size.lower().split("x")
        if len(words) != 2 or not all(word.isdecimal() and MIN_SIDE <= int(word) <= 1 << 14 for word in words):
            raise PmniError(f"--size: {self.size} is no size: give WIDTHxHEIGHT, 8 to 16384 pixels each, as 612x512")
        return int(words[0]), int(words[1])

    def _convert(self, name: str, source: Path, out: Path) -> None:
        """Make one scene."""
        from rich.console import Console
        from rich.markup import escape

        from pmni_nerfstudio.data.atomic import new_folder
        from pmni_nerfstudio.data.scene import is_scene
        from pmni_nerfstudio.errors import SceneError
        from pmni_nerfstudio.importers.assemble import assemble
        from pmni_nerfstudio.importers.registry import FORMATS
        from pmni_nerfstudio.importers.source import Options

        with new_folder(out, source, self.overwrite, is_scene) as fresh:
            prepared = FORMATS[name].read(source, Options(self.normals, self.focal, self.fov))
            print(f"{source}: {prepared.said}")
            axes = None if self.axes == "auto" else self.axes
            try:
                said, warnings = assemble(prepared, fresh, self._size(), axes, self.mesh, self.refit)
            except PmniError as error:
                line = str(error)
                if str(fresh) in line:
                    line = f"{line.replace(str(fresh), str(out))} (as made from {source}; nothing was written)"
                elif str(source) not in line:
                    line = f"{source}: {line}"
                raise SceneError(line) from error
            warnings = [line.replace(str(fresh), str(out)) for line in warnings]
        for warning in warnings:
            Console(stderr=True).print(f"[bold yellow]Warning: {escape(warning)}", soft_wrap=True)
        print(f"{out}: {said}")
