# SPDX-License-Identifier: Apache-2.0
"""Signed distance field of the neural stage.

sdf_field: `PmniField` and its configuration; one interface for all encodings.
levels: levels of detail that unlock coarse to fine, shared by all encodings.
grid: encoding `grid`, the signed distance itself on trilinear grids.
detail_block: a finer grid in the cube that close-ups see, part of encoding `grid`.
blended_blocks: grids over overlapping blocks of a large scene, trained apart.
encodings: encoding `dense`, features on dense grids, and the interface of feature encodings.
hash_encoding: encoding `hash`, features in multi-resolution hash tables, in PyTorch or tinycudann.
mlp: the network that maps encoded positions to signed distances.
trilinear: trilinear interpolation that can be differentiated twice.
warm_start: sample points for fitting a field to a given surface.
variance: the learned sharpness of NeuS' density.
"""
