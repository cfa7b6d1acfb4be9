# SPDX-License-Identifier: Apache-2.0
"""An evaluation as one self-contained page."""
