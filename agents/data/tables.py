"""Arrow tables of the layout: rows of frames, rows of episodes, the list of tasks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kairos_env.agents.data.files import BrokenDataError, replacing
from kairos_env.agents.data.format import CAMERA


def write_table(path: Path, table: Any) -> None:
    """Write a parquet file atomically. The same table gives the same bytes."""
    import pyarrow.parquet as parquet

    with replacing(path, durable=True) as file:
        parquet.write_table(table, file, compression="snappy")


def read_table(path: Path, columns: Sequence[str] | None = None) -> Any:
    """Read a parquet file; the error names the file and what is wrong with it."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    if not path.is_file():
        raise BrokenDataError(f"{path} is missing: the dataset's index says that it exists")
    try:
        file = parquet.ParquetFile(path)
        if columns is not None:
            absent = sorted(set(columns) - set(file.schema_arrow.names))
            if absent:
                raise BrokenDataError(
                    f"{path} has no column {', '.join(absent)}; "
                    f"it has {', '.join(file.schema_arrow.names)}"
                )
        return file.read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise BrokenDataError(
            f"{path} is not a readable parquet file ({error}); it may be truncated"
        ) from error


def column(table: Any, name: str) -> NDArray[Any]:
    """A column as an array: (n,) for scalars, (n, k) for lists of one length."""
    import pyarrow as pa

    values = table.column(name).combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # an empty table has no chunk to combine
        values = pa.concat_arrays(values.chunks) if values.num_chunks else pa.array([], values.type)
    kind = values.type
    if not (
        pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)
    ):
        return np.asarray(values.to_numpy(zero_copy_only=False))
    flat = np.asarray(values.flatten().to_numpy(zero_copy_only=False))
    if len(values) and len(flat) % len(values):
        raise BrokenDataError(f"column {name}: the lists have different lengths")
    width = len(flat) // len(values) if len(values) else 0
    return flat.reshape(len(values), width)


def frame_table(
    columns: Mapping[str, NDArray[Any]], features: Mapping[str, Mapping[str, Any]]
) -> Any:
    """Rows of frames; vectors become lists of fixed length, as the features say."""
    import pyarrow as pa

    arrays, fields = [], []
    for name, feature in features.items():
        if name == CAMERA:
            continue
        kind = pa.type_for_alias(feature["dtype"])
        values = np.ascontiguousarray(columns[name])
        size = feature["shape"][0]
        if size == 1:  # LeRobot stores vectors of one as scalars
            array = pa.array(values.reshape(-1), kind)
        else:
            array = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), kind), size)
        arrays.append(array)
        fields.append(pa.field(name, array.type))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def row_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows given as dictionaries with the same keys, whose types follow from the Python values."""
    import pyarrow as pa

    # Types are fixed by hand where a column may be empty of values throughout.
    fixed = {"kairos/success": pa.bool_(), "kairos/seed": pa.int64(), "snapshot": pa.binary()}
    names = list(rows[0])
    arrays = [pa.array([row[name] for row in rows], fixed.get(name)) for name in names]
    return pa.Table.from_arrays(arrays, names=names)


def task_table(tasks: Sequence[str]) -> Any:
    """The tasks as pandas writes them: the text is the index, `task_index` the column."""
    import pyarrow as pa

    index = "__index_level_0__"
    described = [("task_index", "int64", "int64", "task_index"), (None, "unicode", "object", index)]
    pandas = {
        "index_columns": [index],
        "column_indexes": [
            {
                "name": None,
                "field_name": None,
                "pandas_type": "unicode",
                "numpy_type": "object",
                "metadata": {"encoding": "UTF-8"},
            }
        ],
        "columns": [
            {
                "name": name,
                "field_name": field,
                "pandas_type": pandas_type,
                "numpy_type": numpy_type,
                "metadata": None,
            }
            for name, pandas_type, numpy_type, field in described
        ],
    }
    schema = pa.schema(
        [pa.field("task_index", pa.int64()), pa.field(index, pa.string())],
        metadata={"pandas": json.dumps(pandas)},
    )
    return pa.Table.from_arrays(
        [pa.array(range(len(tasks)), pa.int64()), pa.array(list(tasks), pa.string())], schema=schema
    )
