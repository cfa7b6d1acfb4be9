# SPDX-License-Identifier: Apache-2.0
"""Camera poses by Open3D's multiway registration of the views' integrated depth maps; a baseline of bench_poses.py.

The steps are those of Open3D's reconstruction system: FPFH features, global registration of every pair of views,
point-to-plane ICP, and optimization of the pose graph with line processes that may drop wrong pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import open3d as o3d
from jaxtyping import Float
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree

from pmni_nerfstudio.geometry.cameras import pixel_directions, pixel_grid
from pmni_nerfstudio.registration.pairwise.integrated_depth import IntegratedDepthMaps
from pmni_nerfstudio.registration.pairwise.multiway import PairwiseSchedule, integrate_at_working_resolution
from pmni_nerfstudio.registration.views import Views

reg = o3d.pipelines.registration


@dataclass(frozen=True)
class Options:
    """Settings of the pairs; lengths in radii of the object."""

    voxel: float = 0.04
    """Voxel of the points that carry features."""
    feature_radius: float = 5.0
    """Radius of a feature in voxels."""
    inlier: float = 1.5
    """Largest distance of matching points in voxels."""
    least_fitness: float = 0.3
    """Smallest share of a view's points with a neighbor in the other view; pairs with less are dropped."""
    fast: bool = True
    """Fast global registration instead of RANSAC. On four scenes it found as many views within 5 degrees, and on two of
    them more within 1 degree."""
    ransac_iterations: int = 100_000
    """Largest number of RANSAC's hypotheses for a pair."""
    least_cosine: float = 0.15
    """Points whose normals face the camera less are left out: their depth is uncertain."""
    seed: int = 0
    """Random seed of the global registration."""


@dataclass(frozen=True, eq=False)
class Cloud:
    """Points of a view in its object frame (axes of the camera, origin at the object), with features."""

    full: o3d.geometry.PointCloud
    """All points, for ICP."""
    sparse: o3d.geometry.PointCloud
    """One point a voxel, for features."""
    features: o3d.pipelines.registration.Feature


@dataclass(frozen=True, eq=False)
class Pair:
    """Two registered views."""

    source: int
    target: int
    transform: Float[np.ndarray, "4 4"]
    """From the source's to the target's object frame."""
    fitness: float
    information: Float[np.ndarray, "6 6"]


def open3d_poses(views: Views, options: Options = Options()) -> Float[np.ndarray, "n 4 4"]:
    """Camera-to-world poses, OpenCV axes; NaN for views that no chain of pairs links to the largest group.

    Every depth map is in the unit of its object frame, about the object's radius, so that the scales of the views differ
    by a few percent only; rigid transforms suffice.
    """
    maps = integrate_at_working_resolution(views, PairwiseSchedule())
    o3d.utility.random.seed(options.seed)
    clouds = clouds_of(maps, options)
    pairs = [register_pair(clouds, i, j, options) for i, j in combinations(range(len(views)), 2)]
    nodes = optimize([pair for pair in pairs if pair.fitness >= options.least_fitness], len(views), options)
    to_center = np.tile(np.eye(4), (len(views), 1, 1))
    to_center[:, :3, 3] = -maps.centers
    return nodes @ to_center


def clouds_of(maps: IntegratedDepthMaps, options: Options) -> list[Cloud]:
    """Points, normals and features of all views."""
    pixels = pixel_grid(maps.views.width, maps.views.height)
    out = []
    for normals, depth, K, center in zip(maps.views.normals, maps.depths, maps.views.K, maps.centers):
        points = pixel_directions(K, pixels) * depth[..., None]
        cosine = -(normals * points).sum(axis=-1) / np.linalg.norm(points, axis=-1)
        kept = np.isfinite(depth) & (cosine > options.least_cosine)
        full = o3d.geometry.PointCloud(o3d.utility.Vector3dVector((points[kept] - center).astype(np.float64)))
        full.normals = o3d.utility.Vector3dVector(normals[kept].astype(np.float64))
        sparse = full.voxel_down_sample(options.voxel)
        sparse.normalize_normals()
        radius = options.feature_radius * options.voxel
        features = reg.compute_fpfh_feature(sparse, o3d.geometry.KDTreeSearchParamHybrid(radius=radius, max_nn=100))
        out.append(Cloud(full, sparse, features))
    return out


def register_pair(clouds: list[Cloud], source: int, target: int, options: Options) -> Pair:
    """Register a pair of views from their features, and refine it by ICP on all points."""
    a, b, reach = clouds[source], clouds[target], options.inlier * options.voxel
    if not options.fast:
        found = reg.registration_ransac_based_on_feature_matching(
            a.sparse, b.sparse, a.features, b.features, True, reach,
            reg.TransformationEstimationPointToPoint(False), 3,
            [reg.CorrespondenceCheckerBasedOnEdgeLength(0.9),
             reg.CorrespondenceCheckerBasedOnDistance(reach),
             reg.CorrespondenceCheckerBasedOnNormal(np.deg2rad(30))],
            reg.RANSACConvergenceCriteria(options.ransac_iterations, 0.999),
        )  # fmt: skip
    else:
        fast = reg.FastGlobalRegistrationOption(maximum_correspondence_distance=reach, iteration_number=64)
        found = reg.registration_fgr_based_on_feature_matching(a.sparse, b.sparse, a.features, b.features, fast)
    transform = found.transformation
    for distance in (reach, 0.5 * reach):
        refined = reg.registration_icp(
            a.full, b.full, distance, transform, reg.TransformationEstimationPointToPlane(),
            reg.ICPConvergenceCriteria(max_iteration=50),
        )  # fmt: skip
        transform = refined.transformation
    information = reg.get_information_matrix_from_point_clouds(a.full, b.full, 0.5 * reach, transform)
    return Pair(source, target, np.array(transform), refined.fitness, np.array(information))


def optimize(pairs: list[Pair], count: int, options: Options) -> Float[np.ndarray, "n 4 4"]:
    """Transforms from the views' object frames to one world, by pose graph optimization.

    The initial transforms follow the spanning tree of the pairs that overlap most.

    Returns:
        Transforms (count, 4, 4); NaN for views outside the largest connected group.
    """
    out = np.full((count, 4, 4), np.nan)
    if not pairs:
        return out
    i, j, cost = zip(*((pair.source, pair.target, 1.01 - pair.fitness) for pair in pairs))
    tree = minimum_spanning_tree(coo_matrix((cost, (i, j)), shape=(count, count)).tocsr())
    tree = tree + tree.T
    labels = connected_components(tree, directed=False)[1]
    root = int(np.argmax(labels == np.bincount(labels).argmax()))
    order, parents = breadth_first_order(tree, root, directed=False)
    by_views = {(pair.source, pair.target): pair.transform for pair in pairs}
    by_views |= {(pair.target, pair.source): np.linalg.inv(pair.transform) for pair in pairs}
    poses = {root: np.eye(4)}
    for view in order[1:]:
        poses[view] = poses[parents[view]] @ by_views[view, parents[view]]
    node_of = {int(view): node for node, view in enumerate(order)}
    graph = reg.PoseGraph()
    for view in order:
        graph.nodes.append(reg.PoseGraphNode(poses[view]))
    for pair in pairs:
        if pair.source in node_of:
            is_loop = tree[pair.source, pair.target] == 0
            graph.edges.append(
                reg.PoseGraphEdge(
                    node_of[pair.source], node_of[pair.target], pair.transform, pair.information, uncertain=is_loop
                )
            )
    reg.global_optimization(
        graph,
        reg.GlobalOptimizationLevenbergMarquardt(),
        reg.GlobalOptimizationConvergenceCriteria(),
        reg.GlobalOptimizationOption(
            # That of the last ICP; twice as much left pairs in that are wrong by some degrees.
            max_correspondence_distance=0.5 * options.inlier * options.voxel,
            edge_prune_threshold=0.25,
            preference_loop_closure=1.0,
            reference_node=0,
        ),
    )
    for view, node in node_of.items():
        out[view] = graph.nodes[node].pose
    return out
