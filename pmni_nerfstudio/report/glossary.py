# SPDX-License-Identifier: Apache-2.0
"""Explanations of the terms on a page, shown when the pointer is over them."""

from __future__ import annotations

_GLOSSARY = {
    "Chamfer distance": "Mean of two means: the distance of points of the result to the ground-truth surface, and the "
    "reverse.",
    "accuracy": "Mean distance of points of the result to the ground-truth surface.",
    "completeness": "Mean distance of points of the ground-truth surface to the result.",
    "F-score": "Harmonic mean of two fractions of points: those of the result within the threshold of the ground truth, "
    "and the reverse. 1 is perfect.",
    "rotation error": "Angle between a camera's estimated and true orientation, after the alignment.",
    "position error": "Distance between a camera's estimated and true center, after the alignment.",
    "absolute (ATE)": "Absolute trajectory error: root mean square of the position errors.",
    "relative (RPE)": "Relative pose error: error of the motion from each view to the next, which no alignment changes.",
    "normal error": "Angle between the rendered normals and those compared with, at the pixels that have both.",
    "held-out": "Views that the training did not see.",
    "mask IoU": "Intersection over union of the rendered silhouette and the mask. 1 is perfect.",
    "components": "Connected parts of the mesh.",
    "watertight": "Whether the mesh is closed: every edge has two faces.",
    "self-intersections": "Faces that cut another face.",
    "mean curvature": "Mean of the absolute mean curvature over the surface; noise makes it larger.",
    "alignment": "Transformation to the world of the ground truth before errors are measured.",
    "residual": "Mean angle between the view's normals and those of the registered surface, in degrees.",
    "turn": "Angle between the view's given and refined orientation, in degrees. Without given poses there is none.",
    "lengths in": "Units of lengths, areas and volumes. Object units: without poses or ground truth the data have no scale.",
    "inv_s": "Sharpness of the rendered surface: the inverse width of the band about it that is opaque, per radius of the "
    "scene. The larger, the thinner.",
    "inv s": "Sharpness of the rendered surface (inv_s): the inverse width of the band about it that is opaque, per radius "
    "of the scene.",
    "eikonal": "Keeps the gradient of the signed distance at length 1.",
    "Encoding": "Representation of the signed distance on grids of several resolutions.",
    "Gradients": "How normals are computed from the signed distance in training.",
    "Rays per step": "Pixels that a training step renders.",
    "Pose optimizer": "Whether the training refines the poses: SE3, or off.",
    "Initial surface": "Surface that the training starts from.",
    "weighted loss": "Contribution of a term to the sum that the training minimizes.",
}


def explanation(label: str) -> str:
    """Explanation of the first term that a label contains; empty if there is none."""
    lower = label.lower()
    return next((text for term, text in _GLOSSARY.items() if term.lower() in lower), "")
