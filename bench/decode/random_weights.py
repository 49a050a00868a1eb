"""Fills a model's data file with random weights, on the spot: models of this size are not worth moving about.

    python random_weights.py model.onnx

`model.onnx` comes from `flashllm export --random SIZE --share-layers --dtype float16` and `flashllm rewrite`; beside it goes the
data file that it names, with other random numbers than those the command line wrote. Checksums therefore do not fit: sessions
need the provider option verify_checksum = 0. Packed weights keep their number of nonzeros.
"""

import os
import sys

import numpy as np
import onnx
import torch


def external(tensor):
    fields = {entry.key: entry.value for entry in tensor.external_data}
    return fields["location"], int(fields.get("offset", 0)), int(fields["length"])


def random_bits(rows, columns, nonzeros, device):
    """A [rows, columns] bool tensor with exactly so many True."""
    bits = torch.rand(rows * columns, device=device) < nonzeros / (rows * columns)
    surplus = int(bits.sum()) - nonzeros
    places = torch.nonzero(bits if surplus > 0 else ~bits).flatten()
    chosen = places[torch.randperm(len(places), device=device)[: abs(surplus)]]
    bits[chosen] = surplus < 0
    return bits.view(rows, columns)


def packed_parts(rows, columns, nonzeros, device):
    """bitmap, row_offsets and values of docs/format.md as bytes."""
    bits = random_bits(rows, columns, nonzeros, device)
    offsets = np.concatenate([[0], torch.cumsum(bits.sum(1), 0).cpu().numpy()]).astype(np.int32)
    padded = torch.zeros(rows, -(-columns // 64) * 64, dtype=torch.uint8, device=device)
    padded[:, :columns] = bits
    weights = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8, device=device)
    bitmap = (padded.view(rows, -1, 8) * weights).sum(2, dtype=torch.uint8)
    values = torch.zeros(-(-(nonzeros + 32) // 64) * 64, dtype=torch.float16, device=device)
    values[:nonzeros] = torch.randn(nonzeros, device=device).half() * 0.02
    return bitmap.cpu().numpy().tobytes(), offsets.tobytes(), values.cpu().numpy().tobytes()


def fill(path):
    model = onnx.load(path, load_external_data=False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    places = {t.name: (external(t), list(t.dims)) for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    written, folder = set(), os.path.dirname(os.path.abspath(path))
    files = {}

    def write(name, data):
        (location, offset, length), _ = places[name]
        if len(data) != length:
            raise ValueError(f"{name}: {len(data)} bytes were made, the model says {length}")
        if location not in files:
            files[location] = open(os.path.join(folder, location), "wb")
        file = files[location]
        file.seek(offset)
        file.write(data)
        written.add(places[name][0])

    for node in model.graph.node:
        if node.op_type != "SparseMatMul" or places[node.input[1]][0] in written:
            continue
        integers = {a.name: a.i for a in node.attribute}
        parts = packed_parts(integers["out_features"], integers["in_features"], integers["nnz"], device)
        for name, data in zip(node.input[1:4], parts):
            write(name, data)
    for name, (place, dims) in places.items():
        if place in written:
            continue
        scale, shift = (0.0, 1.0) if name.endswith("norm.weight") else (0.02, 0.0)
        write(name, (torch.randn(dims, device=device) * scale + shift).half().cpu().numpy().tobytes())
    for file in files.values():
        file.close()
    torch.cuda.empty_cache()


if __name__ == "__main__":
    fill(sys.argv[1])
