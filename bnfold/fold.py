"""The Python door: ``fold`` for any form of model, ``FoldPass`` for onnx_ir pipelines."""
from __future__ import annotations
