"""Voxels in and out: each format is a source and a sink."""
