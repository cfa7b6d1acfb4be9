# SPDX-License-Identifier: Apache-2.0
"""Studies: training and evaluation of several methods, scenes and seeds, each in processes of its own.

Modules:
    suite: the file that describes a study.
    job: one method on one scene, and its result.
    processes: commands as subprocesses that are logged, measured, and killed together with their parent.
    engines: parallel jobs on this machine or a Ray cluster.
    running: a list of jobs, of which finished ones are not run again.
    summary: tables of results.
    comparison: the page that compares methods on one scene.
"""
