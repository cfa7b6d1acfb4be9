# SPDX-License-Identifier: Apache-2.0
"""Sequences: reconstruction of an object at several moments."""
