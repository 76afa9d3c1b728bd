"""Measurements of speed: ratios of things timed side by side in one process. `make bench` runs them all.

Each script writes `results/bench_<question>_<device>.csv` with its stamp. No speed is written for a candidate whose
answer is wrong.
"""
