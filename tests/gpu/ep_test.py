"""The execution provider on a GPU, through Python's onnxruntime.

    npm run test:gpu:provider        makes the models and runs this
    python tests/gpu/ep_test.py [--library native/linux-x64/libonnxruntime_ep_flashllm.so] [--models build/gpu-models] [SECTION ...]

It needs onnxruntime 1.30 (the CPU package), onnx and NumPy. `models` is what make-models.mjs writes. Tolerances are stated where
they are used. Exit code 0: every section passed.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
import traceback

import numpy as np
import onnx
import onnx.compose
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests", "gpu", "provider"))

from decoder import GPU, ON_GPU_ONLY, Decoder, InPlace, Static, gpu_count, gpu_device, gpu_session, session_and_memory  # noqa: E402
from opt_reference import OptReference  # noqa: E402
from packed import sparse_matmul_model  # noqa: E402

SECTIONS = []


def section(function):
    SECTIONS.append(function)
    return function


def check(condition, message):
    if not condition:
        raise AssertionError(message)


def close(found, expected, absolute, relative, what):
    """|found - expected| <= absolute + relative |expected|, element by element."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    check(found.shape == expected.shape, f"{what}: shape {found.shape}, expected {expected.shape}")
    check(np.isfinite(found).all(), f"{what}: {np.count_nonzero(~np.isfinite(found))} values are not finite")
    error = np.abs(found - expected)
    excess = error - absolute - relative * np.abs(expected)
    worst = np.unravel_index(np.argmax(excess), excess.shape)
    print(f"    {what}: largest error {error.max():.3g}, mean {error.mean():.3g}")
    check(excess.max() <= 0, f"{what}: at {worst} found {found[worst]}, expected {expected[worst]}")


def at_once(actions):
    """Runs each in a thread of its own, all at once; fails where one does."""
    failures = []

    def work(action):
        try:
            action()
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=work, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(not failures, failures)


def random_weight(generator, rows, columns, sparsity, dtype=np.float16):
    weight = generator.uniform(-1, 1, (rows, columns)).astype(dtype)
    weight[generator.random((rows, columns)) < sparsity] = 0
    return weight


def check_products(session, generator, weight, tokens, what, name="X"):
    """Products of float16 with each number of `tokens` against float64, and twice the same.

    |error| <= 1e-3 of the largest |Y| and half a unit of float16.
    """
    for count in tokens:
        x = generator.uniform(-1, 1, (1, count, weight.shape[1])).astype(np.float16)
        expected = x.astype(np.float64) @ weight.astype(np.float64).T
        found, again = (session.run(None, {name: x})[0] for _ in range(2))
        check(np.array_equal(found.view(np.uint16), again.view(np.uint16)), f"{what}, N={count}: two runs differ")
        close(found, expected, 1e-3 * np.abs(expected).max(), 2**-10, f"{what}, N={count}")


def check_prompts(models, options, generator, prompts):
    """Logits of batches of prompts of these lengths, of a model of 80 % zeros in a session with these options."""
    path = os.path.join(models, "sparse80", "model.onnx")
    reference, decoder = OptReference(path), Decoder(gpu_session(path, options, ON_GPU_ONLY))
    for lengths in prompts:
        ids, mask, positions = sequences(generator, reference.vocabulary, lengths)
        logits, _ = decoder.run(ids, mask, positions)
        expected = reference.logits(ids, mask, positions)
        close(logits[mask == 1], expected[mask == 1], 0.06, 0.01, f"sparse80 {lengths}")


def check_expected(models, batch, generator, weights, tokens, prompts):
    """Sessions that expect `batch` sequences: products of these `weights` (rows, columns, share of zeros) with each number
    of `tokens`, and a whole graph's logits of `prompts`, within the usual bounds."""
    options = {"expected_batch": str(batch)}
    for rows, columns, sparsity in weights:
        weight = random_weight(generator, rows, columns, sparsity)
        session = gpu_session(sparse_matmul_model(weight), options, ON_GPU_ONLY)
        check_products(session, generator, weight, tokens, f"for {batch}, {rows} x {columns}")
    check_prompts(models, options, generator, prompts)


@section
def devices(_):
    """The provider shows the GPU with its memory."""
    for device in ort.get_ep_devices():
        print("   ", device.ep_name, device.ep_vendor, device.device.type, hex(device.device.vendor_id),
              hex(device.device.device_id), dict(device.device.metadata), dict(device.ep_metadata))
    check(gpu_device() is not None, "no GPU")


@section
def sparse_matmul(_):
    """One SparseMatMul against float64: |error| <= 1e-3 of the largest |Y| and half a unit of float16."""
    generator = np.random.default_rng(1)
    for rows, columns, sparsity in ((384, 384, 0.8), (1152, 384, 0.5), (100, 77, 0.3), (1, 1, 0.0), (50, 1536, 0.95)):
        weight = random_weight(generator, rows, columns, sparsity)
        bias = generator.uniform(-1, 1, rows).astype(np.float16)
        session = gpu_session(sparse_matmul_model(weight, bias, residual=True, relu=True), config=ON_GPU_ONLY)
        for tokens in (1, 8, 33, 64, 200):
            x = generator.uniform(-1, 1, (1, tokens, columns)).astype(np.float16)
            r = generator.uniform(-1, 1, (1, tokens, rows)).astype(np.float16)
            expected = np.maximum(x.astype(np.float64) @ weight.astype(np.float64).T + bias.astype(np.float64), 0) + r
            found = session.run(None, {"X": x, "R": r})[0]
            again = session.run(None, {"X": x, "R": r})[0]
            check(np.array_equal(found.view(np.uint16), again.view(np.uint16)), "two runs differ")
            close(found, expected, 1e-3 * np.abs(expected).max(), 2**-10, f"[{rows}, {columns}] {sparsity} N={tokens}")
    weight = random_weight(generator, 96, 160, 0.7, np.float32)
    session = gpu_session(sparse_matmul_model(weight, float32=True))
    x = generator.uniform(-1, 1, (2, 3, 160)).astype(np.float32)
    close(session.run(None, {"X": x})[0], x.astype(np.float64) @ weight.astype(np.float64).T, 1e-4, 1e-4, "float32")
    check(session.run(None, {"X": x[:, :0]})[0].shape == (2, 0, 96), "an empty batch")


@section
def expanded(_):
    """A weight is kept expanded too (which takes 3 MB more) where the option allows it, and gives the same products."""
    generator = np.random.default_rng(3)
    weight = random_weight(generator, 1536, 1024, 0.6)
    held, session = {}, None
    for megabytes in (0, 2, 4):
        session = None  # and its memory with it
        options = {"expanded_megabytes": str(megabytes)}
        session, held[megabytes] = session_and_memory(sparse_matmul_model(weight), options, ON_GPU_ONLY)
        check_products(session, generator, weight, (1, 64, 65, 300), f"{megabytes} MB")
    print(f"    the provider holds {held[0]} MB without the option, {held[2]} MB with 2 and {held[4]} MB with 4")
    rounding = 0.11  # of both figures, to a tenth
    check(abs(held[2] - held[0]) < rounding, "2 MB were taken for a copy that needs 3, or memory was not given back")
    check(held[4] - held[0] > 2 * weight.size / 1e6 - rounding, "no expanded copy was kept")

    # Faster dense with so many sequences, the first lies dense, and leaves the option's memory to the second.
    dense, sparse = random_weight(generator, 2048, 2048, 0.5), random_weight(generator, 7168, 2048, 0.9)
    one, other = (onnx.load_from_string(sparse_matmul_model(each)) for each in (dense, sparse))
    both = onnx.compose.merge_models(one, other, [("Y", "X")], prefix1="one.", prefix2="other.").SerializeToString()
    for megabytes in (0, 30):
        session = None
        options = {"expanded_megabytes": str(megabytes), "expected_batch": "16"}
        session, held[megabytes] = session_and_memory(both, options, ON_GPU_ONLY)
        product = sparse.astype(np.float64) @ dense.astype(np.float64)
        check_products(session, generator, product, (16, 300), f"a dense and a sparse one, {megabytes} MB", "one.X")
    print(f"    beside one that lies dense: {held[0]} MB without the option, {held[30]} MB with 30")
    check(held[30] - held[0] > 2 * sparse.size / 1e6 - rounding, "a weight that lies dense took the option's memory")


@section
def compact(_):
    """Weights of 90 % zeros take less memory with the option (some 4 of 16 MB here), and give the same products."""
    generator = np.random.default_rng(4)
    rows, columns = 4096, 8192
    weight = random_weight(generator, rows, columns, 0.9)
    model = sparse_matmul_model(weight)
    held, session = {}, None
    for option in ("0", "1"):
        session = None  # and its memory with it
        session, held[option] = session_and_memory(model, {"compact_weights": option}, ON_GPU_ONLY)
        check_products(session, generator, weight, (1, 16, 64, 300), f"compact_weights {option}")
    print(f"    the provider holds {held['0']} MB without the option and {held['1']} MB with it")
    check(held["0"] - held["1"] > 2, "compact weights do not take less memory")


@section
def one_sequence(models):
    """Weights laid out for one sequence: one, two and many tokens."""
    check_expected(models, 1, np.random.default_rng(6), ((1500, 1344, 0.8),), (1, 2, 3, 9, 40, 300), ([1], [2], [7], [40], [5, 17]))


@section
def some_sequences(models):
    """Weights laid out for 8 sequences, of which GPUs from 9.0 on have large ones as quads: few and many tokens."""
    weights = ((20480, 5120, 0.8), (5120, 8200, 0.9), (9000, 1344, 0.77))
    check_expected(models, 8, np.random.default_rng(9), weights, (1, 8, 16, 33, 96, 97, 300), ([1], [40], [5, 17]))


@section
def many_sequences(models):
    """Weights laid out for 64 sequences, the last one dense: few and many tokens."""
    weights = ((9000, 5128, 0.5), (15001, 4104, 0.9), (2048, 2048, 0.5))
    check_expected(models, 64, np.random.default_rng(8), weights, (1, 20, 64, 65, 128, 300), ([1], [40], [5, 17]))


@section
def jagged_too(_):
    """Weights are kept for one sequence too where the option allows it (some 4 MB here), and give the same products."""
    generator = np.random.default_rng(8)
    rows, columns = 4096, 2048
    weight = random_weight(generator, rows, columns, 0.8)
    held, session = {}, None
    for megabytes in (0, 2, 40):
        session = None  # and its memory with it
        options = {"jagged_megabytes": str(megabytes), "expected_batch": "8"}
        session, held[megabytes] = session_and_memory(sparse_matmul_model(weight), options, ON_GPU_ONLY)
        check_products(session, generator, weight, (1, 2, 3, 40), f"{megabytes} MB")
    print(f"    the provider holds {held[0]} MB without the option, {held[2]} MB with 2 and {held[40]} MB with 40")
    rounding = 0.11  # of both figures, to a tenth
    check(abs(held[2] - held[0]) < rounding, "2 MB were taken for a layout that needs more, or memory was not given back")
    check(held[40] - held[0] > 0.5 * weight.size / 1e6 - rounding, "no second layout was kept")


@section
def host_integers(_):
    """Differences of int32, which are computed on the host: shapes as ONNX broadcasts them, also of nothing."""
    for a_shape, b_shape in (([3], [3]), ([3], []), ([1, 1], [3]), ([0], [1]), ([1], [0])):
        names = (("A", a_shape), ("B", b_shape), ("Y", [f"y{i}" for i in range(max(len(a_shape), len(b_shape)))]))
        a, b, y = (helper.make_tensor_value_info(name, TensorProto.INT32, shape) for name, shape in names)
        graph = helper.make_graph([helper.make_node("Sub", ["A", "B"], ["Y"])], "difference", [a, b], [y])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        feeds = {"A": np.full(a_shape, 7, np.int32), "B": np.full(b_shape, 9, np.int32)}
        found = gpu_session(model.SerializeToString(), config=ON_GPU_ONLY).run(None, feeds)[0]
        expected = feeds["A"] - feeds["B"]
        check(found.shape == expected.shape and np.array_equal(found, expected), f"{a_shape} - {b_shape}: {found!r}")


@section
def refusals(_):
    """What does not fit is an error that says so, and the session goes on."""
    weight = random_weight(np.random.default_rng(2), 64, 64, 0.5)
    session = gpu_session(sparse_matmul_model(weight))
    model = sparse_matmul_model(weight)
    for what, action, words in (
        ("a damaged weight", lambda: gpu_session(damage(model)), "checksum"),
        ("a weight that a run may replace", lambda: gpu_session(replaceable(model)), "not made of constant initializers"),
        ("an unknown option", lambda: gpu_session(model, {"devise": "cuda"}), "devise"),
        ("the wrong device", lambda: gpu_session(model, {"device": "cpu"}), "cpu"),
    ):
        try:
            action()
        except Exception as error:  # noqa: BLE001
            check(words in str(error), f"{what}: {error}")
            print(f"    {what}: {str(error)[:160]}")
        else:
            check(False, f"{what} was taken")
    x = np.ones((1, 2, 64), np.float16)
    close(session.run(None, {"X": x})[0], x.astype(np.float64) @ weight.astype(np.float64).T, 0.05, 0.01, "afterwards")


@section
def loading(_):
    """Large weights from a file and from memory, several sessions at once; a damaged one is refused, and the next one loads."""
    generator = np.random.default_rng(3)
    weight = random_weight(generator, 3000, 5000, 0.5)
    x = generator.uniform(-1, 1, (1, 4, 5000)).astype(np.float16)
    expected = x.astype(np.float64) @ weight.astype(np.float64).T
    model = sparse_matmul_model(weight)
    found = {}

    def load(what, source):
        found[what] = gpu_session(source).run(None, {"X": x})[0]

    with tempfile.TemporaryDirectory() as folder:

        def saved(name, content):
            path = os.path.join(folder, name + ".onnx")
            onnx.save_model(onnx.ModelProto.FromString(content), path, save_as_external_data=True, location=name + ".data")
            return path

        sound, damaged = saved("sound", model), saved("damaged", damage(model))
        for source in (damaged, damage(model)):
            try:
                gpu_session(source)
            except Exception as error:  # noqa: BLE001
                check("checksum" in str(error), str(error))
            else:
                check(False, "a damaged weight was taken")
        sources = {"a file": sound, "memory": model, "the file again": sound}
        at_once([lambda item=item: load(*item) for item in sources.items()])
    close(found["a file"], expected, 0.1, 0.01, "a weight of 3000 x 5000")
    for what, y in found.items():
        check(np.array_equal(y, found["a file"]), f"{what} gave another product than a file")


def damage(model: bytes) -> bytes:
    """The model with one bit of a stored value flipped."""
    proto = onnx.ModelProto.FromString(model)
    values = next(t for t in proto.graph.initializer if t.name == "values")
    raw = bytearray(values.raw_data)
    raw[10] ^= 1
    values.raw_data = bytes(raw)
    return proto.SerializeToString()


def replaceable(model: bytes) -> bytes:
    """The model with its row offsets as an input, too, of which the initializer is the default."""
    proto = onnx.ModelProto.FromString(model)
    offsets = next(t for t in proto.graph.initializer if t.name == "row_offsets")
    proto.graph.input.append(helper.make_tensor_value_info(offsets.name, offsets.data_type, offsets.dims))
    return proto.SerializeToString()


def sequences(generator, vocabulary, lengths, left=True):
    """A padded batch: ids, mask and positions."""
    longest = max(lengths)
    ids = np.ones((len(lengths), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        place = slice(longest - length, longest) if left else slice(0, length)
        ids[row, place] = generator.integers(4, vocabulary, length)
        mask[row, place] = 1
    return ids, mask, np.maximum(np.cumsum(mask, axis=1) - 1, 0)


@section
def whole_model(models):
    """Logits of a whole graph on the GPU alone: |error| <= 0.06 + 1 % against float32 arithmetic on the same weights."""
    for name in ("dense16", "sparse80", "sparse50"):
        path = os.path.join(models, name, "model.onnx")
        if not os.path.exists(path):
            print(f"    {name}: not there")
            continue
        reference = OptReference(path)
        start = time.time()
        decoder = Decoder(gpu_session(path, config=ON_GPU_ONLY))
        print(f"    {name}: session in {time.time() - start:.2f} s")
        generator = np.random.default_rng(3)
        for lengths, left in (([1], True), ([7], True), ([40], True), ([5, 17, 11], True), ([9, 4], False), ([200, 3], True)):
            ids, mask, positions = sequences(generator, reference.vocabulary, lengths, left)
            logits, _ = decoder.run(ids, mask, positions)
            expected = reference.logits(ids, mask, positions)
            close(logits[mask == 1], expected[mask == 1], 0.06, 0.01, f"{name} {lengths}")


@section
def greedy(models):
    """The greedy text of models/opt-14m/reference.json, token by token with a growing cache."""
    with open(os.path.join(ROOT, "models", "opt-14m", "reference.json"), encoding="utf8") as file:
        cases = json.load(file)["cases"]
    decoder = Decoder(gpu_session(os.path.join(models, "dense16", "model.onnx"), config=ON_GPU_ONLY))
    for case in cases:
        ids = list(case["input_ids"])
        fresh, past = np.array([ids], np.int64), None
        while len(ids) < len(case["greedy_ids"]):
            mask = np.ones((1, len(ids)), np.int64)
            positions = np.arange(len(ids) - fresh.shape[1], len(ids))[None]
            logits, past = decoder.run(fresh, mask, positions, past)
            ids.append(int(np.argmax(logits[0, -1])))
            fresh = np.array([[ids[-1]]], np.int64)
        check(ids == case["greedy_ids"], f"'{case['prompt']}': {ids} instead of {case['greedy_ids']}")
    print(f"    {len(cases)} texts")


@section
def padding(models):
    """A padded batch gives what its sequences give alone: |error| <= 0.03 + 0.5 %."""
    decoder = Decoder(gpu_session(os.path.join(models, "sparse80", "model.onnx"), config=ON_GPU_ONLY))
    generator = np.random.default_rng(4)
    for left in (True, False):
        lengths = [3, 12, 8]
        ids, mask, positions = sequences(generator, 8000, lengths, left)
        together, _ = decoder.run(ids, mask, positions)
        for row, length in enumerate(lengths):
            alone_ids = ids[row][mask[row] == 1][None]
            alone, _ = decoder.run(alone_ids, np.ones_like(alone_ids), np.arange(length)[None])
            close(together[row][mask[row] == 1], alone[0], 0.03, 0.005, f"left={left} length {length}")


@section
def decode_in_place(models):
    """Prefill, then 200 steps in buffers that past and present share, equal to recomputing whole sequences."""
    path = os.path.join(models, "sparse80", "model.onnx")
    decoder = Decoder(gpu_session(path, config=ON_GPU_ONLY))
    reference = OptReference(path)
    generator = np.random.default_rng(5)
    lengths, steps, capacity = [6, 20, 13], 200, 256
    ids, mask, positions = sequences(generator, reference.vocabulary, lengths)
    state = InPlace(decoder, len(lengths), capacity)
    logits = state.run(ids, mask, positions)
    found, start = [logits[:, -1]], time.time()
    fresh = generator.integers(4, reference.vocabulary, (len(lengths), steps))
    for step in range(steps):
        mask = np.concatenate([mask, np.ones((len(lengths), 1), np.int64)], axis=1)
        at = (mask.sum(axis=1) - 1)[:, None]
        found.append(state.run(fresh[:, step : step + 1], mask, at)[:, -1])
    print(f"    {(time.time() - start) / steps * 1000:.2f} ms a step")
    ids = np.concatenate([ids, fresh], axis=1)
    expected = reference.logits(ids, mask, np.maximum(np.cumsum(mask, axis=1) - 1, 0))[:, max(lengths) - 1 :]
    close(np.stack(found, axis=1), expected, 0.06, 0.01, "201 steps")


@section
def rows(models):
    """Rows of one buffer that end where their masks do, in steps of one fixed width, equal to recomputing each alone."""
    path = os.path.join(models, "sparse80", "model.onnx")
    decoder = Decoder(gpu_session(path, config=ON_GPU_ONLY))
    reference = OptReference(path)
    generator = np.random.default_rng(7)
    lengths, steps, capacity = [6, 20, 13], 30, 64
    ids, mask, positions = sequences(generator, reference.vocabulary, lengths, left=False)
    state = InPlace(decoder, len(lengths), capacity)
    logits = state.run(ids, mask, positions)
    found = [[logits[row, length - 1]] for row, length in enumerate(lengths)]
    fresh = generator.integers(4, reference.vocabulary, (len(lengths), steps))
    for step in range(steps):
        at = np.array([[length + step] for length in lengths], np.int64)
        mask = (np.arange(capacity)[None] <= at).astype(np.int64)
        logits = state.run(fresh[:, step : step + 1], mask, at)
        for row in range(len(lengths)):
            found[row].append(logits[row, 0])
    for row, length in enumerate(lengths):
        whole = np.concatenate([ids[row, :length], fresh[row]])[None]
        expected = reference.logits(whole, np.ones_like(whole), np.arange(length + steps)[None])[0, length - 1 :]
        close(np.stack(found[row]), expected, 0.06, 0.01, f"row of {length} tokens")


@section
def cuda_graph(models):
    """Replayed CUDA graphs give what ordinary runs give, bit for bit, and what float32 arithmetic gives: 0.06 + 1 %."""
    path = os.path.join(models, "sparse80", "model.onnx")
    reference = OptReference(path)
    generator = np.random.default_rng(7)
    lengths, steps, capacity = [6, 11], 40, 64
    prompt, prompt_mask, prompt_positions = sequences(generator, reference.vocabulary, lengths)
    fresh = generator.integers(4, reference.vocabulary, (len(lengths), steps))
    found = []
    for graph in ("0", "1"):
        decoder = Decoder(gpu_session(path, {"cuda_graph": graph}, ON_GPU_ONLY))
        state = Static(decoder, len(lengths), capacity, reference.vocabulary)
        logits = [state.prefill(prompt, prompt_mask, prompt_positions)[:, -1:]]
        mask, start = prompt_mask, time.time()
        for step in range(steps):
            mask = np.concatenate([mask, np.ones((len(lengths), 1), np.int64)], axis=1)
            at = (mask.sum(axis=1) - 1)[:, None]
            logits.append(state.step(fresh[:, step : step + 1], mask.shape[1] - 1, at))
            if step == 20:  # an ordinary run in between, whose memory the graph must not share
                state.decoder.session.run_with_iobinding(state.binding, plain_run())
                decoder_logits = state.logits.numpy()
                check(np.array_equal(decoder_logits, logits[-1]), "an ordinary run of the same step differs")
        print(f"    cuda_graph={graph}: {(time.time() - start) / steps * 1000:.2f} ms a step with copies")
        found.append(np.concatenate(logits, axis=1))
        # A replay reads what lies where the recorded run read: tokens that are bound elsewhere are not seen.
        other = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(fresh[:, -1:] ^ 1), GPU, decoder.device)
        state.binding.bind_ortvalue_input("input_ids", other)
        decoder.session.run_with_iobinding(state.binding)
        replayed = np.array_equal(state.logits.numpy(), logits[-1])
        check(replayed == (graph == "1"), f"cuda_graph={graph}: the step is {'' if replayed else 'not '}replayed")
    check(np.array_equal(found[0].view(np.uint16), found[1].view(np.uint16)), "replays differ from ordinary runs")
    ids = np.concatenate([prompt, fresh], axis=1)
    expected = reference.logits(ids, mask, np.maximum(np.cumsum(mask, axis=1) - 1, 0))[:, max(lengths) - 1 :]
    close(found[1], expected, 0.06, 0.01, f"{steps} steps")


def plain_run():
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "-1")
    return options


@section
def profile(models):
    """ONNX Runtime's profile has a time on the device for each kernel, of ordinary runs and of replayed CUDA graphs."""
    path = os.path.join(models, "sparse80", "model.onnx")
    generator = np.random.default_rng(8)
    steps = 5
    for graph in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            settings = {"cuda_graph": "1" if graph else "0"}
            session = gpu_session(path, settings, ON_GPU_ONLY, profile=os.path.join(folder, "profile"))
            state = Static(Decoder(session), 2, 64, 8192)
            state.prefill(*sequences(generator, 8192, [6, 11]))
            start = time.time()
            for step in range(steps):
                state.step(np.full((2, 1), 7, np.int64), 11 + step, np.full((2, 1), 11 + step, np.int64))
            took = time.time() - start
            with open(session.end_profiling(), encoding="utf8") as file:
                events = json.load(file)
        timed = [event for event in events if "device_ns" in event.get("args", {})]
        products = [event for event in timed if event["args"]["op_name"] == "SparseMatMul"]
        names = {event["args"]["node"] for event in products}
        check(len(names) == 24, f"{len(names)} of 24 SparseMatMul nodes are in the profile")
        replays = [event for event in products if event["args"]["cuda_graph"] == "1"]
        check(len(replays) >= steps * len(names) if graph else not replays, f"{len(replays)} products in replayed graphs")
        check(all(0 < int(event["args"]["device_ns"]) < 1e7 for event in products), "a time that cannot be")
        kernels = [event["ts"] for event in timed]
        check(min(kernels) > 0 and max(kernels) <= max(event["ts"] for event in events if event not in timed) + 1e6, "a start that cannot be")
        shown = [event for event in timed if (event["args"]["cuda_graph"] == "1") == graph]
        total = sum(int(event["args"]["device_ns"]) for event in shown)
        print(f"    cuda_graph={int(graph)}: {len(timed)} times, {total / 1e6:.2f} ms of kernels in {took * 1000:.2f} ms of {steps} steps")
        by_op = {}
        for event in shown:
            by_op.setdefault(event["args"]["op_name"], []).append(int(event["args"]["device_ns"]))
        for op, times in sorted(by_op.items(), key=lambda item: -sum(item[1])):
            print(f"      {op}: {len(times)} x {sum(times) / len(times) / 1000:.2f} us")


@section
def exporters_graph(_):
    """A float16 graph as exporters make it: what has no GPU kernel falls to the CPU, but no cache does. |error| <= 0.02 + 1 %."""
    base = os.path.join(ROOT, "tests", "fixtures", "exports", "preln-ts17-past-fp16")
    with open(base + ".json", encoding="utf8") as file:
        recorded = json.load(file)

    def array(value):
        return np.array(value["data"], dtype=value["dtype"]).reshape(value["shape"])

    session = gpu_session(base + ".onnx")
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {name: array(value) for name, value in recorded["inputs"].items()})
    for name, value in zip(names, found):
        close(value, array(recorded["outputs"][name]), 0.02, 0.01, name)


@section
def exporters_ops(_):
    """What exporters write around attention, on the GPU alone: growing caches, masks, norms in parts. Floats within 0.002 + 1 %."""
    half, integer, boolean = TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL
    generator = np.random.default_rng(13)
    x = generator.uniform(-2, 2, (2, 3, 8)).astype(np.float16)
    past = generator.uniform(-2, 2, (2, 5, 8)).astype(np.float16)
    ids = generator.integers(-3, 4, (4, 7))
    inputs = {"X": (half, x), "P": (half, past), "I": (integer, ids)}
    least = np.iinfo(np.int64).min
    nodes, constants, expected = [], {}, {}

    def node(op, names, value, element, **attributes):
        return several(op, names, [value], element, **attributes)[0]

    def several(op, names, values, element, **attributes):
        outputs = [f"y{len(expected) + index}" for index in range(len(values))]
        nodes.append(helper.make_node(op, names, outputs, f"{op}{len(expected)}", **attributes))
        expected.update((output, (element, value)) for output, value in zip(outputs, values))
        return outputs

    def constant(values, dtype=np.int64):
        name = f"c{len(constants)}"
        constants[name] = np.array(values, dtype)
        return name

    node("Concat", ["P", "X"], np.concatenate([past, x], 1), half, axis=1)
    node("Concat", ["X", "P", "X"], np.concatenate([x, past, x], 1), half, axis=-2)
    for starts, ends, axes, steps, value in (
        ([1], [least + 1], [1], [-1], ids[:, 1::-1]),
        ([-3, 0], [2**62, 3], [1, 0], [2, 1], ids[:3, -3::2]),
        ([9], [20], [1], [1], ids[:, 9:20]),
        ([-1, -1], [-99, -99], [0, 1], [-2, -3], ids[::-2, ::-3]),
        ([-99], [-1], [1], [4], ids[:, :-1:4]),
    ):
        node("Slice", ["I", *map(constant, (starts, ends, axes, steps))], value, integer)
    node("Slice", ["P", constant([1]), constant([4]), constant([1])], past[:, 1:4], half)
    zero = constant(0)
    for op, value in (("Equal", ids == 0), ("Less", ids < 0), ("LessOrEqual", ids <= 0), ("Greater", ids > 0), ("GreaterOrEqual", ids >= 0)):
        node(op, ["I", zero], value, boolean)
    less, more = (f"y{len(expected) - back}" for back in (4, 2))
    either = node("Or", [less, more], ids != 0, boolean)
    node("Not", [either], ids == 0, boolean)
    node("And", [less, either], ids < 0, boolean)
    node("CumSum", ["I", constant(1)], np.cumsum(ids, 1), integer)
    node("CumSum", ["I", constant(-2)], np.cumsum(ids[::-1], 0)[::-1] - ids, integer, exclusive=1, reverse=1)
    wide = x.astype(np.float64)
    square = node("Pow", ["X", constant(2, np.float16)], wide**2, half)
    mean = node("ReduceMean", [square], (wide**2).mean(2, keepdims=True), half, axes=[-1])
    node("Sqrt", [mean], np.sqrt((wide**2).mean(2, keepdims=True)), half)
    for op, value in (("Neg", -wide), ("Abs", abs(wide)), ("Exp", np.exp(wide)), ("Tanh", np.tanh(wide))):
        node(op, ["X"], value, half)
    node("Neg", ["I"], -ids, integer)
    least_score = np.finfo(np.float16).min
    masked = constant(np.where(x > 0, x, -np.inf), np.float16)
    node("Max", [masked, constant(least_score, np.float16)], np.where(x > 0, x, least_score), half)
    node("Min", ["X", constant(past[:, :1], np.float16)], np.minimum(x, past[:, :1]), half)
    node("Xor", [less, more], ids != 0, boolean)
    node("ReduceMin", ["I"], ids.min(1), integer, axes=[1], keepdims=0)
    node("ReduceSum", ["I", constant([0])], ids.sum(0, keepdims=True), integer)
    node("ReduceSum", ["X", constant([1, 2])], wide.sum((1, 2)), half, keepdims=0)
    several("Split", ["P"], np.split(past, 4, 2), half, axis=2)
    several("Split", ["I", constant([3, 0, 1])], np.split(ids, [3, 3], 0), integer)
    node("Range", [constant(value, np.float32) for value in (2.5, -1.0, -0.75)], np.arange(2.5, -1.0, -0.75), TensorProto.FLOAT)

    shaped = [helper.make_tensor_value_info(name, element, value.shape) for name, (element, value) in inputs.items()]
    outputs = [helper.make_tensor_value_info(name, element, value.shape) for name, (element, value) in expected.items()]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "exporters", shaped, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = gpu_session(model.SerializeToString(), config=ON_GPU_ONLY, level=ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    found = session.run(list(expected), {name: value for name, (_, value) in inputs.items()})
    names = {output: one.name for one in nodes for output in one.output}
    for value, (output, (element, wanted)) in zip(found, expected.items()):
        name = names[output]
        check(value.shape == wanted.shape, f"{name}: shape {value.shape}, expected {wanted.shape}")
        if element in (half, TensorProto.FLOAT):
            close(value, wanted, 0.002, 0.01, name)
        else:
            check(np.array_equal(value, wanted), f"{name}: {value}, expected {wanted}")


@section
def bad_inputs(models):
    """Token numbers beyond the table are an error that names the node, and the session goes on."""
    decoder = Decoder(gpu_session(os.path.join(models, "sparse80", "model.onnx"), config=ON_GPU_ONLY))
    ones = np.ones((1, 4), np.int64)
    good, _ = decoder.run(ones * 7, ones, np.arange(4)[None])
    for table, bad_ids, bad_positions in (
        ("embed_tokens", ones * 8192, np.arange(4)[None]),
        ("embed_positions", ones, np.arange(4)[None] + 5000),
    ):
        try:
            decoder.run(bad_ids, ones, bad_positions)
        except Exception as error:  # noqa: BLE001
            print(f"    {str(error)[:200]}")
            check(f"Gather node '/model/decoder/{table}/Gather': an index" in str(error), str(error))
        else:
            check(False, "an index beyond its table was taken")
    again, _ = decoder.run(ones * 7, ones, np.arange(4)[None])
    check(np.array_equal(good, again), "a run after an error differs")


@section
def two_sessions(models):
    """Two sessions and several runs at once give what each gives alone, bit for bit."""
    sessions = [Decoder(gpu_session(os.path.join(models, name, "model.onnx"))) for name in ("sparse80", "dense16")]
    generator = np.random.default_rng(6)
    inputs = [sequences(generator, 8000, [n, n + 9]) for n in (3, 30, 90)]
    expected = [[decoder.run(*one)[0] for one in inputs] for decoder in sessions]

    def work(decoder, wanted):
        for _ in range(10):
            for one, logits in zip(inputs, wanted):
                check(np.array_equal(decoder.run(*one)[0], logits), "a run beside others differs")

    at_once([lambda d=d, e=e: work(d, e) for d, e in zip(sessions, expected) for _ in range(3)])


@section
def faults_of_runs(models):
    """Of runs at once, those alone fail whose inputs a kernel found wrong."""
    decoder = Decoder(gpu_session(os.path.join(models, "sparse80", "model.onnx")))
    generator = np.random.default_rng(9)
    ids, mask, positions = sequences(generator, 8000, [9, 40])
    expected, _ = decoder.run(ids, mask, positions)

    def good():
        for _ in range(40):
            check(np.array_equal(decoder.run(ids, mask, positions)[0], expected), "a sound run beside a wrong one differs")

    def bad():
        for _ in range(40):
            try:
                decoder.run(ids + 9000, mask, positions)
            except Exception as error:  # noqa: BLE001
                check("index" in str(error), str(error))
            else:
                check(False, "a wrong run beside sound ones was taken")

    at_once([good, bad, good, bad])


@section
def computed_weight(_):
    """Gemm with a weight that the kernels ahead of it compute, as an adapter's product is, which it may not read early."""
    rows, columns, rank, tokens = 1536, 512, 64, 8
    shapes = {"X": [tokens, columns], "A": [rows, rank], "B": [rank, columns], "Y": [tokens, rows]}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name, shape in shapes.items()}
    nodes = [helper.make_node("MatMul", ["A", "B"], ["W"]), helper.make_node("Gemm", ["X", "W"], ["Y"], transB=1)]
    graph = helper.make_graph(nodes, "adapter", [values[name] for name in "XAB"], [values["Y"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = gpu_session(model.SerializeToString(), config=ON_GPU_ONLY)
    generator = np.random.default_rng(10)
    for repeat in range(20):
        x, a, b = (generator.uniform(-1, 1, shapes[name]).astype(np.float16) for name in "XAB")
        weight = (a.astype(np.float32) @ b.astype(np.float32)).astype(np.float16).astype(np.float64)
        expected = x.astype(np.float64) @ weight.T
        found = session.run(None, {"X": x, "A": a, "B": b})[0]
        check(np.abs(found - expected).max() <= 4e-3 * np.abs(expected).max(), f"run {repeat} is wrong")


@section
def recorded_copies(_):
    """A run that gets or gives something in host memory is not recorded, and says why; with gpu_graph_id -1 it is run."""
    weight = random_weight(np.random.default_rng(11), 64, 64, 0.5)
    session = gpu_session(sparse_matmul_model(weight), {"cuda_graph": "1"}, ON_GPU_ONLY)
    x = np.ones((1, 2, 64), np.float16)
    expected = x.astype(np.float64) @ weight.astype(np.float64).T
    try:  # ONNX Runtime repeats a first run until it is recorded
        session.run(None, {"X": x})
    except Exception as error:  # noqa: BLE001
        check("gpu_graph_id -1" in str(error), str(error))
    else:
        check(False, "copies of host memory were recorded")
    for _ in range(3):
        close(session.run(None, {"X": x}, plain_run())[0], expected, 0.05, 0.01, "not to be recorded")


@section
def graphs_at_once(models):
    """Threads that record and replay graphs of one session at once get what each gets alone, bit for bit."""
    decoder = Decoder(gpu_session(os.path.join(models, "sparse80", "model.onnx"), {"cuda_graph": "1"}, ON_GPU_ONLY))

    def text(number, graph):
        lengths, steps = [5 + number, 12], 12
        prompt, mask, positions = sequences(np.random.default_rng(number), 8000, lengths)
        state = Static(decoder, len(lengths), 64, 8192, graph)
        found = [state.prefill(prompt, mask, positions)[:, -1:]]
        for step in range(steps):
            mask = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
            at = (mask.sum(axis=1) - 1)[:, None]
            found.append(state.step(found[-1].argmax(axis=2), mask.shape[1] - 1, at))
        return np.concatenate(found, axis=1).view(np.uint16)

    expected = [text(number, number) for number in range(3)]

    def work(number):
        for repeat in range(3):
            graph = 10 + 3 * repeat + number
            check(np.array_equal(text(number, graph), expected[number]), "a graph beside others differs")

    at_once([lambda number=number: work(number) for number in range(3)])


@section
def two_devices(models):
    """Sessions on two GPUs at once, with CUDA graphs and without, give what one gives alone, bit for bit; tensors cross between them."""
    if gpu_count() < 2:
        print("    one GPU: nothing to do")
        return
    path, capacity, steps = os.path.join(models, "sparse80", "model.onnx"), 64, 30
    generator = np.random.default_rng(8)
    prompt, prompt_mask, prompt_positions = sequences(generator, 8000, [6, 11])
    fresh = generator.integers(4, 8000, (2, steps))

    def text(decoder):
        """Logits of a prompt and of steps that are recorded and replayed."""
        state = Static(decoder, 2, capacity, 8192)
        found, mask = [state.prefill(prompt, prompt_mask, prompt_positions)[:, -1:]], prompt_mask
        for step in range(steps):
            mask = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
            at = (mask.sum(axis=1) - 1)[:, None]
            found.append(state.step(fresh[:, step : step + 1], mask.shape[1] - 1, at))
        return np.concatenate(found, axis=1).view(np.uint16)

    recorded = [Decoder(gpu_session(path, {"cuda_graph": "1"}, ON_GPU_ONLY, device=i), i) for i in range(2)]
    plain = [Decoder(gpu_session(path, config=ON_GPU_ONLY, device=i), i) for i in range(2)]
    wanted, logits = text(recorded[0]), plain[0].run(prompt, prompt_mask, prompt_positions)[0]
    ids, mask = np.concatenate([prompt, fresh], axis=1), np.concatenate([prompt_mask, np.ones((2, steps), np.int64)], axis=1)
    expected = OptReference(path).logits(ids, mask, np.maximum(np.cumsum(mask, axis=1) - 1, 0))[:, 10:]
    close(wanted.view(np.float16), expected, 0.06, 0.01, f"{steps} steps")

    def work(one, expected):
        for _ in range(5):
            check(np.array_equal(one(), expected), "a GPU beside another gives something else")

    tasks = [(lambda i=i: text(recorded[i]), wanted) for i in range(2)]
    tasks += [(lambda i=i: plain[i].run(prompt, prompt_mask, prompt_positions)[0], logits) for i in range(2)]
    at_once([lambda task=task: work(*task) for task in tasks])

    # Caches that one GPU has written are read by a session on the other: ONNX Runtime has them copied.
    states = [InPlace(decoder, 2, capacity) for decoder in plain]
    for state in states:
        state.run(prompt, prompt_mask, prompt_positions)
    mask = np.concatenate([prompt_mask, np.ones((2, 1), np.int64)], axis=1)
    at = (mask.sum(axis=1) - 1)[:, None]
    binding = plain[1].session.io_binding()
    for name, array in (("input_ids", fresh[:, :1]), ("attention_mask", mask), ("position_ids", at)):
        binding.bind_cpu_input(name, np.ascontiguousarray(array))
    binding.bind_output("logits", "cpu")
    for cache, elsewhere, here in zip(plain[1].caches, states[0].buffers, InPlace(plain[1], 2, capacity).buffers):
        binding.bind_ortvalue_input(cache.name, elsewhere)
        binding.bind_ortvalue_output(cache.name.replace("past_key_values", "present"), here)
    plain[1].session.run_with_iobinding(binding)
    expected = states[1].run(np.ascontiguousarray(fresh[:, :1]), mask, at)
    check(np.array_equal(binding.get_outputs()[0].numpy(), expected), "caches of the other GPU give other logits")


@section
def out_of_memory(models):
    """A batch that does not fit is an error with what was needed and free; then the session works as before."""
    decoder = Decoder(gpu_session(os.path.join(models, "sparse80", "model.onnx")))
    ones = np.ones((1, 4), np.int64)
    good, _ = decoder.run(ones * 7, ones, np.arange(4)[None])
    hoard = []
    for size in (1 << 33, 1 << 30, 1 << 27):  # bytes: until the GPU is all but full
        while True:
            check(len(hoard) < 200, "memory without end")
            block = ort.OrtValue.ortvalue_from_shape_and_type([size], np.uint8, GPU, 0)
            if block.data_ptr() == 0:  # how ONNX Runtime shows that an allocator had nothing left
                break
            hoard.append(block)
    print(f"    {len(hoard)} blocks fill the GPU")
    big = np.full((64, 1000), 7, np.int64)
    try:
        logits, _ = decoder.run(big, np.ones_like(big), np.tile(np.arange(1000), (64, 1)))
        check(False, "a batch of 64 x 1000 fitted into a full GPU")
    except AssertionError:
        raise
    except Exception as error:  # noqa: BLE001
        print(f"    {str(error)[:300]}")
        check("memory" in str(error), str(error))
    hoard.clear()
    again, _ = decoder.run(ones * 7, ones, np.arange(4)[None])
    check(np.array_equal(good, again), "a run after an error differs")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", default=os.path.join(ROOT, "native", "linux-x64", "libonnxruntime_ep_flashllm.so"))
    parser.add_argument("--models", default=os.path.join(ROOT, "build", "gpu-models"))
    parser.add_argument("sections", nargs="*")
    arguments = parser.parse_args()
    print("onnxruntime", ort.__version__)
    # A relative path would be taken from onnxruntime's own folder.
    ort.register_execution_provider_library("flashllm", os.path.abspath(arguments.library))
    failed = []
    for one in SECTIONS:
        if arguments.sections and one.__name__ not in arguments.sections:
            continue
        start = time.time()
        print(f"{one.__name__}: {one.__doc__.splitlines()[0]}", flush=True)
        try:
            one(arguments.models)
            print(f"  passed in {time.time() - start:.1f} s", flush=True)
        except Exception:  # noqa: BLE001
            failed.append(one.__name__)
            traceback.print_exc(limit=4, file=sys.stdout)
            print(f"  FAILED in {time.time() - start:.1f} s", flush=True)
    print("failed:", ", ".join(failed) if failed else "nothing")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
