"""Export of networks of rnnfast.nn to ONNX files."""
