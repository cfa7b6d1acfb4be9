# SPDX-License-Identifier: Apache-2.0
"""Normal integration: depth maps from normal maps."""
