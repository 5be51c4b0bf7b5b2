"""One small network of every family with batch norms, written as ONNX by every way that torch has.

    python benchmarks/architecture_networks.py FAMILY FOLDER EXPORTER...

writes FOLDER/EXPORTER.onnx for each exporter, or FOLDER/EXPORTER.failed with the reason; without arguments
it names all families. Needs torch, torchvision, timm and onnxscript. Nothing is trained and everything is
always the same: what initialization made constant (γ, β, biases, the scales of layers) is drawn, with a few γ
that are negative or near zero, and the running statistics are those of random inputs, a little off.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Network = tuple[nn.Module, tuple[Tensor, ...]]


def image(name: str, size: int, batch: int = 1, **options: Any) -> Callable[[], Network]:
    """A network of timm on images."""

    def build() -> Network:
        import timm

        return timm.create_model(name, **options), (torch.rand(batch, 3, size, size),)

    return build


def vision(name: str, *shape: int, inputs: int = 1, **options: Any) -> Callable[[], Network]:
    """A network of torchvision on inputs of this shape."""

    def build() -> Network:
        import torchvision

        options.setdefault("weights", None)
        if "fcn" in name or "deeplab" in name or "lraspp" in name or "rcnn" in name or "ssd" in name:
            options.setdefault("weights_backbone", None)
        return torchvision.models.get_model(name, **options), tuple(torch.rand(shape) for _ in range(inputs))

    return build


class Columns(nn.Module):
    """CRNN (Shi et al. 2015): convolutions, then an LSTM over the columns with a batch norm in front."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_conv(nn.Conv2d(1, 16, 3, padding=1), 16),
            nn.MaxPool2d(2),
            *_conv(nn.Conv2d(16, 32, 3, padding=1), 32),
            nn.MaxPool2d((8, 1)),
        )
        self.norm = nn.BatchNorm1d(32)
        self.lstm = nn.LSTM(32, 24, bidirectional=True)
        self.out = nn.Linear(48, 37)

    def forward(self, x: Tensor) -> Tensor:
        """From inputs to outputs."""
        y = self.norm(self.layers(x).squeeze(2)).permute(2, 0, 1)
        out: Tensor = self.out(self.lstm(y)[0])
        return out


class Wave(nn.Module):
    """WaveNet (van den Oord et al. 2016) with batch norms: dilated gates, residuals and skips."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(8, 16, 1)
        self.gates = nn.ModuleList(nn.Conv1d(16, 32, 2, dilation=2**i) for i in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm1d(32) for _ in range(4))
        self.residual = nn.ModuleList(nn.Conv1d(16, 16, 1) for _ in range(4))
        self.skip = nn.ModuleList(nn.Conv1d(16, 24, 1) for _ in range(4))
        self.out = nn.Sequential(
            nn.ReLU(), nn.BatchNorm1d(24), nn.Conv1d(24, 24, 1), nn.ReLU(), nn.Conv1d(24, 8, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """From inputs to outputs."""
        y, total = self.first(x), torch.zeros(())
        for level, (gate, norm, residual, skip) in enumerate(
            zip(self.gates, self.norms, self.residual, self.skip, strict=True)
        ):
            a, b = norm(gate(nn.functional.pad(y, (2**level, 0)))).chunk(2, dim=1)
            z = torch.tanh(a) * torch.sigmoid(b)
            y, total = y + residual(z), total + skip(z)
        result: Tensor = self.out(total)
        return result


class Block(nn.Sequential):
    """Two convolutions of a U-Net."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            *_conv(nn.Conv2d(inputs, outputs, 3, padding=1), outputs),
            *_conv(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), outputs),
        )


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) with batch norms; up once by ConvTranspose, once by resizing."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList((Block(3, 8), Block(8, 16), Block(16, 32)))
        self.deep = nn.Sequential(nn.ConvTranspose2d(32, 16, 2, stride=2), nn.BatchNorm2d(16))
        self.flat = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.BatchNorm2d(16))
        self.up = nn.ModuleList((Block(32, 16), Block(24, 8)))
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """From inputs to outputs."""
        a = self.down[0](x)
        b = self.down[1](nn.functional.max_pool2d(a, 2))
        c = self.down[2](nn.functional.max_pool2d(b, 2))
        y = self.up[0](torch.cat((self.deep(c), b), 1))
        out: Tensor = self.out(self.up[1](torch.cat((self.flat(y), a), 1)))
        return out


class Points(nn.Module):
    """PointNet++ (Qi et al. 2017): neighbourhoods gathered, shared layers, the largest of each kept."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            (
                nn.Sequential(*_conv(nn.Conv2d(3, 16, 1), 16), *_conv(nn.Conv2d(16, 32, 1), 32)),
                nn.Sequential(*_conv(nn.Conv2d(35, 32, 1), 32), *_conv(nn.Conv2d(32, 64, 1), 64)),
            )
        )
        self.head = nn.Sequential(
            nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10)
        )

    def forward(self, points: Tensor) -> Tensor:
        """From inputs to outputs."""
        features = None
        for level, count in zip(self.levels, (32, 8), strict=True):
            centres = points[:, :count]
            distance = (centres[:, :, None] - points[:, None]).square().sum(-1)
            near = distance.topk(8, largest=False).indices.flatten(1)[..., None]
            group = points.gather(1, near.expand(-1, -1, 3)).unflatten(1, (count, 8)) - centres[:, :, None]
            if features is not None:
                width = features.shape[2]
                more = features.gather(1, near.expand(-1, -1, width)).unflatten(1, (count, 8))
                group = torch.cat((group, more), -1)
            features = level(group.permute(0, 3, 2, 1)).amax(2).transpose(1, 2)
            points = centres
        assert features is not None
        out: Tensor = self.head(features.amax(1))
        return out


def _conv(layer: nn.Module, channels: int) -> tuple[nn.Module, ...]:
    norm = nn.BatchNorm1d if isinstance(layer, nn.Conv1d) else nn.BatchNorm2d
    return layer, norm(channels), nn.ReLU()


def perceptron() -> Network:
    """Dense layers, with batch norms behind the activations and in front of everything."""
    layers: list[nn.Module] = [nn.BatchNorm1d(20)]
    for width in (64, 64, 32):
        layers += [nn.LazyLinear(width), nn.ReLU(), nn.BatchNorm1d(width)]
    network = nn.Sequential(*layers, nn.LazyLinear(5))
    network(torch.rand(4, 20))
    return network, (torch.rand(4, 20),)


NETWORKS: dict[str, Callable[[], Network]] = {
    "MLP": perceptron,
    "CRNN": lambda: (Columns(), (torch.rand(1, 1, 16, 40),)),
    "WaveNet": lambda: (Wave(), (torch.rand(1, 8, 64),)),
    "U-Net": lambda: (UNet(), (torch.rand(1, 3, 32, 32),)),
    "PointNet++": lambda: (Points(), (torch.rand(2, 64, 3),)),
    "LeViT": image("levit_128s", 224),
    "LeViT (conv)": image("levit_conv_128s", 224),
    "EfficientFormer": image("efficientformer_l1", 224),
    "EfficientFormerV2": image("efficientformerv2_s0", 224),
    "EfficientViT (MIT)": image("efficientvit_b0", 64),
    "EfficientViT (MSRA)": image("efficientvit_m0", 224),
    "RepViT": image("repvit_m0_9", 64),
    "MobileOne": image("mobileone_s0", 64),
    "FastViT": image("fastvit_t8", 64),
    "RepGhostNet": image("repghostnet_050", 64),
    "GhostNet": image("ghostnet_050", 64),
    "GhostNetV3": image("ghostnetv3_050", 64),
    "MobileNetV2": image("mobilenetv2_035", 64),
    "MobileNetV3": image("mobilenetv3_small_050", 64),
    "MobileNetV4": image("mobilenetv4_conv_small_035", 64),
    "EfficientNet": image("efficientnet_b0", 64),
    "MixNet": image("mixnet_s", 64),
    "LCNetV2": image("lcnetv2_small", 64),
    "ReXNet": image("rexnet_100", 64),
    "RegNetY": image("regnety_002", 64),
    "RegNetZ": image("regnetz_005", 64),
    "ResNet": image("resnet14t", 64),
    "SE-ResNet": image("legacy_seresnet18", 64),
    "ResNetV2": image("resnetv2_18", 64),
    "ResNeSt": image("resnest14d", 64),
    "Res2Net": image("res2net50_48w_2s", 64),
    "SK-ResNet": image("skresnet18", 64),
    "GC-ResNet": image("gcresnext26ts", 64),
    "BAT-ResNet": image("bat_resnext26ts", 256),
    "RepVGG": image("repvgg_a0", 64),
    "DenseNet": image("densenet121", 64),
    "DPN": image("dpn48b", 64),
    "DLA": image("dla46x_c", 64),
    "Inception v3": image("inception_v3", 96),
    "InceptionNeXt": image("inception_next_atto", 64),
    "Xception": image("legacy_xception", 96),
    "Xception (pre-activation)": image("xception41p", 64),
    "VoVNet": image("ese_vovnet19b_slim_dw", 64),
    "CSPDarknet": image("cs3darknet_focus_s", 64),
    "CSPNeXt": image("cspnext_tiny", 64),
    "MobileViT": image("mobilevit_xxs", 64),
    "MobileViTv2": image("mobilevitv2_050", 64),
    "EdgeNeXt": image("edgenext_small", 64),
    "TinyViT": image("tiny_vit_5m_224", 224),
    "XCiT": image("xcit_nano_12_p16_224", 224),
    "Visformer": image("visformer_tiny", 224),
    "SHViT": image("shvit_s1", 64),
    "StarNet": image("starnet_s050", 64),
    "SwiftFormer": image("swiftformer_xs", 224),
    "FasterNet": image("fasternet_t0", 64),
    "HGNet": image("hgnetv2_b0", 64),
    "iFormer": image("iformer_s", 224),
    "LowFormer": image("lowformer_b0", 224),
    "CPUBone": image("cpubone_nano", 224),
    "EfficientViM": image("efficientvim_m1", 224),
    "ResMLP (affine)": image("resmlp_12_224", 224),
    "ConvNeXt (layer scale)": image("convnext_atto_ols", 64),
    "ShuffleNetV2": vision("shufflenet_v2_x0_5", 1, 3, 64, 64),
    "GoogLeNet": vision("googlenet", 1, 3, 64, 64, init_weights=False, aux_logits=False),
    "FCN": vision("fcn_resnet50", 1, 3, 64, 64),
    "DeepLabV3": vision("deeplabv3_mobilenet_v3_large", 1, 3, 64, 64),
    "LR-ASPP": vision("lraspp_mobilenet_v3_large", 1, 3, 64, 64),
    "R3D": vision("r3d_18", 1, 3, 4, 32, 32),
    "R(2+1)D": vision("r2plus1d_18", 1, 3, 4, 32, 32),
    "S3D": vision("s3d", 1, 3, 16, 224, 224),
    "EfficientNet (cond. conv)": image("efficientnet_cc_b0_4e", 64),
    "ECA-ResNet": image("ecaresnet26t", 64),
    "GERNet": image("gernet_s", 64),
    "LCNet": image("lcnet_035", 64),
    "RegNetX": image("regnetx_002", 64),
    "SelecSLS": image("selecsls42", 64),
    "Darknet": image("darknet17", 64),
    "CSPNet": image("cspresnet50", 64),
    "MnasNet (torchvision)": vision("mnasnet0_5", 1, 3, 64, 64),
    "MnasNet": image("mnasnet_small", 64),
    "ConvMixer": image("convmixer_768_32", 64),
    "GhostNetV2": image("ghostnetv2_100", 64),
    "TinyNet": image("tinynet_e", 64),
    "HardCoRe-NAS": image("hardcorenas_a", 64),
    "ResNet (anti-aliased)": image("resnetaa34d", 64),
    "Xception (aligned)": image("xception41", 64),
    "Inception v4": image("inception_v4", 96),
    "HRNet": image("hrnet_w18_small", 64),
    "NextViT": image("nextvit_small", 64),
    "MobileNetV4 (hybrid)": image("mobilenetv4_hybrid_medium", 64),
    "EfficientNetV2": image("efficientnetv2_rw_t", 64),
    "SSDlite": vision("ssdlite320_mobilenet_v3_large", 1, 3, 320, 320),
    "RAFT": vision("raft_small", 1, 3, 128, 128, inputs=2),
    "Faster R-CNN": vision("fasterrcnn_mobilenet_v3_large_320_fpn", 1, 3, 320, 320),
    "VGG": image("vgg11_bn", 64),
    "TResNet": image("tresnet_m", 64),
    "Inception-ResNet v2": image("inception_resnet_v2", 96),
    "ViT on ResNet": image("vit_base_resnet26d_224", 224),
    "VOLO": image("volo_d1_224", 224),
    "CoAtNet (BN)": image("coatnet_bn_0_rw_224", 224),
    "CoAtNet": image("coatnet_pico_rw_224", 224),
    "MaxViT": image("maxvit_pico_rw_256", 256),
    "CLIP ResNet": image("resnet50_clip", 224),
    "LambdaNet": image("lambda_resnet26t", 256),
    "HaloNet": image("halonet26t", 256),
    "BotNet": image("botnet26t_256", 256),
    "PNASNet": image("pnasnet5large", 96),
    "NASNet": image("nasnetalarge", 96),
}


def drawn(network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Draw what initialization made constant, and give batch norms statistics; leaves inference mode."""
    for parameter in network.parameters():
        if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            zero = parameter.flatten()[0] == 0
            parameter.copy_(0.2 * torch.randn_like(parameter) if zero else torch.rand_like(parameter) + 0.5)
    norms = [each for each in network.eval().modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        if norm.weight is not None:
            luck = torch.rand_like(norm.weight)
            norm.weight[luck < 0.04] *= -1
            norm.weight[luck > 0.98] *= 1e-3
        norm.momentum = None
        norm.train()
    network(*(torch.cat([torch.rand_like(each) for _ in range(4)]) for each in inputs))
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean += 0.1 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
        norm.running_var *= 0.8 + 0.4 * torch.rand_like(norm.running_var)
        norm.eval()


def exports(network: nn.Module, inputs: tuple[Tensor, ...], folder: Path, names: list[str]) -> None:
    """Every named exporter's file, or why there is none."""
    mode = torch.onnx.TrainingMode

    def script(path: Path, **options: Any) -> None:
        torch.onnx.export(network, inputs, path, dynamo=False, opset_version=17, **options)

    @cache
    def program() -> torch.onnx.ONNXProgram:
        made = torch.onnx.export(network, inputs, dynamo=True, optimize=False, verbose=False)
        assert made is not None
        return made

    def optimized(path: Path) -> None:
        program().optimize()
        program().save(path)

    ways: dict[str, Callable[[Path], None]] = {
        "torchscript": lambda path: script(path, training=mode.PRESERVE, do_constant_folding=False),
        "torchscript-eval": script,
        "dynamo-raw": lambda path: program().save(path),
        "dynamo": optimized,
    }
    for name in ways:
        if name not in names:
            continue
        try:
            ways[name](folder / f"{name}.onnx")
        except Exception as error:  # one exporter's failure is a line of the table, not the end of it
            cause = error.__cause__ or error
            lines = f"{type(cause).__name__}: {cause}".strip().splitlines()
            (folder / f"{name}.onnx").unlink(missing_ok=True)
            (folder / f"{name}.failed").write_text(lines[0])


def main() -> None:
    """Write one family's network, or name every family."""
    if len(sys.argv) == 1:
        versions = {name: version(name) for name in ("torch", "torchvision", "timm", "onnxscript")}
        print(json.dumps({"versions": versions, "families": list(NETWORKS)}))
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network, inputs = NETWORKS[sys.argv[1]]()
    with torch.no_grad():
        drawn(network, inputs)
        exports(network, inputs, Path(sys.argv[2]), sys.argv[3:])


if __name__ == "__main__":
    main()
