"""A student as files and back: safetensors and JSON, ONNX, and what it costs."""
