"""What is to be known of a machine with an NVIDIA GPU, rung by rung: benchmarks/gpu_check.sh."""
