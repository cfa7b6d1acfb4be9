# SPDX-License-Identifier: Apache-2.0
"""The field of the method: a signed distance in the unit sphere's world, under one interface for every encoding."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, Tuple, Type, Union

import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.fields.base_field import Field, FieldConfig
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor, nn

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.fields.encodings import DenseEncoding
from pmni_nerfstudio.fields.grid import SdfGrid
from pmni_nerfstudio.fields.hash_encoding import HashEncoding, TcnnHashEncoding, tcnn_usable
from pmni_nerfstudio.fields.levels import Levels
from pmni_nerfstudio.fields.mlp import EncodedSdf
from pmni_nerfstudio.fields.trilinear import sample_volume
from pmni_nerfstudio.fields.variance import LearntVariance
from pmni_nerfstudio.fields.warm_start import SurfaceBand

_JUDGED_POINTS = 16384


@dataclass
class PmniFieldConfig(FieldConfig):
    """The signed distance field: its encoding, its levels, and where it starts."""

    _target: Type = field(default_factory=lambda: PmniField)
    encoding: Literal["auto", "grid", "dense", "hash"] = "auto"
    """What holds the signed distance: grid (the distance itself on trilinear grids, fastest on a CPU), dense (feature
    grids and a hidden layer), hash (hashed feature grids and a hidden layer, for GPUs); auto: hash with CUDA, else grid."""
    grid_vertices: Tuple[int, ...] = ()
    """grid: vertices per axis of each level, coarse to fine; empty: chosen by the model to fit the maps."""
    dense_vertices: Tuple[int, ...] = (24, 48, 96)
    """dense: vertices per axis of each level, coarse to fine."""
    dense_features: int = 2
    """dense: features per vertex."""
    hash_implementation: Literal["auto", "tcnn", "torch"] = "auto"
    """hash: tinycudann or PyTorch; auto: tinycudann where it is installed and has a GPU."""
    hash_levels: int = 14
    """hash: number of levels."""
    hash_base_vertices: int = 32
    """hash: vertices per axis of the coarsest level."""
    hash_growth: float = 1.32
    """hash: ratio of the vertices per axis from level to level."""
    hash_log2_table: int = 19
    """hash: a level's table has at most 2 to this power entries."""
    hash_features: int = 2
    """hash: features per table entry."""
    hidden_dim: int = 64
    """dense, hash: width of the one hidden layer."""
    sphere_radius: float = 0.5
    """Radius of the sphere that the surface starts as, in radii of the scene's sphere."""
    initial_levels: float = 0.3
    """Share of the levels, rounded up, that are unlocked from the start."""
    unlock_until: float = 0.5
    """Fraction of the run by which the last level is unlocked; the others follow one another in equal steps."""
    initial_inv_s: float = 20.0
    """Where NeuS' learnt sharpness of the surface starts: one over the density's standard deviation."""

    def __post_init__(self) -> None:
        # Settled here, so that a run's config.yml says what its checkpoint holds and loads on any other machine.
        if self.encoding == "auto":
            self.encoding = "hash" if torch.cuda.is_available() else "grid"
        if self.hash_implementation == "auto":
            self.hash_implementation = "tcnn" if tcnn_usable() else "torch"


class PmniField(Field):
    """Signed distances in the unit sphere's world, negative inside, and NeuS' learnt variance.

    Args:
        config: the field's configuration.

    Raises:
        PmniError: if a number in the configuration is out of its range.
    """

    config: PmniFieldConfig

    def __init__(self, config: PmniFieldConfig, **kwargs: Any) -> None:
        super().__init__()
        del kwargs
        _check(config)
        self.config = config
        self.geometry = _build_geometry(config)
        self.variance = LearntVariance(config.initial_inv_s)
        self.set_progress(0.0)

    @property
    def levels(self) -> Levels:
        """The levels that unlock coarse to fine."""
        return self.geometry if isinstance(self.geometry, Levels) else self.geometry.levels

    @property
    def active_voxel(self) -> float:
        """Edge of the finest unlocked cell, world units."""
        return self.levels.active_voxel

    def sdf(self, x: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b"]:
        """Signed distances at positions in [-1, 1]^3, world units, negative inside."""
        return self.geometry.sdf(x.reshape(-1, 3)).view(x.shape[:-1])

    def gradient(self, x: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3"]:
        """Analytic gradients of the signed distance, not normalised.

        Differentiable in the parameters and, where x asks for it, in x.
        """
        return self.sdf_and_gradient(x)[1]

    def sdf_and_gradient(self, x: Float[Tensor, "*b 3"]) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b 3"]]:
        """Signed distances and their analytic gradients from one evaluation."""
        value, gradient = self.geometry.sdf_and_gradient(x.reshape(-1, 3))
        return value.view(x.shape[:-1]), gradient.view(x.shape)

    def numerical_gradient(self, x: Float[Tensor, "*b 3"], delta: float) -> Float[Tensor, "*b 3"]:
        """Six-point central differences of the signed distance, `delta` to each side, world units."""
        steps = delta * torch.eye(3, dtype=x.dtype, device=x.device)
        ends = x[..., None, None, :] + torch.stack([steps, -steps])  # (*b, 2, 3, 3): side, axis, coordinates
        values = self.sdf(ends)
        return (values[..., 0, :] - values[..., 1, :]) / (2.0 * delta)

    def forward_geonetwork(self, inputs: Float[Tensor, "p 3"]) -> Float[Tensor, "p 1"]:
        """The signed distance as nerfstudio's surface exporter asks for it; no further features."""
        return self.sdf(inputs)[:, None]

    def volume(self, n: int) -> Float[Tensor, "n n n"]:
        """The field at the vertices of a lattice over [-1, 1]^3, 'ij' = x, y, z; no gradients.

        For many lookups between two steps: `sample_volume(field.volume(n), x)`. With `grid` it is the field itself
        where n is the finest unlocked level's and each level's cells divide the last's.
        """
        return self.geometry.volume(n)

    def set_progress(self, fraction: float) -> None:
        """Unlock the levels that are due at a fraction of the run, 0 to 1.

        Raises:
            ValueError: if the fraction isn't between 0 and 1.
        """
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"fraction: expected a number from 0 to 1, got {fraction}")
        levels, until = self.levels.num_levels, self.config.unlock_until
        first = math.ceil(self.config.initial_levels * levels - 1e-9)
        share = 1.0 if fraction >= until else fraction / until
        self.levels.set_active_levels(first + math.floor(share * (levels - first) + 1e-9))

    def fit(self, sdf_grid: Float[Tensor, "n n n"], steps: int = 300, seed: int = 0) -> float:
        """Start from a given surface instead of a sphere.

        `grid` takes the volume over exactly, in every level; the others regress it in the unlocked levels.

        Args:
            sdf_grid: (n, n, n) signed distances over [-1, 1]^3, vertices on the faces, 'ij' = x, y, z.
            steps: steps of the regression, where there is one.
            seed: of the points drawn; the same seed gives the same field.

        Returns:
            The mean absolute error of the unlocked levels within a few voxels of the surface, world units.

        Raises:
            ValueError: if sdf_grid isn't a cube, holds a number that isn't finite, or has no surface.
        """
        generator = torch.Generator().manual_seed(seed)
        volume = sdf_grid.detach().to(next(self.parameters()))
        band = SurfaceBand(volume)
        self.geometry.fit(volume, steps, generator)
        points = band.draw(_JUDGED_POINTS, generator)
        with torch.no_grad():
            return (self.sdf(points) - sample_volume(volume, points)).abs().mean().item()

    def inv_s(self) -> Float[Tensor, ""]:
        """One over the standard deviation of NeuS' logistic density, learnt, not under its floor."""
        return self.variance.inv_s()

    def set_min_inv_s(self, value: float) -> None:
        """The floor of `inv_s` from now on."""
        self.variance.set_min_inv_s(value)

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by optimizer: "sdf" (the encoding and its layer) and "variance"."""
        return {"sdf": list(self.geometry.parameters()), "variance": list(self.variance.parameters())}

    def get_density(self, ray_samples: RaySamples) -> tuple[Tensor, Tensor]:
        """A surface has no density without its neighbours on the ray: the model renders from signed distances."""
        raise NotImplementedError("PmniField has signed distances and no density: use sdf()")


def _check(config: PmniFieldConfig) -> None:
    """Raise PmniError for the first number that is out of its range."""
    wanted = {
        "sphere_radius": ("between 0 and 1", 0.0 < config.sphere_radius < 1.0),
        "initial_levels": ("above 0 and at most 1", 0.0 < config.initial_levels <= 1.0),
        "unlock_until": ("from 0 to 1", 0.0 <= config.unlock_until <= 1.0),
        "initial_inv_s": ("above 0", config.initial_inv_s > 0.0),
        "hidden_dim": ("at least 1", config.hidden_dim >= 1),
        "dense_features": ("at least 1", config.dense_features >= 1),
        "hash_features": ("at least 1", config.hash_features >= 1),
        "hash_levels": ("at least 1", config.hash_levels >= 1),
    }
    for name, (range_, right) in wanted.items():
        if not right:
            raise PmniError(f"field: {name} must be {range_}, not {getattr(config, name)}")


def _build_geometry(config: PmniFieldConfig) -> Union[SdfGrid, EncodedSdf]:
    """The module that holds the signed distance, by the config's encoding."""
    if config.encoding == "grid":
        return SdfGrid(config.grid_vertices, config.sphere_radius)
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
        runs = "tinycudann" if config.hash_implementation == "tcnn" else "PyTorch"
        CONSOLE.log(
            f"Hash encoding: {runs}, {config.hash_levels} levels up to {encoding.vertices[-1]} vertices per axis"
        )
    return EncodedSdf(encoding, config.hidden_dim, config.sphere_radius)
