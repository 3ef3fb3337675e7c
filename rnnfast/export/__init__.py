"""Networks of rnnfast.nn written as ONNX files."""
