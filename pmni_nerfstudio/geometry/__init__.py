# SPDX-License-Identifier: Apache-2.0
"""Geometry that the rest of the package builds on; it knows nothing of scenes, files or training.

Poses and cameras:
    transforms: camera axes, rigid poses and similarities; every change of frame of the package.
    se3: exponential map of SE(3) and the gauge freedom of a set of poses.
    sim3: batches of similarities, Sim(3), as registration optimizes them; rotation grids and angles.
    cameras: pinhole projection, pixel rays.
    projection: differentiable projection and unprojection between world and pixels.
    camera_rings: cameras on a ring around the object, `look_at`.
    pose_noise: random perturbation of poses, for experiments.
    object_sphere: position and size of the object from masks and poses.

Images and volumes:
    normals: angles between normals, normals as colors.
    hole_filling: continuation of normal maps over holes.
    reflectance_bias: error of normals that depends on the viewing angle alone.
    interpolation: bilinear and trilinear lookups.
    hull: visual hull of silhouettes as a signed distance.
    silhouette_consistency: views whose silhouettes do not fit the others.
    silhouette_faults: wrong pieces of single masks.
    silhouette_coherence: agreement of candidate cameras with silhouettes and normal maps.

Surfaces:
    marching_cubes: triangle mesh of a signed distance function, at high resolution.
    sparse_lattice: the lattice cells near the surface, found by octree search.
    marching_cubes_table: triangles of each pattern of inside corners.
    mesh: moving, simplifying and cleaning meshes.
    ray_casting: first hits of rays with a mesh, distances to it.
    visibility: surface points that a view sees.
"""
