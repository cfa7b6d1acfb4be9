# SPDX-License-Identifier: Apache-2.0
"""Large scenes: overlapping blocks of the surface, each trained by a process of its own.

Modules:
    partition: cuts the box of a surface into blocks.
    block_views: pixels of the views that show a block.
    block_scenes: scene folders of single blocks.
    running: trains the blocks in processes, on this machine or a Ray cluster, and blends their fields.
    block: what such a process does.
"""
