"""How a model is loaded onto a GPU: seconds to a session, weights' bytes a second against what the bus gives, memory.

    python bench/load/load.py MODEL.onnx [--library native/linux-x64/libonnxruntime_ep_flashllm.so] [--json FILE] [--commit HASH]

`MODEL.onnx` comes from `flashllm export` and `rewrite`, or is one that bench/decode/random_model.py made (then with
--no-checksum). The file is read once before, so that disks do not count. It needs onnxruntime 1.30 and torch, which measures the
bus: copies of 1 GiB from pinned memory. The rate is the provider's: bytes over the time from the first byte to the last.
"""

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time

import onnxruntime as ort
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LINE = re.compile(
    r"ready after ([\d.]+) s: ([\d.]+) MB sent at ([\d.]+) GB/s; the process holds ([\d.]+) MB of its memory, at most ([\d.]+) MB"
)
WHERE = re.compile(
    r"first byte was sent ([\d.]+) s after .* last arrived ([\d.]+) s later; meanwhile each of (\d+) threads on average checked"
    r" weights for ([\d.]+) s, copied for ([\d.]+) s and waited for the bus for ([\d.]+) s and had nothing to send for"
    r" ([\d.]+) s; layouts were waited for for ([\d.]+) s and took ([\d.]+) s"
)
PARTS = ["firstByte", "toLastByte", "threads", "checking", "copying", "waitingForBus", "nothingToSend", "waitingForLayouts"]
PARTS += ["layouts"]


def bus():
    """GB/s of copies to the GPU from pinned memory: the best of five."""
    host = torch.empty(1 << 30, dtype=torch.uint8, pin_memory=True)
    device = torch.empty_like(host, device="cuda")
    best = 0.0
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        device.copy_(host, non_blocking=True)
        torch.cuda.synchronize()
        best = max(best, host.numel() / (time.perf_counter() - start) / 1e9)
    return best


def read_once(model):
    """Brings the model's files into the page cache."""
    folder = os.path.dirname(os.path.abspath(model))
    for name in os.listdir(folder):
        with open(os.path.join(folder, name), "rb") as file:
            while file.read(1 << 26):
                pass


def logged(action):
    """(result of an action, what it wrote to standard error)"""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            result = action()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        return result, file.read().decode(errors="replace")


def load(model, checksum):
    """One session: what the provider says of it, and the seconds that the caller saw."""
    options = ort.SessionOptions()
    options.log_severity_level = 1
    device = next(
        d
        for d in ort.get_ep_devices()
        if d.ep_name == "FlashLLMExecutionProvider" and d.device.type == ort.OrtHardwareDeviceType.GPU
    )
    options.add_provider_for_devices([device], {"verify_checksum": "1" if checksum else "0"})
    start = time.perf_counter()
    session, log = logged(lambda: ort.InferenceSession(model, options, enable_fallback=0))
    took = time.perf_counter() - start
    del session
    line = LINE.search(log)
    if line is None:
        raise SystemExit("the provider did not say how it loaded. Its log:\n" + log[-2000:])
    _, sent, rate, holds, most = map(float, line.groups())
    where = WHERE.search(log)
    parts = dict(zip(PARTS, map(float, where.groups()))) if where else {}
    return {"seconds": took, "sentMB": sent, "sentGBs": rate, "holdsMB": holds, "atMostMB": most, "where": parts}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--library", default=os.path.join(ROOT, "native", "linux-x64", "libonnxruntime_ep_flashllm.so"))
    parser.add_argument("--no-checksum", action="store_true", help="do not verify the checksums of packed weights")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--commit", default="")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    ort.register_execution_provider_library("flashllm", os.path.abspath(arguments.library))
    read_once(arguments.model)
    rows = [load(arguments.model, not arguments.no_checksum) for _ in range(arguments.repeats)]
    result = {
        "what": "loading a model onto a GPU",
        "date": time.strftime("%Y-%m-%d"),
        "commit": arguments.commit,
        "gpu": torch.cuda.get_device_name(),
        "onnxruntime": ort.__version__,
        "torch": torch.__version__,
        "model": os.path.basename(os.path.dirname(os.path.abspath(arguments.model))),
        "checksum": not arguments.no_checksum,
        "busGBs": bus(),
        "rows": rows,
    }
    for row in rows:
        print(
            f"{row['seconds']:.2f} s, {row['sentMB']:.0f} MB sent at {row['sentGBs']:.1f} GB/s"
            f" ({100 * row['sentGBs'] / result['busGBs']:.0f} % of {result['busGBs']:.1f}), {row['holdsMB']:.0f} MB held,"
            f" at most {row['atMostMB']:.0f} MB",
            flush=True,
        )
        print("    " + ", ".join(f"{name} {value:g}" for name, value in row["where"].items()), flush=True)
    print(f"median {statistics.median(row['seconds'] for row in rows):.2f} s")
    if arguments.json:
        with open(arguments.json + ".part", "w", encoding="utf8") as file:
            json.dump(result, file, indent=1)
        os.replace(arguments.json + ".part", arguments.json)


if __name__ == "__main__":
    main()
