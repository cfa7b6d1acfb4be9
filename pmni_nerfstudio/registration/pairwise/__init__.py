# SPDX-License-Identifier: Apache-2.0
"""Pairwise and multiway Sim(3) registration of integrated depth maps.

With rough poses or a ring:
    multiway: the coarse-to-fine registration of all views; the entry point with rough poses.
    ring_hypotheses: the entry point for views in order around the object.
    pair_selection: which pairs of views are compared.
    outliers: detection and re-initialization of outlier views.

Without poses or order:
    unordered: the entry point.
    relative_pose: hypotheses of the relative pose of two views, by a search over all rotations.
    view_graph: placement of all views, one after another, from these hypotheses.
    group_moves: moves of groups of views that are right in themselves and wrong as a whole.
    appearance: which of many views look alike.

What they share:
    integrated_depth: depth maps integrated from normals, and their image pyramid.
    residuals: residuals of pairs of views and their derivatives.
"""
