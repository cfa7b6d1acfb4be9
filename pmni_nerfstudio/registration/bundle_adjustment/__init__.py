# SPDX-License-Identifier: Apache-2.0
"""Normal bundle adjustment: all camera poses at once, from the views' normals and silhouettes."""
