"""The small typed graph builder that exporters write ONNX with."""
