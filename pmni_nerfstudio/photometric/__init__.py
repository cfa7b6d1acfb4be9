# SPDX-License-Identifier: Apache-2.0
"""Photometric stereo: normals, albedo and confidence of each view from images under known lights.

Modules:
    pipeline: from a capture to a scene folder.
    capture: views with their images, lights, masks and cameras.
    folders, description: captures in folders of images and text files, or described by a JSON file.
    lights: distant and near lights.
    photographs: image values on the mask, and which of them are clipped.
    solver: robust Lambertian photometric stereo of many pixels at once.
    view_maps: normals, albedo and confidence of a view, with distant or near lights.
    checks: whether values are linear, and lights and images belong together.
    writer: the files.
"""
