# SPDX-License-Identifier: Apache-2.0
"""Multi-view stereo from normal maps with known poses: plane sweep, semi-global matching, depth fusion."""
