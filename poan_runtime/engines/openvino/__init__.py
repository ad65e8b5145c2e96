"""OpenVINO, for CPUs."""
