"""Whole cohorts: BIDS datasets in, BIDS derivatives out, on one machine or on many."""
