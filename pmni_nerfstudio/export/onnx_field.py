# SPDX-License-Identifier: Apache-2.0
"""Signed distance field of a trained run as an ONNX model, which runs without PyTorch and this package.

The graph is written operator by operator instead of being traced: it contains the analytic gradient, which tracers do
not export, and needs operators of opset 18 only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from pmni_nerfstudio.errors import PmniError
from pmni_nerfstudio.export.world_sdf import WorldSdf
from pmni_nerfstudio.fields.blended_blocks import BlendedBlocks
from pmni_nerfstudio.fields.encodings import TableEncoding
from pmni_nerfstudio.fields.grid import SdfGrid
from pmni_nerfstudio.fields.hash_encoding import PRIMES, HashEncoding
from pmni_nerfstudio.fields.mlp import SOFTPLUS_BETA, EncodedSdf

if TYPE_CHECKING:
    import onnx

Precision = Literal["float32", "float16"]

FORMAT_VERSION = "1"
"""Version of inputs, outputs and metadata; increased when a reader would have to change."""

_OPSET = 18
_IR_VERSION = 8

_CORNERS = np.array([[i >> 2, (i >> 1) & 1, i & 1] for i in range(8)], dtype=np.int64)
"""(8, 3) steps from a cell to its corners, x slowest."""


def require_onnx() -> None:
    """Raise PmniError if the package onnx is not installed."""
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise PmniError("format onnx: needs the package onnx; run pip install 'pmni-nerfstudio[onnx]'") from error


def onnx_field(sdf: WorldSdf, units: str, precision: Precision = "float32") -> onnx.ModelProto:
    """Build the ONNX model of a field.

    Input: `points` (N, 3) float32, in the data world. Outputs: `distance` (N,) and `gradient` (N, 3) float32, as those of
    `WorldSdf`; NaN outside the cube that circumscribes the scene's sphere. Metadata: see `_metadata`.

    Args:
        sdf: signed distance in the data world.
        units: name of the data's units.
        precision: type in which the parameters are stored. The arithmetic is float32 in both cases: positions in half
            precision would be off by a thousandth of the diameter, and differences of neighboring values lost.

    Raises:
        PmniError: the field has a detail block or consists of blocks, or has an encoding of tinycudann, whose parameters
            have an undocumented layout.
    """
    from onnx import TensorProto, checker, helper

    geometry = sdf.field.geometry
    if isinstance(geometry, BlendedBlocks):
        raise PmniError("the field consists of blocks, which an ONNX file cannot hold; export a mesh")
    if sdf.field.detail is not None and float(sdf.field.detail.voxel) > 0:
        raise PmniError("the field has a finer block for close-ups, which an ONNX file cannot hold; export a mesh")
    graph = _Graph(np.float16 if precision == "float16" else np.float32)
    rotation = sdf.world_from_unit[:3, :3] / sdf.radius
    # Centering comes first: it is exact where the data are far from the origin.
    centered = graph.node("Sub", "points", graph.constant(sdf.center.astype(np.float32)))
    unit = graph.node("MatMul", centered, graph.constant((rotation / sdf.radius).astype(np.float32)))
    inside = graph.node(
        "LessOrEqual",
        graph.node("ReduceMax", graph.node("Abs", unit), graph.integers(1), keepdims=1),
        graph.constant(1.0),
    )
    clamped = graph.node("Clip", unit, graph.constant(-1.0), graph.constant(1.0))
    position = graph.node("Transpose", clamped, perm=[1, 0])
    if isinstance(geometry, SdfGrid):
        value, gradient = _grid(graph, geometry, position)
    else:
        value, gradient = _encoded(graph, geometry, position)
    nan = graph.constant(float("nan"))
    distance = graph.node("Mul", graph.node("Transpose", value, perm=[1, 0]), graph.constant(sdf.radius))
    graph.node("Squeeze", graph.node("Where", inside, distance, nan), graph.integers(1), output="distance")
    by_point = graph.node("Transpose", gradient, perm=[1, 0])
    turned = graph.node("MatMul", by_point, graph.constant(rotation.T.astype(np.float32)))
    graph.node("Where", inside, turned, nan, output="gradient")

    def tensor(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    inputs, outputs = [tensor("points", "N", 3)], [tensor("distance", "N"), tensor("gradient", "N", 3)]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "signed_distance_field", inputs, outputs, graph.initializers),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="pmni-nerfstudio",
        producer_version=metadata.version("pmni-nerfstudio"),
        doc_string="Signed distance, negative inside, and its gradient at points of the data world.",
    )
    helper.set_model_props(model, _metadata(sdf, units, precision))
    checker.check_model(model)
    return model


def _metadata(sdf: WorldSdf, units: str, precision: Precision) -> dict[str, str]:
    """Metadata of a model; numbers are JSON.

    The voxel is the edge of the finest cell, below which the field has no detail; the sphere contains the object.
    """
    return {
        "format_version": FORMAT_VERSION,
        "units": units,
        "sphere_center": json.dumps(sdf.center.tolist()),
        "sphere_radius": json.dumps(sdf.radius),
        "voxel": json.dumps(sdf.radius * sdf.field.active_voxel),
        "encoding": sdf.field.config.encoding,
        "precision": precision,
    }


class _Graph:
    """Nodes and constants of an ONNX graph under construction; values are referred to by name.

    Args:
        stored: type in which parameters are stored.
    """

    def __init__(self, stored: type[np.floating]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._stored = stored

    def node(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Add an operator and return the name of its output."""
        from onnx import helper

        output = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def constant(self, value: np.ndarray | float) -> str:
        """Add a constant, a float as float32, and return its name."""
        from onnx import numpy_helper

        name = f"constant_{len(self.initializers)}"
        array = np.float32(value) if isinstance(value, float) else value
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(np.shape(array)), name))
        return name

    def integers(self, *values: int) -> str:
        """Add a constant list of integers."""
        return self.constant(np.array(values, dtype=np.int64))

    def parameter(self, tensor: torch.Tensor) -> str:
        """Add a small parameter in the type of storage, and return the name of its float32 value."""
        return self.as_float32(self.stored(tensor))

    def stored(self, tensor: torch.Tensor) -> str:
        """Add a parameter in the type of storage."""
        return self.constant(tensor.detach().cpu().numpy().astype(self._stored))

    def as_float32(self, name: str) -> str:
        """Convert a value of the type of storage to float32."""
        from onnx import TensorProto

        return name if self._stored is np.float32 else self.node("Cast", name, to=TensorProto.FLOAT)

    def slice(self, name: str, start: int, end: int, axis: int = 0) -> str:
        """Part of a value along an axis, which is kept."""
        return self.node("Slice", name, self.integers(start), self.integers(end), self.integers(axis))

    def reshape(self, name: str, shape: Sequence[int]) -> str:
        """Value in another shape."""
        return self.node("Reshape", name, self.integers(*shape))

    def sum(self, names: Sequence[str]) -> str:
        """Sum of values of the same shape."""
        return names[0] if len(names) == 1 else self.node("Sum", *names)


# From here on, points are the last axis: inner loops run over contiguous memory, which is several times as fast.


def _grid(graph: _Graph, grid: SdfGrid, position: str) -> tuple[str, str]:
    """Value (1, N) and gradient (3, N) of encoding `grid` in the unit-sphere world."""
    levels = []
    for level in range(grid.active_levels):
        n = grid.vertices[level]
        cell, weights = _locate(graph, position, n)
        levels.append(_interpolate(graph, grid.values[level].reshape(1, -1), _dense_index(graph, cell, n), weights))
    both = graph.node("Squeeze", graph.sum(levels), graph.integers(0))
    return graph.slice(both, 0, 1), graph.slice(both, 1, 4)


def _encoded(graph: _Graph, sdf: EncodedSdf, position: str) -> tuple[str, str]:
    """Value (1, N) and gradient (3, N) of encodings `dense` and `hash` in the unit-sphere world."""
    encoding = sdf.levels
    if not isinstance(encoding, TableEncoding):
        raise PmniError(
            "format onnx: the run's hash encoding is that of tinycudann, which ONNX cannot express; train with "
            "--pipeline.model.sdf-field.hash-implementation torch"
        )
    levels = []
    for level in range(encoding.active_levels):
        n = encoding.vertices[level]
        cell, weights = _locate(graph, position, n)
        hashed = isinstance(encoding, HashEncoding) and n**3 > encoding.table_entries
        index = _hash_index(graph, cell, encoding.entries(n)) if hashed else _dense_index(graph, cell, n)
        levels.append(_interpolate(graph, encoding.tables[level], index, weights))
    features = levels[0] if len(levels) == 1 else graph.node("Concat", *levels, axis=0)  # (F, 4, N)
    values = graph.node("Squeeze", graph.slice(features, 0, 1, axis=1), graph.integers(1))

    count = encoding.active_levels * encoding.features_per_level
    weight = graph.parameter(sdf.weight[:, : 3 + count])  # without the weights of locked levels
    inputs = graph.node("Concat", position, values, axis=0)
    hidden = graph.node("Add", graph.node("MatMul", weight, inputs), graph.parameter(sdf.bias[:, None]))
    sharp = graph.node("Mul", hidden, graph.constant(SOFTPLUS_BETA))
    active = graph.node("Mul", graph.node("Softplus", sharp), graph.constant(1.0 / SOFTPLUS_BETA))
    out = graph.parameter(sdf.weight_out)
    value = graph.node("Add", graph.node("MatMul", out, active), graph.parameter(sdf.bias_out))
    # Backwards: derivative by the hidden layer's inputs, by its own inputs, and through the encoding.
    by_hidden = graph.node("Mul", graph.node("Sigmoid", sharp), graph.node("Transpose", out, perm=[1, 0]))
    by_inputs = graph.node("MatMul", graph.node("Transpose", weight, perm=[1, 0]), by_hidden)
    by_features = graph.node("Unsqueeze", graph.slice(by_inputs, 3, 3 + count), graph.integers(1))
    slopes = graph.slice(features, 1, 4, axis=1)
    through = graph.node("ReduceSum", graph.node("Mul", by_features, slopes), graph.integers(0), keepdims=0)
    return value, graph.node("Add", graph.slice(by_inputs, 0, 3), through)


def _locate(graph: _Graph, position: str, vertices: int) -> tuple[str, str]:
    """Cells (3, N) int64 and weights (4, 8, N) of their corners for the value and the three derivatives."""
    from onnx import TensorProto

    half = 0.5 * (vertices - 1)
    scaled = graph.node("Mul", graph.node("Add", position, graph.constant(1.0)), graph.constant(half))
    cell = graph.node("Min", graph.node("Floor", scaled), graph.constant(float(vertices - 2)))
    high = graph.node("Sub", scaled, cell)
    low = graph.node("Sub", graph.constant(1.0), high)
    # By axis: the weights (2, N) of the two vertices, and their derivatives, which are constants.
    slope = graph.constant(np.array([[-half], [half]], dtype=np.float32))
    x, y, z = (graph.node("Concat", graph.slice(low, i, i + 1), graph.slice(high, i, i + 1), axis=0) for i in range(3))
    products = [
        _corner_products(graph, *factors) for factors in ((x, y, z), (slope, y, z), (x, slope, z), (x, y, slope))
    ]
    return graph.node("Cast", cell, to=TensorProto.INT64), graph.node("Concat", *products, axis=0)


def _corner_products(graph: _Graph, x: str, y: str, z: str) -> str:
    """Products (1, 8, N) of factors (2, N) or (2, 1) of the three axes, x slowest."""
    shapes = ([2, 1, 1, -1], [1, 2, 1, -1], [1, 1, 2, -1])
    x, y, z = (graph.reshape(name, shape) for name, shape in zip((x, y, z), shapes))
    return graph.reshape(graph.node("Mul", graph.node("Mul", x, y), z), [1, 8, -1])


def _dense_index(graph: _Graph, cell: str, vertices: int) -> str:
    """Entries (8, N) of the cells' corners in a flattened volume, as `trilinear.dense_index`."""
    steps = np.array([vertices * vertices, vertices, 1], dtype=np.int64)
    base = graph.node(
        "ReduceSum", graph.node("Mul", cell, graph.constant(steps[:, None])), graph.integers(0), keepdims=1
    )
    return graph.node("Add", base, graph.constant(_CORNERS @ steps[:, None]))


def _hash_index(graph: _Graph, cell: str, entries: int) -> str:
    """Entries (8, N) of the cells' corners in a hash table, as `HashEncoding.corner_index`."""
    x, y, z = (
        graph.node(
            "Mul",
            graph.node("Add", graph.slice(cell, axis, axis + 1), graph.constant(_CORNERS[:, axis, None])),
            graph.constant(np.array(prime, dtype=np.int64)),
        )
        for axis, prime in enumerate(PRIMES)
    )
    mixed = graph.node("BitwiseXor", graph.node("BitwiseXor", x, y), z)
    return graph.node("BitwiseAnd", mixed, graph.constant(np.array(entries - 1, dtype=np.int64)))


def _interpolate(graph: _Graph, table: torch.Tensor, index: str, weights: str) -> str:
    """Values and derivatives (C, 4, N) of a table (C, entries)."""
    corners = graph.as_float32(graph.node("Gather", graph.stored(table), index, axis=1))  # (C, 8, N)
    products = graph.node("Mul", graph.node("Unsqueeze", corners, graph.integers(1)), weights)
    return graph.node("ReduceSum", products, graph.integers(2), keepdims=0)
