"""GPU kernels in Triton, one file per op, each the twin of a function in `reference`.

Triton is imported by the files here alone, so that everything else works without it. They are held against their twins
under Triton's interpreter and compile for sm_80 and sm_90; `ops` computes by the references until a GPU has run them.
"""
