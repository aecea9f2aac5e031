"""Raw rows to a table of prepared ones: encoded in pieces on several cores, counted, the dropped left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from align.data.tokens.encode import FLAGS, STATUS, UNSEEN, Encoder
from align.data.tokens.preparation import Preparation
from align.runs.parallel import in_order
from align.runs.terminal import Work

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features

_PIECE = 256  # rows that are encoded at a time
_CHUNK = 4096  # rows that lie together in the table


def encode_table(
    dataset: Dataset, encode: Encoder, account: Preparation, features: Features, *, masked: bool, processes: int
) -> Dataset:
    """Prepared rows with the columns of ``features``, in order; what became of the rows is counted in ``account``.

    Ids and counts do not depend on the number of ``processes``. With ``masked`` the columns of masks are left out where
    all tokens are targets.
    """
    import pyarrow as pa
    from datasets import Dataset, List, Value

    everything = features.copy()
    everything.update({STATUS: Value("string"), FLAGS: Value("int8"), UNSEEN: List(Value("string"))})
    schema = pa.schema(list(everything.arrow_schema))
    raw = dataset.with_format(None)

    def piece(number: int) -> bytes:
        rows = range(number * _PIECE, min((number + 1) * _PIECE, len(raw)))
        out = encode(raw[rows.start : rows.stop], list(rows))
        return pa.RecordBatch.from_pydict({name: out[name] for name in schema.names}, schema=schema).serialize()

    kept = _Chunks(list(features))
    with Work("rows tokenised", len(raw)) as work:
        for content in in_order(piece, -(-len(raw) // _PIECE), processes):
            batch = pa.ipc.read_record_batch(pa.py_buffer(content), schema)
            kept.add(batch.filter(_counted(batch, account)))
            work.add(len(batch))
    table = kept.table(features)
    if masked and len(table):
        masks = [name for name in table.column_names if name.endswith("_mask")]
        if all(pa.compute.min(pa.compute.list_flatten(table[name])).as_py() == 1 for name in masks):
            table = table.drop_columns(masks)
            features = features.copy()
            for name in masks:
                del features[name]
    return Dataset(table.replace_schema_metadata(features.arrow_schema.metadata))


def _counted(batch: pa.RecordBatch, account: Preparation) -> Any:
    """Count the rows of a batch; which of them are kept, bool [n]."""
    import pyarrow.compute as pc

    names = ("prompt", *account.branches)
    lengths = {name: pc.list_value_length(batch[f"{name}_ids"]).to_pylist() for name in names}
    rows, reasons, flags, unseen = (batch[name].to_pylist() for name in ("row", STATUS, FLAGS, UNSEEN))
    account.count(rows, reasons, flags, unseen, lengths)
    return pc.equal(batch[STATUS], "")


class _Chunks:
    """Batches put together to chunks of a useful size as they come."""

    def __init__(self, names: list[str]) -> None:
        self.names, self.done, self.open = names, list[Any](), list[Any]()

    def add(self, batch: pa.RecordBatch) -> None:
        self.open.append(batch.select(self.names))
        if sum(map(len, self.open)) >= _CHUNK:
            self._close()

    def _close(self) -> None:
        import pyarrow as pa

        if self.open:
            self.done += pa.Table.from_batches(self.open).combine_chunks().to_batches()
            self.open = []

    def table(self, features: Features) -> pa.Table:
        """All that was added."""
        import pyarrow as pa

        self._close()
        return pa.Table.from_batches(self.done, schema=pa.schema(list(features.arrow_schema)))
