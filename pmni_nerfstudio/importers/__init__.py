# SPDX-License-Identifier: Apache-2.0
"""Readers for the files of other programs and data sets, one format per module, for `pmni prepare`."""
