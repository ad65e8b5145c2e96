"""Plans from ONNX files, on the machine that they are for, or ahead of time; no torch."""
