# SPDX-License-Identifier: Apache-2.0
"""Sequences: reconstruction of an object at several moments.

Modules:
    frames: the moments, each a scene folder, and checks that they have the same cameras.
    shared_poses: poses of static cameras, from all frames together.
    plan: frames, settings and shared poses in a file, for the processes that reconstruct blocks of frames.
    running: these processes, on this machine or a Ray cluster.
    block: what such a process does.
    fusion: normals of static cameras, fused over time where the surface stands still.
    continuation: initial signed distances taken from the previous frame.
    training: training of a frame in this process.
    results: sequence.json, cameras, and the animated glTF file.
"""
