# SPDX-License-Identifier: Apache-2.0
"""Registration: camera poses and a first surface from normal maps and masks, before any training.

The steps, top down:
    pipeline: the whole algorithm.
    starts: rough poses, ring hypotheses and arrangements of unordered views, tried one after another.
    pairwise: pairwise and multiway Sim(3) registration of integrated depth maps.
    alternation: pose steps (bundle_adjustment) and surface steps (surface) in turn, coarse to fine.
    reflectance: estimate of the reflectance bias that the normals of all views share.
    intrinsics: correction of the intrinsics that all views share, where they are observable.
    confidence: agreement of each view with the surface; finds outlier views.
    relocalization: new poses for outlier views, searched against the surface of the others.
    symmetry: rotations of the surface onto itself, which make poses ambiguous.
    given_poses: which given poses are wrong, and by which common mistake.
    verdict: whether the result can be trusted, and the status of every view.
    close_up_registration: captures with close-ups, which follow the other views.
    close_up_poses: their poses, against the surface of the other views and on their own detail.
    close_up_detail: the surface they see, on a finer grid.
    framing: cameras centered on the object; the result moved to the world of the rough poses.

What they share:
    views, poses: observations and world-to-camera poses of all views.
    levenberg_marquardt: least squares on manifolds.
    monitoring: progress and snapshots of a running registration.
    console: progress and summary on a terminal.
    statistics: contents of registration.json.
    cache: finished registrations on disk.
    partial: coarse results on disk, from which an interrupted registration goes on.

The plane-sweep stereo in stereo/ finds a first surface where poses are known and the visual hull is poor.
"""
