# SPDX-License-Identifier: Apache-2.0
"""Readers of other programs' and datasets' files, one format a module, for `pmni prepare`."""
