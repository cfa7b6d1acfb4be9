# SPDX-License-Identifier: Apache-2.0
"""Surface of the registration and its update from the normals of all views.

Modules:
    sdf_grid: `Surface`, a signed distance on a grid with its mesh, depth maps, sampling and redistancing.
    normal_fusion: world normals near the surface, averaged over the views that see them.
    pixel_normals: normals of single pixels at their points on the surface, with weights.
    poisson: signed distance from a normal field, by a Poisson equation in a narrow band.
"""
