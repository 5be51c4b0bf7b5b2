"""The networks of the export matrix that are written in Keras, for whichever backend it runs on.

Weights are those of initialization, since a fold does not depend on what they are for; the parameters of
every batch norm are drawn as training leaves them, and its statistics are what random images give.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
from keras import layers

Block = Callable[[keras.KerasTensor, int], keras.KerasTensor]

_PASSES = 4
_BATCH = 8


def network(name: str, seed: int = 0) -> keras.Model:
    """Build a network, full size or small, with drawn parameters and realistic statistics."""
    keras.utils.set_random_seed(seed)
    model: keras.Model = {**NETWORKS, **SMALL}[name]()
    _settle(model, seed)
    return model


def _settle(model: keras.Model, seed: int) -> None:
    """Draw what training would have learned, and let training-mode passes estimate the statistics."""
    random = np.random.default_rng(seed)
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        if norm.gamma is not None:
            norm.gamma.assign(random.uniform(0.5, 1.5, norm.gamma.shape))
        norm.beta.assign(random.normal(0.0, 0.3, norm.beta.shape))
        norm.momentum = 0.5
    shape = [size or 32 for size in model.input_shape[1:]]
    for _ in range(_PASSES):
        model(random.uniform(0.0, 255.0, (_BATCH, *shape)).astype(np.float32), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _mlp(size: int, width: int, block: Block) -> keras.Model:
    image = keras.Input((size, size, 1), name="image")
    y = layers.Flatten()(image)
    for _ in range(2):
        y = block(y, width)
    return keras.Model(image, layers.Dense(10, activation="softmax")(y))


def _before_dense(y: keras.KerasTensor, width: int) -> keras.KerasTensor:
    return layers.Dense(width, activation="relu")(layers.BatchNormalization()(y))


def _without_bias(y: keras.KerasTensor, width: int) -> keras.KerasTensor:
    y = layers.BatchNormalization()(layers.Dense(width, use_bias=False)(y))
    return layers.Activation("relu")(y)


def _elu(y: keras.KerasTensor, width: int) -> keras.KerasTensor:
    return layers.BatchNormalization()(layers.Dense(width, activation="elu")(y))


def _cnn(size: int, width: int) -> keras.Model:
    image = keras.Input((size, size, 3), name="image")
    y = layers.Rescaling(1 / 127.5, offset=-1.0)(image)
    y = layers.Conv2D(width, 3, use_bias=False)(y)
    y = layers.Activation("relu")(layers.BatchNormalization()(y))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(y)
    y = layers.ReLU(max_value=6.0)(layers.BatchNormalization()(y))
    y = layers.MaxPooling2D()(y)
    y = layers.Conv2D(2 * width, 3, padding="same", activation="relu")(y)
    y = layers.BatchNormalization()(y)
    y = layers.GlobalAveragePooling2D()(y)
    return keras.Model(image, layers.Dense(10, activation="softmax")(y))


def _preactivation(size: int, width: int) -> keras.Model:
    """A residual block and a dense one, whose batch norms stand in front of what they normalize for."""
    image = keras.Input((size, size, 3), name="image")
    y = layers.Conv2D(width, 3, use_bias=False)(image)
    for join in (layers.Add, layers.Concatenate):
        inner = layers.ReLU()(layers.BatchNormalization()(y))
        inner = layers.Conv2D(width, 1, use_bias=False)(inner)
        inner = layers.ReLU()(layers.BatchNormalization()(inner))
        y = join()([y, layers.Conv2D(width, 3, padding="same", use_bias=False)(inner)])
    y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.GlobalAveragePooling2D()(y)
    return keras.Model(image, layers.Dense(10)(y))


def _fully_convolutional(width: int) -> keras.Model:
    """Any image size: what only a graph of dynamic height and width shows."""
    image = keras.Input((None, None, 3), name="image")
    y = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(image)
    y = layers.Activation("relu")(layers.BatchNormalization()(y))
    y = layers.UpSampling2D()(layers.BatchNormalization()(y))
    return keras.Model(image, layers.Conv2D(1, 1)(y))


def _application(name: str, size: int = 224) -> Callable[[], keras.Model]:
    return lambda: getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3))


NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "mlp-before": lambda: _mlp(28, 256, _before_dense),
    "mlp-nobias": lambda: _mlp(28, 256, _without_bias),
    "mlp-elu": lambda: _mlp(28, 256, _elu),
    "cnn": lambda: _cnn(32, 32),
    "preactivation": lambda: _preactivation(32, 32),
    "mobilenetv2": _application("MobileNetV2"),
    "resnet50": _application("ResNet50"),
    "resnet50v2": _application("ResNet50V2"),
    "densenet121": _application("DenseNet121"),
    "efficientnetb0": _application("EfficientNetB0"),
    "inceptionv3": _application("InceptionV3", 299),
}

# The same forms at a few kB each.
SMALL: dict[str, Callable[[], keras.Model]] = {
    "small-mlp-before": lambda: _mlp(4, 6, _before_dense),
    "small-mlp-nobias": lambda: _mlp(4, 6, _without_bias),
    "small-mlp-elu": lambda: _mlp(4, 6, _elu),
    "small-cnn": lambda: _cnn(10, 4),
    "small-preactivation": lambda: _preactivation(8, 4),
    "small-anysize": lambda: _fully_convolutional(4),
}
