# SPDX-License-Identifier: Apache-2.0
"""Multi-view stereo from normal maps with known poses, for concavities that the visual hull does not show.

multi_view_stereo: the whole pipeline, and a test of whether it is needed.
plane_sweep: matching costs of depth hypotheses.
semi_global_matching: depths of least cost along image paths that follow the surface's slant.
depth_fusion: integration of depths and normals, consistency between views, fusion into one surface.
"""
