# SPDX-License-Identifier: Apache-2.0
"""Subcommands of `pmni`: the module NAME defines the class NameCommand, whose fields are the command's options."""
