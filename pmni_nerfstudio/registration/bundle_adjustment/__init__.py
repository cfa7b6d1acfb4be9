# SPDX-License-Identifier: Apache-2.0
"""Normal bundle adjustment: all camera poses at once, from the views' normals and silhouettes on a given surface.

Modules:
    problem: the least-squares problem.
    joint: the same poses for several moments, each with a surface of its own.
    intrinsics: poses and shared intrinsics together, and how well the views determine the intrinsics.
    reflectance: poses and the reflectance bias of the normals together.
    shared_unknowns: estimate and covariance of what all views share.
    normal_lookup: interpolation of normal maps.
    silhouettes: mask contours and their residuals.
    pose_steps: pose steps during training.
"""
