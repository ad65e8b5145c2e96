"""The trained network in operations that ONNX and TensorRT have."""
