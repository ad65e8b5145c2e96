"""From a rewritten network to an ONNX graph, and what it costs."""
