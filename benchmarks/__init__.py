"""Measurements of speed: things timed side by side in one process, to be read as ratios. `make bench` runs them all.

Each script writes `results/bench_<question>_<device>.csv` with its stamp. No speed is written for a candidate whose
result is wrong; in `chain` the base case and each library's network are checked, and a wrong one ends the script.
"""
