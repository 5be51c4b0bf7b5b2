"""What the installed onnx does not know would be lost, and is refused."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from bnfold.errors import InvalidModelError, UnsupportedModelError

# The fields of each message that hold text; protobuf gives bytes where they are not UTF-8.
_TEXTS = {
    kind: [field for field in message.fields if field.type == FieldDescriptor.TYPE_STRING]
    for kind, message in onnx.ModelProto.DESCRIPTOR.file.message_types_by_name.items()
}


def check_known(messages: Iterable[Message], name: str) -> None:
    """Fields that a newer onnx has would be lost, and text that is none cannot be written again."""
    for message in messages:
        kind = message.DESCRIPTOR.name.removesuffix("Proto").lower()
        if len(UnknownFieldSet(message)):
            raise UnsupportedModelError(
                f"{name} has a {kind} with fields that the installed onnx does not know; update onnx."
            )
        for field in _TEXTS[message.DESCRIPTOR.name]:
            value = getattr(message, field.name)
            texts = [value] if isinstance(value, (str, bytes)) else value
            if not {str}.issuperset(map(type, texts)):
                raise InvalidModelError(
                    f"{name} has a {kind} whose {field.name} is not UTF-8; export it again."
                )
