# SPDX-License-Identifier: Apache-2.0
"""Writers of results, in the data world and its units: cameras, rendered maps, registration results, textures."""
