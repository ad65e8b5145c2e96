"""The paper's Tables 1 to 3, measured: one command trains, evaluates and writes them.

    python -m benchmarks.paper_tables --data TRAIN --val VAL --out tables --steps 5000
    python -m benchmarks.paper_tables --ixi IXI --out tables --minutes 60 --seeds 0 1 2

Every row is trained under the same budget and settings, is one JSON file with the commands that
made it, and is not run again while that file is there: the tool may be stopped at any time.
"""
