# SPDX-License-Identifier: Apache-2.0
"""Normal bundle adjustment: all camera poses at once, from the views' normals and silhouettes on a given surface.

Modules:
    problem: the least-squares problem.
    intrinsics: poses and shared intrinsics together, and how well the views determine the intrinsics.
    normal_lookup: interpolation of normal maps.
    silhouettes: mask contours and their residuals.
    pose_steps: pose steps during training.
"""
