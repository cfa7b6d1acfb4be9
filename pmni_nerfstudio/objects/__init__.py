# SPDX-License-Identifier: Apache-2.0
"""Several objects in one capture: which labels and which part of the common surface belong to which object."""
