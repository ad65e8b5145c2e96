"""From a checkpoint to ONNX and engines, with a parity gate (torch, onnx)."""
