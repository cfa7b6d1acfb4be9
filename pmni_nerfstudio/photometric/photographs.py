# SPDX-License-Identifier: Apache-2.0
"""Image values of a view on its mask, and which of them are clipped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from pmni_nerfstudio.data.images import read_mask, read_photograph
from pmni_nerfstudio.data.map_checks import check_mask, check_size
from pmni_nerfstudio.errors import SceneError
from pmni_nerfstudio.photometric.capture import CaptureView

SUFFIXES = (".png", ".tif", ".tiff", ".exr", ".jpg", ".jpeg")
"""Files that are taken for images; JPEG files, to refuse them."""
_CONVERTER_TOPS = (1023, 4095, 16383)
"""Largest values of sensors with 10, 12 and 14 bits, which stay the largest in files of 16 bits."""


@dataclass(frozen=True, eq=False)
class Photographs:
    """Images of one view; n images, p pixels of the mask in row-major order, c = 1 or 3 channels."""

    stored: np.ndarray
    """(n, p, c) as in the files: uint8, uint16 or float32."""
    top: float
    """Stored value from which on a pixel is clipped; infinity in EXR files."""
    mask: Bool[np.ndarray, "h w"]
    intensities: Float[np.ndarray, "n c"]
    """Intensity of each light, in each channel."""
    gamma: float = 1.0
    """Power that makes stored values linear."""

    @property
    def num_pixels(self) -> int:
        """Number of pixels on the mask."""
        return self.stored.shape[1]

    def linear(self, pixels: slice | np.ndarray) -> tuple[Float[np.ndarray, "q n c"], Bool[np.ndarray, "q n"]]:
        """Linear values over the lights' intensities, float32, and whether any channel is clipped.

        Args:
            pixels: choice of the p pixels.
        """
        stored = np.moveaxis(self.stored[:, pixels], 0, 1)
        clipped = (stored >= self.top).any(axis=2)
        scale = self.top if np.isfinite(self.top) else 1.0
        values = np.multiply(stored, np.float32(1 / scale), dtype=np.float32)
        if self.gamma != 1:
            values **= np.float32(self.gamma)
        values *= (1 / self.intensities).astype(np.float32)
        return values, clipped


def load_photographs(view: CaptureView, saturation: float | None, gamma: float) -> Photographs:
    """Read mask and images of a view; only the mask's pixels are kept.

    Args:
        view: the view.
        saturation: stored value from which on pixels are clipped; None: the largest of the type, or of a sensor with 10, 12
            or 14 bits if no pixel exceeds it and some reach it.
        gamma: power that makes the values linear.

    Raises:
        SceneError: A file is missing or broken, or the images differ in size, type or number of channels.
    """
    mask = read_mask(view.mask)
    check_mask(view.mask, mask)
    stored: np.ndarray | None = None
    for i, path in enumerate(view.images):
        image = read_photograph(path)
        check_size(path, image.shape, mask.shape, view.mask)
        values = image[mask] if image.ndim == 3 else image[mask][:, None]
        if stored is None:
            stored = np.empty((len(view.images), *values.shape), dtype=image.dtype)
        _check_same(path, values, stored, view.images[0])
        stored[i] = values
    if stored is None:
        raise SceneError(f"{view.name}: has no images; add one for each light")
    intensities = view.lights.intensities
    if stored.shape[2] == 1:
        intensities = intensities.mean(axis=1, keepdims=True)
    return Photographs(stored, _top(stored) if saturation is None else saturation, mask, intensities, gamma)


def _check_same(path: Path, values: np.ndarray, stored: np.ndarray, first: Path) -> None:
    if values.dtype != stored.dtype:
        raise SceneError(f"{path}: has {values.dtype} pixels, but {first} has {stored.dtype}; export all images alike")
    if values.shape != stored.shape[1:]:
        raise SceneError(
            f"{path}: has {values.shape[1]} channels, but {first} has {stored.shape[2]}; export all images alike"
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise SceneError(f"{path}: has pixels on the mask that are not finite; export it again")
    if values.dtype.kind == "f" and (values < 0).any():
        raise SceneError(f"{path}: has negative pixels on the mask; subtract less of the black level")


def _top(stored: np.ndarray) -> float:
    if stored.dtype.kind == "f":
        return float("inf")
    brightest = int(stored.max())
    return float(brightest if brightest in _CONVERTER_TOPS else np.iinfo(stored.dtype).max)
