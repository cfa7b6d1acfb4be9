# SPDX-License-Identifier: Apache-2.0
"""Summary of a scene for its owner: what was read, how well the maps fit each other, and which views do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pmni_nerfstudio.data.camera_order import fits_better_than_random, random_orders
from pmni_nerfstudio.data.close_ups import close_ups_among, pixel_sizes
from pmni_nerfstudio.data.scene import VALID, WORLD_SPACE, Scene
from pmni_nerfstudio.data.scene_cameras import CAMERAS, INTRINSICS
from pmni_nerfstudio.geometry.silhouette_coherence import Fit, measure_fit, subsampling_step
from pmni_nerfstudio.geometry.silhouette_consistency import (
    EXACT,
    Consistency,
    inconsistent_views,
    measure_consistency,
)
from pmni_nerfstudio.geometry.silhouette_faults import MaskFault, find_mask_faults
from pmni_nerfstudio.geometry.transforms import scale_of

_MAX_LISTED = 8
"""Most views that one line lists."""
_MAX_STEP_DEG = 45.0
"""Largest angle between neighboring views that causes no warning; about 40 degrees are advised."""
_MIN_NORMALS = 0.3
"""Least agreement of normals between views of right poses (see `Fit.normals`)."""

_MIN_VIEWS_FOR_FAULTS = 6
"""Fewer silhouettes leave too much open."""


@dataclass(frozen=True, eq=False)
class SceneSummary:
    """Figures of a scene with N views."""

    scene: Scene
    facing: np.ndarray
    """(N,) share of the normals that face the camera."""
    rim: np.ndarray
    """(N,) agreement of the normals at the contour with its outward direction, -1 to 1; 0 without evidence."""
    holes: np.ndarray
    """(N,) share of the mask without a normal."""
    fit: Fit | None
    """Agreement of the cameras with silhouettes and normals; None without poses."""
    fits_by_chance: bool
    """Whether the cameras fit no better than in random order."""
    consistency: tuple[Consistency, ...] | None
    """Consistency of each view's silhouette with the others; None without poses."""
    faults: tuple[MaskFault, ...]
    """Masks with a wrong piece; empty without poses, or where whole silhouettes do not fit."""
    step_deg: np.ndarray | None
    """(N,) angle between a view's direction to the object and that of its nearest neighbor; None without poses."""

    @property
    def close_ups(self) -> np.ndarray:
        """(N,) bool, whether a view is a close-up that its frame cuts (see close_ups.py)."""
        return close_ups_among(self.scene, self.scene.c2w)

    @property
    def scores(self) -> np.ndarray | None:
        """(N,) consistency of the silhouettes, 0 to 1; None without poses."""
        return None if self.consistency is None else np.array([view.score for view in self.consistency])

    def lines(self) -> list[str]:
        """Description of what was read, one line for each kind of data, which begins with its name."""
        pairs = [
            ("normals", self._normals()),
            ("masks", self._masks()),
            ("holes", self._holes()),
            ("intrinsics", self._intrinsics()),
            ("poses", self._poses()),
            *self._pixels(),
            *([("silhouettes", self._silhouettes())] if self.consistency is not None else []),
            ("besides", self._besides()),
        ]
        return [f"{word:<12}{text}" for word, text in pairs]

    def warnings(self) -> list[str]:
        """Findings beyond the warnings of `read_scene`, one line each; views at fault are named."""
        names, root, found = self.scene.names, self.scene.root, []
        scores = self.scores
        if scores is None or self.fit is None or self.consistency is None or self.step_deg is None:
            return []
        if self.fits_by_chance:
            return [
                f"{root}: the cameras hardly fit these maps ({self.fit.silhouettes:.0%} of the silhouettes, "
                f"{self.fit.normals:.0%} of the normals, as in random order); check that cameras and maps belong together, "
                "and the poses' axes"
            ]
        wrong = inconsistent_views(scores)
        if wrong:
            listed = _listed([f"{names[i]} ({scores[i]:.0%})" for i in wrong])
            first = self.consistency[wrong[0]]
            likely = "larger" if first.own_rays < first.other_rays else "smaller"
            found.append(
                f"{root}: the silhouettes of {len(wrong)} of {len(names)} views do not fit the others: {listed}; check their "
                f"poses and masks (that of {names[wrong[0]]} is wrong, or {likely} than the object)"
            )
        if self.faults:
            listed = _listed(
                [f"{names[f.view]} ({'too much' if f.is_too_large else 'missing'}, {f.share:.1%})" for f in self.faults]
            )
            found.append(
                f"{root}: a piece of the mask of {len(self.faults)} of {len(names)} views does not fit the other silhouettes: "
                f"{listed}; check these masks"
            )
        if float(np.median(scores)) < EXACT:
            found.append(
                f"{root}: the silhouettes fit each other by {np.median(scores):.0%}, and by {EXACT:.0%} or more with exact "
                "poses, intrinsics and masks; ns-train pmni corrects rough poses, pmni-calibrated does not"
            )
        if self.fit.silhouettes > 0.9 and self.fit.normals < _MIN_NORMALS:
            found.append(
                f"{root}: the silhouettes fit each other, but normals of the same place differ between views (agreement "
                f"{self.fit.normals:.0%}); check the normals' axes, and that the poses are not mirrored"
            )
        far = np.flatnonzero(self.step_deg > _MAX_STEP_DEG)
        if far.size:
            found.append(
                f"{root}: no other view is within {_MAX_STEP_DEG:.0f} degrees of {_listed([names[i] for i in far])} "
                f"(nearest {self.step_deg.max():.0f}); add views in between"
            )
        return found

    def _normals(self) -> str:
        files = self.scene.normal_files
        is_world = files[0].parent.name.startswith(WORLD_SPACE)
        space = "the world's axes" if is_world else "x right, y up, z towards the viewer"
        rim = self.rim[self.rim != 0]
        contour = f", contours {rim.mean():+.2f} of 1" if rim.size else ""
        return (
            f"{files[0].parent.name} ({files[0].suffix[1:].upper()}), by its name {space}; "
            f"{self.facing.mean():.1%} face the camera{contour}"
        )

    def _masks(self) -> str:
        facts = self.scene.facts
        share = facts.areas / facts.sizes.prod(axis=1)
        return f"{share.min():.0%} to {share.max():.0%} of the picture"

    def _holes(self) -> str:
        if not self.holes.any():
            return "none: every pixel of the masks has a normal"
        worst = int(self.holes.argmax())
        source = f", by {VALID}/" if (self.scene.root / VALID).is_dir() else ""
        return (
            f"{self.holes.mean():.1%} of the masks' pixels have no normal, at most {self.holes[worst]:.1%} "
            f"({self.scene.names[worst]}){source}"
        )

    def _pixels(self) -> list[tuple[str, str]]:
        """Sizes of the pixels on the object, if they differ by more than half."""
        scene = self.scene
        if scene.c2w is None:
            return []
        pixels = pixel_sizes(scene.full_K, scene.c2w) * scale_of(scene.world_from_unit)
        if pixels.max() < 1.5 * pixels.min():
            return []
        coarse, fine = pixels > np.sqrt(pixels.min() * pixels.max()), int(pixels.argmin())
        rim = int(self.close_ups.sum())
        text = (
            f"{pixels.min():.3g} ({scene.names[fine]}) to {pixels.max():.3g} units on the object; "
            f"{int(np.logical_not(coarse).sum())} views are finer than the others"
        )
        return [("pixels", text + (f", {rim} of them cut by their frame" if rim else ""))]

    def _intrinsics(self) -> str:
        K, width = self.scene.full_K, self.scene.facts.sizes[:, 0]
        fov = np.rad2deg(2 * np.arctan(width / 2 / K[:, 0, 0]))
        return (
            f"focal length {_range(K[:, [0, 1], [0, 1]], '.1f')} px ({_range(fov, '.1f')} degrees wide), principal point "
            f"x {_range(K[:, 0, 2], '.1f')}, y {_range(K[:, 1, 2], '.1f')}"
        )

    def _poses(self) -> str:
        scene = self.scene
        if scene.c2w is None or self.step_deg is None:
            return f"none ({INTRINSICS}): they are recovered, up to the scale of the object"
        scale = scale_of(scene.world_from_unit)
        center = ", ".join(f"{value:.4g}" for value in scene.world_from_unit[:3, 3])
        distance = np.linalg.norm(scene.c2w[:, :3, 3], axis=1) * scale
        return (
            f"given ({CAMERAS}); cameras {_range(distance, '.4g')} units from the unit sphere, which has radius {scale:.4g} "
            f"and center ({center}); neighboring views {_range(self.step_deg, '.0f')} degrees apart"
        )

    def _silhouettes(self) -> str:
        assert self.scores is not None and self.fit is not None
        worst = int(self.scores.argmin())
        return (
            f"consistent by {self.scores.mean():.1%}, worst {self.scene.names[worst]} ({self.scores[worst]:.1%}); normals of "
            f"different views agree by {self.fit.normals:.0%}"
        )

    def _besides(self) -> str:
        scene = self.scene
        parts = {
            "photographs": scene.image_files,
            "depth maps": scene.depth_files,
            f"ground-truth mesh {scene.mesh_file.name if scene.mesh_file else ''}": scene.mesh_file,
        }
        return ", ".join(word for word, part in parts.items() if part is not None) or "nothing else is used"


def summarize(scene: Scene) -> SceneSummary:
    """Measure a scene; takes about four seconds for 30 views."""
    facing, rim = scene.facts.facing, scene.facts.rim
    holes = scene.facts.missing / scene.facts.areas
    if scene.c2w is None:
        return SceneSummary(scene, facing, rim, holes, None, False, None, (), None)
    masks, normals, K, c2w = list(scene.masks), list(scene.normals), scene.K, scene.c2w
    possible = None if scene.unknown is None else list(scene.possible)
    fit = measure_fit(masks, normals, K, c2w, possible)
    random_fits = (
        measure_fit(masks, normals, K[order], c2w[order], possible) for order in random_orders(scene.num_views)
    )
    fits_by_chance = not fits_better_than_random(fit, random_fits)
    consistency = tuple(measure_consistency(masks, K, c2w, possible))
    scores = np.array([view.score for view in consistency])
    # Where poses or whole silhouettes are wrong, pieces of masks do not fit for that reason.
    is_exact = not fits_by_chance and float(np.median(scores)) >= EXACT and not inconsistent_views(scores)
    faults = (
        tuple(find_mask_faults(masks, K, c2w, possible)) if is_exact and len(masks) >= _MIN_VIEWS_FOR_FAULTS else ()
    )
    return SceneSummary(scene, facing, rim, holes, fit, fits_by_chance, consistency, faults, _steps_deg(c2w))


def summary_step(mask: np.ndarray) -> int:
    """Factor by which a mask (H, W) and its normals can be reduced without smoothing before `summarize` looks at them."""
    step = subsampling_step(mask.shape)
    return step if mask[::step, ::step].any() else 1


def describe_sizes(sizes: Sequence[tuple[int, int]]) -> str:
    """Sizes (width, height) of views in words, the most frequent one first."""
    counts = Counter((int(width), int(height)) for width, height in sizes).most_common()
    if len(counts) == 1:
        return f"{counts[0][0][0]}x{counts[0][0][1]}"
    listed = [f"{width}x{height} ({count})" for (width, height), count in counts]
    return _listed(listed)


def _steps_deg(c2w: np.ndarray) -> np.ndarray:
    """Angle (N,) at the center of the unit sphere between each camera and the nearest other one."""
    directions = c2w[:, :3, 3] / np.linalg.norm(c2w[:, :3, 3], axis=1, keepdims=True)
    cosine = directions @ directions.T
    np.fill_diagonal(cosine, -1)
    return np.rad2deg(np.arccos(cosine.max(axis=1).clip(-1, 1)))


def _range(values: np.ndarray, form: str) -> str:
    """Smallest and largest value, or one of them if they are printed alike."""
    low, high = f"{values.min():{form}}", f"{values.max():{form}}"
    return low if low == high else f"{low} to {high}"


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - _MAX_LISTED} more" if len(words) > _MAX_LISTED else ""
    return ", ".join(words[:_MAX_LISTED]) + more
