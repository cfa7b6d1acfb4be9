# SPDX-License-Identifier: Apache-2.0
"""Pairwise and multiway Sim(3) registration of integrated depth maps, from rough poses or from ring hypotheses.

Modules:
    multiway: the coarse-to-fine registration of all views; the entry point with rough poses.
    ring_hypotheses: the entry point without poses.
    integrated_depth: depth maps integrated from normals, and their image pyramid.
    pair_selection: which pairs of views are compared.
    residuals: residuals of pairs of views and their derivatives.
    outliers: detection and re-initialization of outlier views.
"""
