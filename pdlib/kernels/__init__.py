"""GPU kernels in Triton, one file per op, each the twin of a function in `reference`.

Triton is imported by the files here alone, and these by `ops` alone, where it has chosen them: everything else works
without.
"""
