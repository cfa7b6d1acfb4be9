# SPDX-License-Identifier: Apache-2.0
"""Results on disk, in the data's own world and units: meshes, cameras, rendered maps."""
