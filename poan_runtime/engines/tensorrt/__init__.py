"""TensorRT and TensorRT for RTX, for NVIDIA GPUs."""
