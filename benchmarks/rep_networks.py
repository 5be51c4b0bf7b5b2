"""Networks of branches, as they are trained and as their authors deploy them, written as ONNX.

    python benchmarks/rep_networks.py NAME FOLDER

writes FOLDER/training.onnx and FOLDER/deployed.onnx, with torch's exporter told to leave both as they are.
Needs torch and timm (``pip install --no-deps timm huggingface_hub safetensors pyyaml`` beside torch). The
parameters are random and always the same: the running statistics are those of random images, γ and β
differ between channels, so that a batch norm that is forgotten, or taken for another one, shows. The
deployed form is timm's: the code of the authors' papers.
"""

from __future__ import annotations

import copy
import importlib.abc
import importlib.machinery
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

NETWORKS = {
    "mobileone_s0": "MobileOne-S0 (Vasu et al. 2022)",
    "fastvit_t8": "FastViT-T8 (Vasu et al. 2023)",
    "repvgg_a0": "RepVGG-A0 (Ding et al. 2021)",
    "repghostnet_100": "RepGhostNet-1.0 (Chen et al. 2022)",
}

SIZE = 224


class _StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """torchvision, of which timm's image loading wants some names and a network wants nothing."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        ours = name.split(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(name, self) if ours else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Names(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing to execute."""


class _Anything(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Names(types.ModuleType):
    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything(name, (), {})


def build(name: str) -> tuple[Any, Any]:
    """The network as trained and as deployed, in inference mode."""
    if find_spec("torchvision") is None:
        sys.meta_path.insert(0, _StandIn())
    import timm
    import torch
    from timm.utils.model import reparameterize_model

    torch.manual_seed(0)
    network = timm.create_model(name)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    network.train()
    with torch.no_grad():
        for _ in range(2):
            network(torch.rand(4, 3, SIZE, SIZE))
        for norm in norms:
            norm.weight.mul_(torch.rand_like(norm.weight) + 0.5)
            norm.bias.add_(0.2 * torch.randn_like(norm.bias))
    network.eval()
    return network, reparameterize_model(copy.deepcopy(network)).eval()


def main() -> None:
    """Write both forms."""
    import torch

    name, folder = sys.argv[1], Path(sys.argv[2])
    for form, network in zip(("training", "deployed"), build(name), strict=True):
        images = torch.rand(1, 3, SIZE, SIZE)
        torch.onnx.export(
            network,
            (images,),
            folder / f"{form}.onnx",
            input_names=["image"],
            output_names=["logits"],
            opset_version=17,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )


if __name__ == "__main__":
    main()
