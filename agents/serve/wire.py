"""Bodies of requests and answers: JSON or msgpack, in which an array is a small map.

    {"dtype": "uint8", "shape": [256, 448, 3], "data": ...}

`data` is bytes in msgpack and base64 in JSON. A list of numbers will do for small arrays. Nothing
else is read: no pickle, no extension types, no infinities in JSON.
"""

import base64
import binascii
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

JSON, MSGPACK = "application/json", "application/msgpack"
DTYPES = ("uint8", "int32", "int64", "float16", "float32", "float64", "bool")


class WireError(ValueError):
    """A body that cannot be read; the message says what was expected."""


def dump(content: Any, kind: str) -> bytes:
    """A body of the kind out of plain values and arrays."""
    if kind == MSGPACK:
        packed: bytes = _msgpack().packb(_plain(content, bytes), use_bin_type=True)
        return packed
    return json.dumps(_plain(content, _text)).encode()


def load(body: bytes, kind: str) -> Any:
    """What `dump` wrote, with its arrays.

    Raises:
        WireError: The body is damaged, of an unknown kind, or holds what is not read.
    """
    if kind not in (JSON, MSGPACK):
        raise WireError(
            f"expected a body of {JSON} or {MSGPACK}, got {kind or 'no content type'}; a pickle "
            "could run code here and is never read"
        )
    try:
        content = json.loads(body, parse_constant=_refuse) if kind == JSON else _unpacked(body)
        return _with_arrays(content)
    except WireError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise WireError(f"the body is no whole {kind} ({error})") from error


def _plain(value: Any, data_of: Callable[[bytes], Any]) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        whole = np.ascontiguousarray(value)
        return {
            "dtype": str(value.dtype),
            "shape": list(value.shape),
            "data": data_of(whole.tobytes()),
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(item, data_of) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, data_of) for item in value]
    return value


def _with_arrays(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"dtype", "shape", "data"}:
            return _array(value["dtype"], value["shape"], value["data"])
        return {key: _with_arrays(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_arrays(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    raise WireError(f"the body holds a {type(value).__name__}, which is not read")


def _array(dtype: Any, shape: Any, data: Any) -> np.ndarray[Any, Any]:
    if dtype not in DTYPES:
        raise WireError(f"an array's dtype is one of {', '.join(DTYPES)}, got {dtype!r}")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise WireError(f"an array's shape is a list of sizes, got {shape!r}")
    if isinstance(data, str):
        try:
            data = base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise WireError(f"an array's data is no base64 ({error})") from error
    if not isinstance(data, bytes):
        raise WireError(f"an array's data is bytes or base64, got {type(data).__name__}")
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if len(data) != size:
        raise WireError(f"an array {dtype} {shape} has {size} bytes, got {len(data)}")
    return np.frombuffer(data, dtype).reshape(shape)


def _unpacked(body: bytes) -> Any:
    msgpack = _msgpack()
    try:
        return msgpack.unpackb(body, raw=False, strict_map_key=True)
    except msgpack.exceptions.UnpackException as error:
        raise WireError(f"the body is no whole {MSGPACK} ({error})") from error


def _msgpack() -> Any:
    try:
        import msgpack
    except ImportError as error:
        raise WireError(
            f'{MSGPACK} needs: pip install "kairos-env[serve]"; {JSON} needs nothing'
        ) from error
    return msgpack


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _refuse(name: str) -> Any:
    raise WireError(f"JSON has no {name}")
