# SPDX-License-Identifier: Apache-2.0
"""Scenes made from what other programs and data sets have on disk: `pmni prepare`."""
