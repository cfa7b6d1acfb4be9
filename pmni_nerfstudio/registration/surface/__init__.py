# SPDX-License-Identifier: Apache-2.0
"""The surface of the registration: a signed distance grid, from fused normals by a band-limited Poisson step."""
