"""`python -m benchmarks.whole_scan`: poan-run against what a user would pick instead."""
