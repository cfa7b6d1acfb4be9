# SPDX-License-Identifier: Apache-2.0
"""Writers of results: cameras, rendered maps, registration results and textures in the data world, and glTF assets."""
