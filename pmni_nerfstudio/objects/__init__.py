# SPDX-License-Identifier: Apache-2.0
"""Several objects in one capture: which labels and which part of the common surface belong to which object.

Modules:
    common_poses: poses and the common surface, from everything rigid together.
    find: the objects, from label images and the common surface.
    visible_labels: labels that views show at points of the surface.
    matching: which labels of different views are the same object.
    partition: the part of the common surface that belongs to each object.
    object_views: views of one object, and where others may hide it.
    object_scenes: scene folders of single objects.
    contacts: solids that overlap, and their separation.
    results: meshes that do not overlap, and one file of the whole scene.
    scores, table: errors by object, and their table.
"""
