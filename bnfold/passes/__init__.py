"""Passes for ``onnx_ir.passes.Sequential``: a frame that is the same for all, and one module for each."""
