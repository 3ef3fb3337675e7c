"""ONNX models: files are read and checked, constants folded, and graphs run by plans."""
