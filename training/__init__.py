import serving  # noqa: F401  # what it sets in the environment comes before ONNX Runtime's first import
