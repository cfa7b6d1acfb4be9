# SPDX-License-Identifier: Apache-2.0
"""Signed distance field in the unit-sphere world, with one interface for all encodings."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, Optional, Tuple, Type, Union

import torch
import tyro
from jaxtyping import Float
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.fields.base_field import Field, FieldConfig
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor, nn

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.fields.blended_blocks import BlendedBlocks
from pmni_nerfstudio.fields.detail_block import DetailBlock
from pmni_nerfstudio.fields.encodings import DenseEncoding
from pmni_nerfstudio.fields.grid import SdfGrid
from pmni_nerfstudio.fields.hash_encoding import HashEncoding, TcnnHashEncoding, tcnn_usable
from pmni_nerfstudio.fields.levels import Levels
from pmni_nerfstudio.fields.mlp import EncodedSdf
from pmni_nerfstudio.fields.trilinear import sample_volume
from pmni_nerfstudio.fields.variance import LearnedVariance
from pmni_nerfstudio.fields.warm_start import SurfaceBand

_VALIDATION_POINTS = 16384
_MESH_CELLS = 512
_COARSE_VERTICES = 193
"""Vertices per axis of the grid around blocks: those of the surface that registration finds."""


@dataclass
class PmniFieldConfig(FieldConfig):
    """Configuration of the signed distance field: encoding, levels of detail, initialization."""

    _target: Type = field(default_factory=lambda: PmniField)
    encoding: Literal["auto", "grid", "dense", "hash"] = "auto"
    """Representation of the signed distance: "grid" stores distances on trilinear grids (fastest on a CPU); "dense"
    stores features on dense grids, decoded by a small network; "hash" stores features in multi-resolution hash tables,
    decoded by a small network (for GPUs); "auto" is hash with CUDA and grid without."""
    grid_vertices: Tuple[int, ...] = ()
    """Encoding grid: vertices per axis of each level, coarse to fine; by default they follow the image resolution."""
    detail_vertices: Optional[int] = None
    """Encoding grid: vertices per axis of a finer block around what close-up views see; 0 for none. By default there is
    one if there are at least eight close-ups."""
    dense_vertices: Tuple[int, ...] = (24, 48, 96)
    """Encoding dense: vertices per axis of each level, coarse to fine."""
    dense_features: int = 2
    """Encoding dense: features per vertex."""
    hash_implementation: Literal["auto", "tcnn", "torch"] = "auto"
    """Encoding hash: tinycudann ("tcnn") or PyTorch ("torch"); "auto" is tinycudann where it is installed and a GPU is
    available."""
    hash_levels: int = 14
    """Encoding hash: number of levels."""
    hash_base_vertices: int = 32
    """Encoding hash: vertices per axis of the coarsest level."""
    hash_growth: float = 1.32
    """Encoding hash: ratio of the vertices per axis from level to level."""
    hash_log2_table: int = 19
    """Encoding hash: base-2 logarithm of the maximum number of entries per table."""
    hash_features: int = 2
    """Encoding hash: features per table entry."""
    hidden_dim: int = 64
    """Encodings dense and hash: width of the network's hidden layer."""
    sphere_radius: float = 0.5
    """Radius of the initial sphere, in radii of the unit sphere that contains the object."""
    initial_levels: float = 0.3
    """Share of the levels that are unlocked at the start, rounded up to whole levels."""
    unlock_until: float = 0.5
    """Fraction of the training at which the last level is unlocked; the others unlock at equal intervals before."""
    blocks: tyro.conf.Suppress[int] = 1
    """Largest number of blocks; if there may be several, the field is their blend. The model sets it."""
    initial_inv_s: float = 20.0
    """Initial sharpness of NeuS' density: the inverse of its standard deviation, in 1 / radii of the unit sphere."""

    def __post_init__(self) -> None:
        # Resolved here, so that config.yml records what the checkpoint contains and loads on other machines.
        if self.encoding == "auto":
            self.encoding = "hash" if torch.cuda.is_available() else "grid"
        if self.hash_implementation == "auto":
            self.hash_implementation = "tcnn" if tcnn_usable() else "torch"


class PmniField(Field):
    """Signed distance field in the unit-sphere world, negative inside, with the learned variance of NeuS.

    Args:
        config: configuration of the field.

    Raises:
        PmniError: a number in the configuration is out of range.
    """

    config: PmniFieldConfig

    def __init__(self, config: PmniFieldConfig, **kwargs: Any) -> None:
        super().__init__()
        del kwargs
        _check(config)
        self.config = config
        self.geometry = _build_geometry(config)
        self.variance = LearnedVariance(config.initial_inv_s)
        self.set_progress(0.0)

    @property
    def levels(self) -> Levels:
        """The encoding's levels of detail."""
        return self.geometry if isinstance(self.geometry, Levels) else self.geometry.levels

    @property
    def active_voxel(self) -> float:
        """Edge of the finest unlocked cell, world units."""
        return self.levels.active_voxel

    def sdf(self, x: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b"]:
        """Signed distances at positions in [-1, 1]^3, world units, negative inside."""
        return self.geometry.sdf(x.reshape(-1, 3)).view(x.shape[:-1])

    def sdf_and_gradient(self, x: Float[Tensor, "*b 3"]) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b 3"]]:
        """Signed distances and their analytic gradients, not normalized, from one evaluation.

        Differentiable in the parameters and, if it requires a gradient, in x.
        """
        value, gradient = self.geometry.sdf_and_gradient(x.reshape(-1, 3))
        return value.view(x.shape[:-1]), gradient.view(x.shape)

    @property
    def detail(self) -> Optional[DetailBlock]:
        """Finer block around what close-up views see; None if the field has none."""
        return self.geometry.detail if isinstance(self.geometry, SdfGrid) else None

    @property
    def blocks(self) -> Optional[BlendedBlocks]:
        """Blocks of a large scene; None if the field is trained as a whole."""
        return self.geometry if isinstance(self.geometry, BlendedBlocks) else None

    def mesh_resolution(self) -> int:
        """Marching cubes cells per axis that show the field's detail.

        512, and more for a detail block, up to 1024, and for blocks, up to 2048.
        """
        if self.blocks is not None:
            return max(_MESH_CELLS, min(4 * _MESH_CELLS, round(2.0 / self.active_voxel)))
        if self.detail is None or float(self.detail.voxel) == 0:
            return _MESH_CELLS
        return max(_MESH_CELLS, min(2 * _MESH_CELLS, round(2.5 / float(self.detail.voxel))))

    def difference_step(
        self, x: Float[Tensor, "*b 3"], footprint: Optional[Float[Tensor, "*b"]] = None
    ) -> Union[float, Float[Tensor, "*b"]]:
        """Step of central differences for normals at surface points, world units.

        It is the finest unlocked voxel. In a detail block it is half a voxel of the block, so that differences of fine
        relief are not flattened, but not less than half of a pixel: the normal of a pixel is a mean over it.

        Args:
            x: surface points.
            footprint: size of the pixel that sees each point, world units; None: as fine as the field.
        """
        if self.detail is None:
            return self.active_voxel
        block = self.detail
        fine = (0.5 * block.voxel).expand(x.shape[:-1])
        if footprint is not None:
            fine = torch.maximum(fine, 0.5 * footprint).clamp(max=self.active_voxel)
        flat = x.reshape(-1, 3)
        inside = block.contains(flat)
        inside[inside.clone()] = block.weight(flat[inside]) > 0.5
        return torch.where(inside.view(x.shape[:-1]), fine, fine.new_tensor(self.active_voxel))

    def numerical_gradient(
        self, x: Float[Tensor, "*b 3"], delta: Union[float, Float[Tensor, "*b"]]
    ) -> Float[Tensor, "*b 3"]:
        """Gradients of the signed distance by central differences with step `delta`, world units: six evaluations."""
        steps = torch.eye(3, dtype=x.dtype, device=x.device)
        if isinstance(delta, Tensor):
            steps, delta = delta[..., None, None] * steps, delta[..., None]
            ends = x[..., None, None, :] + torch.stack([steps, -steps], dim=-3)
            values = self.sdf(ends)
            return (values[..., 0, :] - values[..., 1, :]) / (2.0 * delta)
        steps = delta * steps
        ends = x[..., None, None, :] + torch.stack([steps, -steps])  # (*b, 2, 3, 3): side, axis, coordinates
        values = self.sdf(ends)
        return (values[..., 0, :] - values[..., 1, :]) / (2.0 * delta)

    def forward_geonetwork(self, inputs: Float[Tensor, "p 3"]) -> Float[Tensor, "p 1"]:
        """Signed distances in the form that nerfstudio's mesh exporter expects, without geometry features."""
        return self.sdf(inputs)[:, None]

    def volume(self, n: int) -> Float[Tensor, "n n n"]:
        """The field at the vertices of an n^3 grid over [-1, 1]^3, 'ij' = x, y, z; no gradients.

        `sample_volume(field.volume(n), x)` speeds up many evaluations between two training steps. With encoding `grid`
        it is exact if n is the resolution of the finest unlocked level and the levels are nested.
        """
        return self.geometry.volume(n)

    def set_progress(self, fraction: float) -> None:
        """Unlock the levels scheduled up to a fraction of the training, 0 to 1.

        Raises:
            ValueError: `fraction` is not between 0 and 1.
        """
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"fraction: expected a number from 0 to 1, got {fraction}")
        levels, until = self.levels.num_levels, self.config.unlock_until
        first = math.ceil(self.config.initial_levels * levels - 1e-9)
        share = 1.0 if fraction >= until else fraction / until
        self.levels.set_active_levels(first + math.floor(share * (levels - first) + 1e-9))

    def fit(self, sdf_grid: Float[Tensor, "n n n"], steps: int = 300, seed: int = 0) -> float:
        """Fit the field to a volume of signed distances: the warm start.

        Encoding `grid` represents the volume directly, in all levels; the others fit it by gradient descent, in the
        unlocked levels.

        Args:
            sdf_grid: (n, n, n) signed distances over [-1, 1]^3, vertices on the faces, 'ij' = x, y, z.
            steps: gradient descent steps, for `dense` and `hash`.
            seed: seed of the sample points; results are reproducible.

        Returns:
            Mean absolute error of the unlocked levels within a few voxels of the surface, world units.

        Raises:
            ValueError: `sdf_grid` is not a cube, not finite, or has no surface.
        """
        generator = torch.Generator().manual_seed(seed)
        volume = sdf_grid.detach().to(next(self.parameters()))
        band = SurfaceBand(volume)
        self.geometry.fit(volume, steps, generator)
        points = band.draw(_VALIDATION_POINTS, generator)
        with torch.no_grad():
            return (self.sdf(points) - sample_volume(volume, points)).abs().mean().item()

    def inv_s(self) -> Float[Tensor, ""]:
        """Inverse standard deviation of NeuS' logistic density: the learned value or its lower bound."""
        return self.variance.inv_s()

    def set_min_inv_s(self, value: float) -> None:
        """Set the lower bound of `inv_s`."""
        self.variance.set_min_inv_s(value)

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by optimizer: "sdf" (encoding and network) and "variance"."""
        return {"sdf": list(self.geometry.parameters()), "variance": list(self.variance.parameters())}

    def get_density(self, ray_samples: RaySamples) -> tuple[Tensor, Tensor]:
        """Raise NotImplementedError: NeuS' density depends on neighboring samples along the ray, so the model computes it."""
        raise NotImplementedError("PmniField has no density, only signed distances; use sdf() instead")


def _check(config: PmniFieldConfig) -> None:
    """Raise PmniError for the first number that is out of range."""
    valid = {
        "sphere_radius": ("between 0 and 1", 0.0 < config.sphere_radius < 1.0),
        "initial_levels": ("above 0 and at most 1", 0.0 < config.initial_levels <= 1.0),
        "unlock_until": ("from 0 to 1", 0.0 <= config.unlock_until <= 1.0),
        "initial_inv_s": ("above 0", config.initial_inv_s > 0.0),
        "hidden_dim": ("at least 1", config.hidden_dim >= 1),
        "dense_features": ("at least 1", config.dense_features >= 1),
        "hash_features": ("at least 1", config.hash_features >= 1),
        "hash_levels": ("at least 1", config.hash_levels >= 1),
        "detail_vertices": (
            "0 or at least 2",
            config.detail_vertices is None or config.detail_vertices not in (1,) and config.detail_vertices >= 0,
        ),
    }
    for name, (range_, is_valid) in valid.items():
        if not is_valid:
            raise PmniError(f"field: {name} must be {range_}, got {getattr(config, name)}")


def _build_geometry(config: PmniFieldConfig) -> Union[SdfGrid, EncodedSdf, BlendedBlocks]:
    """Build the module of the configured encoding."""
    if config.blocks > 1:
        return BlendedBlocks(config.blocks, _COARSE_VERTICES)
    if config.encoding == "grid":
        return SdfGrid(config.grid_vertices, config.sphere_radius, config.detail_vertices or 0)
    if config.encoding == "dense":
        encoding = DenseEncoding(config.dense_vertices, config.dense_features)
    else:
        hash_class = TcnnHashEncoding if config.hash_implementation == "tcnn" else HashEncoding
        encoding = hash_class(
            config.hash_levels,
            config.hash_base_vertices,
            config.hash_growth,
            config.hash_log2_table,
            config.hash_features,
        )
        implementation = "tinycudann" if config.hash_implementation == "tcnn" else "PyTorch"
        CONSOLE.log(
            f"Hash encoding: {implementation}, {config.hash_levels} levels up to {encoding.vertices[-1]} vertices per axis"
        )
    return EncodedSdf(encoding, config.hidden_dim, config.sphere_radius)
