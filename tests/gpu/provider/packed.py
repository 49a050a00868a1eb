"""The packed weight format (docs/format.md) in NumPy, independent of the package's own packer."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_CRC_TABLE = []
for _i in range(256):
    _c = _i
    for _ in range(8):
        _c = (_c >> 1) ^ 0x82F63B78 if _c & 1 else _c >> 1
    _CRC_TABLE.append(_c)


def crc32c(data: bytes, crc: int = 0) -> int:
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def pack(weight: np.ndarray):
    """(bitmap, row_offsets, values, attributes) of a dense [M, K] weight."""
    rows, columns = weight.shape
    kept = weight != 0
    bits = np.zeros((rows, -(-columns // 64) * 64), np.uint8)
    bits[:, :columns] = kept
    bitmap = np.packbits(bits, axis=1, bitorder="little")
    offsets = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32)
    nnz = int(offsets[-1])
    values = np.zeros(-(-(nnz + 32) // 64) * 64, weight.dtype)
    values[:nnz] = weight[kept]
    checksum = crc32c(values.tobytes(), crc32c(offsets.tobytes(), crc32c(bitmap.tobytes())))
    attributes = dict(in_features=columns, out_features=rows, nnz=nnz, format_version=1, checksum=checksum)
    return bitmap, offsets, values, attributes


def unpack(bitmap: np.ndarray, values: np.ndarray, in_features: int, nnz: int) -> np.ndarray:
    """The dense float32 weight."""
    bits = np.unpackbits(bitmap, axis=1, bitorder="little")[:, :in_features].astype(bool)
    weight = np.zeros(bits.shape, np.float32)
    weight[bits] = values[:nnz].astype(np.float32)
    return weight


def sparse_matmul_model(weight, bias=None, residual=False, relu=False, float32=False) -> bytes:
    """A model that is one SparseMatMul: X [batch, tokens, K] -> Y [batch, tokens, M]."""
    bitmap, offsets, values, attributes = pack(weight)
    element = TensorProto.FLOAT if float32 else TensorProto.FLOAT16
    rows, columns = weight.shape
    initializers = {"bitmap": bitmap, "row_offsets": offsets, "values": values}
    if bias is not None:
        initializers["bias"] = bias
    inputs = ["X", "bitmap", "row_offsets", "values", "bias" if bias is not None else "", "R" if residual else ""]
    while inputs[-1] == "":
        inputs.pop()
    node = helper.make_node(
        "SparseMatMul", inputs, ["Y"], "product", domain="ai.flashllm", activation="relu" if relu else "none", **attributes
    )
    values_in = [helper.make_tensor_value_info("X", element, ["b", "t", columns])]
    if residual:
        values_in.append(helper.make_tensor_value_info("R", element, ["b", "t", rows]))
    graph = helper.make_graph(
        [node],
        "one",
        values_in,
        [helper.make_tensor_value_info("Y", element, ["b", "t", rows])],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.flashllm", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
