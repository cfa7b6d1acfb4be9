# SPDX-License-Identifier: Apache-2.0
"""Studies: training and evaluation of several methods, scenes and seeds, each in processes of its own."""
