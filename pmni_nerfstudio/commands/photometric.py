# SPDX-License-Identifier: Apache-2.0
"""`pmni photometric SRC OUT`: photometric stereo, from images under known lights to a scene folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from pmni_nerfstudio.errors import PmniError, print_warnings


@dataclass(kw_only=True)
class PhotometricCommand:
    """Photometric stereo: compute the normal maps of a scene from images of each view under known lights.

    SRC is a folder with one folder for each view (images, mask.png, and light_directions.txt as in DiLiGenT, a .lp file, or
    led_params.txt as in LUCES), or a photometric.json. Images are linear PNG, TIFF or EXR files. OUT holds masks, normals,
    mask_valid/ where pixels have too few lights, cameras or intrinsics, and albedo/, confidence/ and residual/ for other
    uses. OUT is created only once it is complete.
    """

    src: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SRC")]
    """Folder of the capture, or its photometric.json; it is not modified."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    """Scene folder to create."""
    light_axes: Literal["auto", "camera", "opencv", "directx"] = "auto"
    """Axes of light directions and positions. camera: x right, y up, z towards the viewer (DiLiGenT, .lp). opencv: x right, y down, z forward (LUCES). directx: x right, y down, z towards the viewer. auto: those of the layout or of photometric.json."""
    gamma: float | None = None
    """Power that makes the images linear, 2.2 for sRGB; 1 if they are linear and refused nevertheless."""
    focal: float | None = None
    """Focal length in pixels, for captures without cameras."""
    drop_dark: float = 0.4
    """Share of each pixel's values, the darkest, that is not used."""
    drop_bright: float = 0.2
    """Share of each pixel's values, the brightest, that is not used; up to 0.5 for metals."""
    shadow: float = 0.1
    """Values below this multiple of the pixel's upper quartile are in shadow."""
    min_lights: int = 4
    """Fewest values, neither in shadow nor clipped, that make a pixel valid."""
    depth_rounds: int = 2
    """Depth updates for near lights; 0 takes the object as a plane."""
    overwrite: bool = False
    """Replace an existing scene once the new one is complete."""

    def main(self) -> None:
        """Solve all views and write the scene.

        Raises:
            PmniError: The capture or an option is invalid, or OUT exists already.
        """
        self._check_options()
        if not self.src.exists():
            raise PmniError(f"{self.src}: does not exist; give the capture's folder or its photometric.json")
        from rich.console import Console
        from rich.progress import track

        from pmni_nerfstudio.data.atomic import new_scene_folder
        from pmni_nerfstudio.data.scene import is_scene
        from pmni_nerfstudio.errors import SceneError
        from pmni_nerfstudio.photometric.pipeline import PhotometricOptions, read_capture, solve_capture
        from pmni_nerfstudio.photometric.solver import SolverOptions

        axes = None if self.light_axes == "auto" else self.light_axes
        solver = SolverOptions(self.drop_dark, self.drop_bright, self.shadow)
        options = PhotometricOptions(self.gamma, self.focal, self.min_lights, self.depth_rounds, solver)
        console = Console(stderr=True)

        def progress(views: range) -> Iterable[int]:
            return track(views, "Solving", console=console, transient=True)

        with new_scene_folder(self.out, self.src, self.overwrite, is_scene) as fresh:
            capture = read_capture(self.src, axes)
            counts = {len(view.images) for view in capture.views}
            images = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{min(counts)}"
            print(f"{self.src}: {capture.description}, {images} images per view, axes of the lights: {capture.axes}")
            try:
                summary, warnings = solve_capture(self.src, capture, fresh, options, progress)
            except PmniError as error:
                line = str(error)
                if str(fresh) in line:
                    line = f"{line.replace(str(fresh), str(self.out))} (computed from {self.src}; nothing was written)"
                raise SceneError(line) from error
            warnings = [line.replace(str(fresh), str(self.out)) for line in warnings]
        print_warnings(warnings)
        print(f"{self.out}: {summary}")

    def _check_options(self) -> None:
        if self.gamma is not None and not 0.2 <= self.gamma <= 5:
            raise PmniError(
                f"--gamma: {self.gamma} is not a power of image values; give 2.2 for sRGB, 1 for linear values"
            )
        if self.focal is not None and not 0 < self.focal < float("inf"):
            raise PmniError(f"--focal: {self.focal} is not a focal length; give a positive number of pixels")
        for name, share in (("drop-dark", self.drop_dark), ("drop-bright", self.drop_bright), ("shadow", self.shadow)):
            if not 0 <= share < 1:
                raise PmniError(f"--{name}: {share} is not a share; give 0 or more, below 1")
        if self.drop_dark + self.drop_bright >= 0.95:
            raise PmniError("--drop-dark and --drop-bright: leave too few values; their sum has to be below 0.95")
        if self.min_lights < 3:
            raise PmniError(f"--min-lights: {self.min_lights} is too small; a normal and an albedo need 3 values")
        if not 0 <= self.depth_rounds <= 20:
            raise PmniError(f"--depth-rounds: {self.depth_rounds} is not a number of updates; give 0 to 20")
