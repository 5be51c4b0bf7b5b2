"""bnfold as a pass of Olive, to be copied beside a workflow: see docs/pipelines.md."""

from __future__ import annotations

from typing import Any

from olive.hardware import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.passes import Pass
from olive.passes.onnx.common import get_external_data_config, model_proto_to_olive_model
from olive.passes.pass_config import BasePassConfig, PassConfigParam

import bnfold


class BnfoldFold(Pass):  # type: ignore[misc]
    """Fold every inference-mode batch norm into the weights around it."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return {
            "portable": PassConfigParam(
                type_=bool, default_value=False, description="Keep to rewrites that help on every runtime."
            ),
            "verify": PassConfigParam(
                type_=bool, default_value=True, description="Prove that the outputs are unchanged."
            ),
            **get_external_data_config(),
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        asked: Any = config
        result = bnfold.fold(model.load_model(), portable=asked.portable, verify=asked.verify)
        return model_proto_to_olive_model(result.model, resolve_onnx_path(output_model_path), asked)
