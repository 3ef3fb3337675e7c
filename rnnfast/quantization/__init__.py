"""Files of ONNX whose weights are stored in 8 or 16 bits, with the error that this makes."""
