"""`poan-bench`: latency as trtexec presents it, cold starts and whole scans, side by side."""
