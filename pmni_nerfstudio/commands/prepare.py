# SPDX-License-Identifier: Apache-2.0
"""`pmni prepare SRC OUT`: convert the files of other programs and data sets to a scene folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pmni_nerfstudio.errors import PmniError, print_warnings


@dataclass(kw_only=True)
class PrepareCommand:
    """Convert normal maps, masks and cameras in another layout to a scene folder; the format is recognized.

    Formats: diligent-mv (as released, one object or all), rnb-neus, neus (IDR and DTU, with added normal maps), monosdf,
    nerfstudio (transforms.json), colmap, metashape (XML), meshroom (.sfm), realityscan (XMP or CSV),
    gaussian-splatting (cameras.json), luces-mv, plain (normal maps without poses). Normal maps are expected in normal*/ and masks
    in mask*/, named like the views; without masks, the object is where the normal maps are not zero.
    Where the object has no normals, they are zero, NaN, or black in mask_valid*/; these holes are kept.
    Lens distortion is removed. OUT is created only once it is complete.
    """

    src: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SRC")]
    """Folder of the source; it is not modified."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Scene folder to create; if SRC holds several objects, one subfolder per object."""
    format: Annotated[
        Literal[
            "auto",
            "diligent-mv",
            "monosdf",
            "rnb-neus",
            "neus",
            "nerfstudio",
            "colmap",
            "metashape",
            "meshroom",
            "realityscan",
            "gaussian-splatting",
            "luces-mv",
            "plain",
        ],
        tyro.conf.arg(name="from"),
    ] = "auto"
    """Format of SRC; auto: recognize it by its files."""
    size: str | None = None
    """Size of all maps as WIDTHxHEIGHT in pixels, to which maps are resampled and intrinsics adapted; by default each view keeps its own size. Without poses, which need one size, the default is the most frequent one in SRC."""
    normals: str | None = None
    """Name of the folder of normal maps in SRC if there are several; for DiLiGenT-MV, TIP19Li or PAMI16Park."""
    axes: Literal["auto", "camera", "opencv", "directx", "world"] = "auto"
    """Axes of the stored normals. camera: x right, y up, z towards the viewer. opencv: x right, y down, z forward. directx: x right, y down, z towards the viewer. world: axes of the source's world. auto: those of the format, or an estimate from the maps."""
    normals_from: (
        Literal[
            "blender",
            "dsine",
            "geowizard",
            "lino-unips",
            "marigold",
            "meshroom",
            "metric3d",
            "mitsuba",
            "moge",
            "omnidata",
            "sdm-unips",
            "stablenormal",
            "uni-ms-ps",
        ]
        | None
    ) = None
    """Tool that made the normal maps; sets their axes, range and layout as that tool writes them, instead of --axes."""
    focal: float | None = None
    """Focal length in pixels of the maps, for sources without cameras."""
    fov: float | None = None
    """Horizontal field of view in degrees, as an alternative to --focal."""
    mesh: Path | None = None
    """Mesh in the source's world to fit the unit sphere to, instead of using the source's own sphere."""
    refit: bool = False
    """Fit the unit sphere to the visual hull of the masks even if the source has one."""
    overwrite: bool = False
    """Replace an existing scene once the new one is complete."""

    def main(self) -> None:
        """Convert each scene of the source and print a summary.

        Raises:
            PmniError: The source or an option is invalid, or OUT exists already.
        """
        self._check_options()
        if not self.src.is_dir():
            problem = "is not a folder" if self.src.exists() else "does not exist"
            raise PmniError(f"{self.src}: {problem}; give the source's folder")
        from pmni_nerfstudio.data.scene import is_scene
        from pmni_nerfstudio.importers.registry import FORMATS, other_formats, recognize

        if self.format == "auto" and is_scene(self.src) and self._is_valid_scene():
            print(f"{self.src}: is a scene folder already; nothing to do")
            return
        name = recognize(self.src) if self.format == "auto" else self.format
        if name is None:
            raise PmniError(
                f"{self.src}: has no known format ({', '.join(FORMATS)}) and no normal maps (normal*/); give a folder "
                "inside it, or its format with --from"
            )
        scenes = FORMATS[name].scenes(self.src)
        if not scenes:
            raise PmniError(f"{self.src}: holds no scene of the format {name}; give a folder inside it")
        others = other_formats(self.src, name) if self.format == "auto" else []
        if others:
            print_warnings(
                [f"{self.src}: is read as {name}; it has cameras of {', '.join(others)} as well: choose with --from"]
            )
        for subfolder, folder in scenes.items():
            self._convert(name, folder, self.out / subfolder)

    def _is_valid_scene(self) -> bool:
        """Whether SRC can be read as a scene folder, with its warnings or the reason on stderr."""
        from pmni_nerfstudio.data.scene import read_scene
        from pmni_nerfstudio.errors import SceneError

        try:
            print_warnings(read_scene(self.src, self.normals).warnings)
        except SceneError as error:
            print_warnings([f"{error}. It is converted as if it were no scene folder."])
            return False
        return True

    def _check_options(self) -> None:
        if self.normals_from is not None and self.axes != "auto":
            raise PmniError("--axes and --normals-from: both say how the normals are stored; give one of them")
        if self.focal is not None and self.fov is not None:
            raise PmniError("--focal and --fov: both are given; give one of them")
        if self.focal is not None and not 0 < self.focal < float("inf"):
            raise PmniError(f"--focal: {self.focal} is not a focal length; give a positive number of pixels")
        if self.fov is not None and not 0 < self.fov < 180:
            raise PmniError(f"--fov: {self.fov} is not a field of view; give degrees between 0 and 180")
        self._size()

    def _size(self) -> tuple[int, int] | None:
        if self.size is None:
            return None
        from pmni_nerfstudio.data.resample import MIN_SIDE

        words = self.size.lower().split("x")
        if len(words) != 2 or not all(word.isdecimal() and MIN_SIDE <= int(word) <= 1 << 14 for word in words):
            raise PmniError(
                f"--size: {self.size} is not a size; give WIDTHxHEIGHT, 8 to 16384 pixels each, such as 612x512"
            )
        return int(words[0]), int(words[1])

    def _convert(self, name: str, source: Path, out: Path) -> None:
        """Convert one scene."""
        from pmni_nerfstudio.data.atomic import new_scene_folder
        from pmni_nerfstudio.data.scene import is_scene
        from pmni_nerfstudio.errors import SceneError
        from pmni_nerfstudio.importers.assemble import assemble
        from pmni_nerfstudio.importers.further_maps import with_further_maps
        from pmni_nerfstudio.importers.normal_tools import with_normals_from
        from pmni_nerfstudio.importers.registry import FORMATS
        from pmni_nerfstudio.importers.source import ImportOptions

        with new_scene_folder(out, source, self.overwrite, is_scene) as fresh:
            axes = None if self.axes == "auto" else self.axes
            options = ImportOptions(self.normals, self.focal, self.fov, axes)
            imported = with_further_maps(source, FORMATS[name].read(source, options))
            imported = with_normals_from(imported, self.normals_from)
            print(f"{source}: {imported.description}")
            try:
                made = assemble(imported, fresh, self._size(), axes, self.mesh, self.refit)
            except PmniError as error:
                line = str(error)
                if str(fresh) in line:
                    line = f"{line.replace(str(fresh), str(out))} (converted from {source}; nothing was written)"
                elif str(source) not in line:
                    line = f"{source}: {line}"
                raise SceneError(line) from error
            warnings = [line.replace(str(fresh), str(out)) for line in made.warnings]
            lines = [made.description, *(f"  {line}" for line in made.summary.lines())]
        print_warnings(warnings)
        print(f"{out}: " + "\n".join(lines))
