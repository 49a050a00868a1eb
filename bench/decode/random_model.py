"""Makes an OPT of any size with random packed weights, where it is measured: models of this size are not worth moving about.

    python bench/decode/random_model.py 13b --sparsity 0.8 --template build/gpu-models/sparse80/model.onnx -o FOLDER

The template is a small OPT of two layers or more that `flashllm export --dtype float16` and `flashllm rewrite` made; its data
file is not needed (`node tests/gpu/make-models.mjs` makes this one). Its graph is grown: layers like its second one, and another
width. All layers have the same bytes of the data file, one layer's; a provider that copies weights to a device gives each its own
memory there. The checksums are not those of the weights: sessions need the provider option verify_checksum = 0.
"""

import argparse
import os
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
from onnx import TensorProto, helper

from opt_sizes import POSITIONS, SIZES, VOCABULARY

ALIGNMENT = 4096
NUMBERED = re.compile(r"(?<![a-z])(layers|past_key_values|present)\.(\d+)(?=[./])")
STRIP_ROWS = 256  # of a weight, that a thread makes at a time


def renumbered(name, shift):
    return NUMBERED.sub(lambda found: f"{found[1]}.{int(found[2]) + shift}", name)


def layer_of(node):
    found = re.match(r"/model/decoder/layers\.(\d+)/", node.name)
    return int(found[1]) if found else None


class DataFile:
    """The model's weights, written one after the other; every layer's names lead to the first layer's bytes."""

    def __init__(self, path, sparsity, seed):
        self.file = open(path, "wb")
        self.name = os.path.basename(path)
        self.density = 1 - sparsity
        self.random = np.random.default_rng(seed)
        self.pool = (self.random.standard_normal(1 << 22, np.float32) * 0.02).astype(np.float16)
        self.pool[self.pool == 0] = 0.02
        self.tensors = {}  # by name without a layer's number: (type, dims, offset, length)
        self.packed_shapes = {}  # (rows, columns, nonzeros) of packed weights, by the same name

    def place(self, name, element_type, dims, arrays):
        """Writes a tensor, given as arrays that follow one another."""
        offset = -(-self.file.tell() // ALIGNMENT) * ALIGNMENT
        self.file.seek(offset)
        for array in arrays:
            self.file.write(array.tobytes())
        self.tensors[name] = (element_type, dims, offset, self.file.tell() - offset)

    def cut(self, count):
        """`count` random numbers: pieces of the pool, cut at random places."""
        while count > 0:
            start = int(self.random.integers(len(self.pool) // 2))
            piece = self.pool[start : start + min(count, len(self.pool) // 2)]
            count -= len(piece)
            yield piece

    def dense(self, name, dims, norm=False):
        arrays = [np.ones(dims, np.float16)] if norm else self.cut(int(np.prod(dims)))
        self.place(name, TensorProto.FLOAT16, dims, arrays)

    def packed(self, name, rows, columns):
        """bitmap, row offsets and values of docs/format.md."""
        row_bytes = -(-columns // 64) * 8
        threshold = round(self.density * 65536)
        starts = range(0, rows, STRIP_ROWS)

        def strip(start_and_seed):
            start, seed = start_and_seed
            random = np.random.default_rng(seed)
            shape = (min(STRIP_ROWS, rows - start), columns)
            kept = random.integers(0, 65536, shape, np.uint16) < threshold
            bitmap = np.zeros((shape[0], row_bytes), np.uint8)
            bitmap[:, : -(-columns // 8)] = np.packbits(kept, axis=1, bitorder="little")
            return bitmap, np.count_nonzero(kept, axis=1)

        seeds = self.random.integers(0, 1 << 62, len(starts))
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            strips = list(threads.map(strip, zip(starts, seeds)))
        counts = np.concatenate([count for _, count in strips])
        nonzeros = int(counts.sum())
        stored = -(-(nonzeros + 32) // 64) * 64
        self.packed_shapes[name] = (rows, columns, nonzeros)
        self.place(name + "_bitmap", TensorProto.UINT8, [rows, row_bytes], [bitmap for bitmap, _ in strips])
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        self.place(name + "_row_offsets", TensorProto.INT32, [rows + 1], [offsets])
        padding = np.zeros(stored - nonzeros, np.float16)
        self.place(name + "_values", TensorProto.FLOAT16, [stored], [*self.cut(nonzeros), padding])

    def tensor(self, name):
        """The initializer of that name; None for what is no weight."""
        key = NUMBERED.sub(r"\1.0", name)
        if key not in self.tensors:
            return None
        element_type, dims, offset, length = self.tensors[key]
        tensor = TensorProto(name=name, data_type=element_type, dims=dims, data_location=TensorProto.EXTERNAL)
        for field, value in (("location", self.name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=field, value=str(value))
        return tensor


def write_weights(data, hidden):
    layer = "model.decoder.layers.0."
    data.dense("model.decoder.embed_tokens.weight", [VOCABULARY, hidden])
    data.dense("model.decoder.embed_positions.weight", [POSITIONS, hidden])
    for norm in (layer + "self_attn_layer_norm", layer + "final_layer_norm", "model.decoder.final_layer_norm"):
        data.dense(norm + ".weight", [hidden], norm=True)
        data.dense(norm + ".bias", [hidden])
    shapes = {"self_attn.qkv_proj": (3, 1), "self_attn.out_proj": (1, 1), "fc1": (4, 1), "fc2": (1, 4)}
    for linear, (rows, columns) in shapes.items():
        data.packed(layer + linear + ".weight", rows * hidden, columns * hidden)
        data.dense(layer + linear + ".bias", [rows * hidden])
    data.file.close()


def grown_nodes(graph, layers):
    """The template's nodes with as many layers: the first, then copies of the second."""
    numbers = [layer_of(node) for node in graph.node]
    if numbers.count(1) == 0:
        raise ValueError("the template has fewer than two layers")
    begin = numbers.index(0)
    end = len(numbers) - numbers[::-1].index(max(number for number in numbers if number is not None))
    shift = layers - 1 - max(number for number in numbers if number is not None)

    def copy(node, by):
        made = onnx.NodeProto()
        made.CopyFrom(node)
        made.name = renumbered(node.name, by)
        made.input[:] = [renumbered(name, by) for name in node.input]
        made.output[:] = [renumbered(name, by) for name in node.output]
        return made

    first = [node for node, number in zip(graph.node, numbers) if number == 0]
    second = [node for node, number in zip(graph.node, numbers) if number == 1]
    grown = [*graph.node[:begin], *first]
    for layer in range(1, layers):
        grown += [copy(node, layer - 1) for node in second]
    return grown + [copy(node, shift) for node in graph.node[end:]]


def set_attributes(node, data, heads, head_dim):
    values = {}
    if node.op_type == "GroupQueryAttention":
        values = {"num_heads": heads, "kv_num_heads": heads, "scale": head_dim**-0.5}
    if node.op_type == "SparseMatMul":
        weight = NUMBERED.sub(r"\1.0", node.input[1].removesuffix("_bitmap"))
        values = dict(zip(("out_features", "in_features", "nnz"), data.packed_shapes[weight]))
    for attribute in node.attribute:
        if attribute.name in values:
            attribute.CopyFrom(helper.make_attribute(attribute.name, values[attribute.name]))


def cache_infos(infos, layers, heads, head_dim):
    """Of inputs or outputs: the caches, for as many layers as there are."""
    grown = []
    for layer in range(layers):
        for info in (info for info in infos if re.search(r"\.0\.", info.name)):
            made = onnx.ValueInfoProto()
            made.CopyFrom(info)
            made.name = renumbered(info.name, layer)
            dims = made.type.tensor_type.shape.dim
            dims[1].dim_value, dims[3].dim_value = heads, head_dim
            grown.append(made)
    return grown


def scaled_infos(graph, hidden, layers):
    """What the template says of its values, for the other widths and layers. Providers may ask for the width of a query."""
    old = {tensor.name: tensor.dims for tensor in graph.initializer}["model.decoder.embed_tokens.weight"]
    widths = {old[1]: hidden, 3 * old[1]: 3 * hidden, 4 * old[1]: 4 * hidden, old[0]: VOCABULARY}
    grown = []
    for info in graph.value_info:
        number = NUMBERED.search(info.name)
        if number and int(number[2]) > 1:
            continue
        for layer in range(1, layers) if number and int(number[2]) == 1 else [1]:
            made = onnx.ValueInfoProto()
            made.CopyFrom(info)
            made.name = renumbered(info.name, layer - 1)
            for dim in made.type.tensor_type.shape.dim:
                if dim.dim_value in widths:
                    dim.dim_value = widths[dim.dim_value]
            grown.append(made)
    return grown


def grow(model, data, size):
    """Makes the template's graph that of a model of `size` with the weights in `data`."""
    layers, hidden, heads = SIZES[size]
    graph = model.graph
    nodes, infos = grown_nodes(graph, layers), scaled_infos(graph, hidden, layers)
    inputs = [info for info in graph.input if not NUMBERED.search(info.name)]
    outputs = [info for info in graph.output if not NUMBERED.search(info.name)]
    inputs += cache_infos(graph.input, layers, heads, hidden // heads)
    outputs += cache_infos(graph.output, layers, heads, hidden // heads)
    for info in outputs:
        if info.name == "logits":
            info.type.tensor_type.shape.dim[2].dim_value = VOCABULARY
    constants = [tensor for tensor in graph.initializer if not tensor.name.startswith("model.")]
    for tensor in constants:
        if tensor.name.startswith("rows_of_"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([-1, hidden], np.int64), tensor.name))
    for node in nodes:
        set_attributes(node, data, heads, hidden // heads)
    names = dict.fromkeys(name for node in nodes for name in node.input)
    weights = [tensor for tensor in map(data.tensor, names) if tensor is not None]
    grown = {"node": nodes, "input": inputs, "output": outputs, "initializer": constants + weights, "value_info": infos}
    for field, content in grown.items():
        content = [type(item).FromString(item.SerializeToString()) for item in content]
        del getattr(graph, field)[:]
        getattr(graph, field).extend(content)


def make(size, sparsity, template, folder, seed=0):
    """Writes FOLDER/model.onnx and its data file; returns the model's path."""
    if size not in SIZES:
        raise ValueError(f"size {size}: expected one of {', '.join(SIZES)}")
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity {sparsity}: expected a number from 0 to below 1")
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "model.onnx")
    data = DataFile(path + "_data", sparsity, seed)
    write_weights(data, SIZES[size][1])
    model = onnx.load(template, load_external_data=False)
    grow(model, data, size)
    onnx.save(model, path)
    return path


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--template", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", required=True)
    arguments = parser.parse_args()
    print(make(arguments.size, arguments.sparsity, arguments.template, arguments.output, arguments.seed))


if __name__ == "__main__":
    main()
