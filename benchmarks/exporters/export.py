"""Write every network of the matrix from every exporter into a folder, one file each.

What is there is not made again. Two environments are needed, since Keras picks its backend once:

    pip install -r benchmarks/exporters/requirements-torch.txt
    KERAS_BACKEND=torch python benchmarks/exporters/export.py CACHE
    pip install -r benchmarks/exporters/requirements-tensorflow.txt
    KERAS_BACKEND=tensorflow python benchmarks/exporters/export.py CACHE

``--small`` writes the small networks instead, which ``models/exporters`` holds for the ordinary tests.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import onnx

Write = Callable[[Path], None]


def main() -> None:
    """Export what this environment can, and say what failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true", help="the small networks")
    parser.add_argument("--only", default="", help="only files whose name contains this")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    for name, write in jobs(asked.small):
        path = asked.folder / f"{name.removeprefix('small-')}.onnx"
        if path.exists() or asked.only not in name:
            continue
        start = time.perf_counter()
        try:
            _export(write, path)
        except Exception as error:  # one exporter's failure is a line of the table, not the end of it
            path.with_suffix(".failed").write_text(f"{type(error).__name__}: {str(error).splitlines()[0]}\n")
            traceback.print_exc()
            continue
        print(f"{path.name}: {path.stat().st_size} bytes in {time.perf_counter() - start:.1f} s", flush=True)


def jobs(small: bool) -> Iterator[tuple[str, Write]]:
    """Every file that this environment makes: network, exporter, and how to write it."""
    if os.environ.get("KERAS_BACKEND") == "tensorflow":
        yield from _from_tensorflow(small)
    else:
        yield from _from_torch(small)


def _export(write: Write, path: Path) -> None:
    """One file with its weights inside, whatever the exporter leaves beside it."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / "model.onnx"
        write(made)
        model = onnx.load(made)
        strip(model)
        onnx.save(model, made)
        made.replace(path)


def strip(model: onnx.ModelProto) -> None:
    """Drop what exporters note of the source code, which tells folders on the exporting machine."""
    del model.metadata_props[:]
    for item in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del item.metadata_props[:]
        item.ClearField("doc_string")


# ---------------------------------------------------------------- TensorFlow


def _from_tensorflow(small: bool) -> Iterator[tuple[str, Write]]:
    import keras_networks

    for name in keras_networks.SMALL if small else keras_networks.NETWORKS:
        network = _once(lambda name=name: keras_networks.network(name))
        yield f"{name}.keras-tf", partial(_keras, network)
        yield f"{name}.tf2onnx", partial(_tf2onnx, network, None)
        yield f"{name}.tf2onnx-raw", partial(_tf2onnx, network, {})


def _tf2onnx(network: Callable[[], Any], optimizers: dict[str, Any] | None, path: Path) -> None:
    """None means all of tf2onnx's optimizers."""
    import tf2onnx

    tf2onnx.convert.from_keras(network(), opset=17, optimizers=optimizers, output_path=str(path))


# ---------------------------------------------------------------- Keras


def _keras(network: Callable[[], Any], path: Path) -> None:
    """As anyone would: the batch stays dynamic, for which Keras takes the TorchScript exporter on torch."""
    network().export(path, format="onnx", verbose=False)


def _keras_static(network: Callable[[], Any], path: Path) -> None:
    """A given batch, for which Keras takes torch's dynamo exporter."""
    import keras

    model = network()
    size = [32 if each is None else each for each in model.input_shape[1:]]
    signature = [keras.InputSpec(shape=(1, *size), dtype="float32", name="image")]
    model.export(path, format="onnx", verbose=False, input_signature=signature)


# ---------------------------------------------------------------- torch


def _from_torch(small: bool) -> Iterator[tuple[str, Write]]:
    import keras_networks
    import torch_networks

    for name in keras_networks.SMALL if small else keras_networks.NETWORKS:
        network = _once(lambda name=name: keras_networks.network(name))
        yield f"{name}.keras-torch", partial(_keras, network)
        yield f"{name}.keras-torch-static", partial(_keras_static, network)
        if not small:
            yield from _torch_exporters(name, lambda network=network: _as_torch(network()))
    for name in torch_networks.SMALL if small else torch_networks.NETWORKS:
        yield from _torch_exporters(name, _once(lambda name=name: torch_networks.network(name)))


def _as_torch(model: Any) -> tuple[Any, Any]:
    """A Keras model is a torch module on that backend."""
    import torch

    return model.eval(), torch.rand(1, *model.input_shape[1:])


def _torch_exporters(name: str, network: Callable[[], tuple[Any, Any]]) -> Iterator[tuple[str, Write]]:
    yield f"{name}.dynamo", partial(_dynamo, network, True)
    yield f"{name}.dynamo-raw", partial(_dynamo, network, False)
    yield f"{name}.torchscript", partial(_torchscript, network)


def _dynamo(network: Callable[[], tuple[Any, Any]], optimize: bool, path: Path) -> None:
    import torch

    model, example = network()
    batch = torch.export.Dim("batch", min=2)
    shapes = ({0: batch},)
    if "keras" in type(model).__module__:
        shapes = None  # Keras layers compute with their sizes in Python, which binds them
    example = example if shapes is None else torch.cat([example, example])
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        optimize=optimize,
        dynamic_shapes=shapes,
        input_names=["image"],
        verbose=False,
    )
    program.save(str(path), external_data=False)


def _torchscript(network: Callable[[], tuple[Any, Any]], path: Path) -> None:
    """Training is preserved: otherwise the exporter itself folds a batch norm behind a convolution."""
    import torch

    model, example = network()
    torch.onnx.export(
        model,
        (example,),
        str(path),
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        input_names=["image"],
        dynamic_axes={"image": {0: "batch"}},
    )


def _once(make: Callable[[], Any]) -> Callable[[], Any]:
    """Make a network when the first exporter asks for it, and keep it for the others."""
    made: list[Any] = []

    def get() -> Any:
        if not made:
            made.append(make())
        return made[0]

    return get


if __name__ == "__main__":
    main()
