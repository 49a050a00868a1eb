"""NVIDIA's compute-sanitizer over the GPU tests: every tool on every program that can end in reasonable time under it.

    npm run test:gpu:sanitize        builds the programs and runs this
    python tests/gpu/sanitize.py [--tool memcheck ...] [--program spmm_test ...] [--seconds 300] [--build build/gpu-tools]

It needs compute-sanitizer of the CUDA toolkit, the programs of tests/gpu, and for `provider` what ep_test.py needs. Exit code 0: no
tool found anything. A program that is not there is left out, and named; to have run none is an error.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FINDINGS = 86  # the exit code that the sanitizer is asked for

# Each with the few cases that end in reasonable time under a tool that follows every access.
PROGRAMS = {
    "spmm_test": ["--tiny"],
    "dense_matmul_test": ["--quick"],
    "prefill_test": ["--quick"],
    "decoder_test": ["--tiny"],
    "pruning_test": [],
    "provider": ["sparse_matmul", "rows", "cuda_graph", "profile", "bad_inputs"],
}
# What a tool is told besides. Four barriers a run, sixteen runs and the rings of X on every multiprocessor are more than it follows by
# itself, and where it loses some, kernels fail under it.
OPTIONS = {
    "synccheck": ["--num-cuda-barriers", "131072"],
}
# What a tool takes other cases of, or none.
EXCEPTIONS = {
    ("racecheck", "pruning_test"): None,  # cuBLAS, and shared memory in every kernel
}


def command(program, tool, arguments):
    """What is run, or why it is not."""
    cases = EXCEPTIONS.get((tool, program), PROGRAMS[program])
    if cases is None:
        return None, "takes too long under this tool"
    if program == "provider":
        for path in (arguments.library, arguments.models):
            if not os.path.exists(path):
                return None, f"{path} is not there"
        test = os.path.join(ROOT, "tests", "gpu", "ep_test.py")
        return [sys.executable, test, "--library", arguments.library, "--models", arguments.models, *cases], ""
    path = os.path.join(arguments.build, "tests", "gpu", program)
    if not os.path.exists(path):
        return None, f"{path} is not there: npm run build:gpu-tools"
    return [path, *cases], ""


def run(tool, what, seconds):
    """(verdict, output)"""
    sanitizer = ["compute-sanitizer", "--tool", tool, *OPTIONS.get(tool, []), "--error-exitcode", str(FINDINGS), "--print-limit", "3"]
    try:
        done = subprocess.run(
            [*sanitizer, *what], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout or b""
        return f"did not end in {seconds} s", output.decode(errors="replace") if isinstance(output, bytes) else output
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", done.stdout)
    if done.returncode == 77:
        return "no GPU", done.stdout
    if done.returncode == 0 and summary and summary[-1].startswith("0 "):
        return "", done.stdout
    return f"exit code {done.returncode}, {summary[-1] if summary else 'no summary'}", done.stdout


def excerpt(output):
    """The first findings of a tool, and how the program ended."""
    lines = output.splitlines()
    return [line for line in lines if line.startswith("=========")][:40] + ["..."] + lines[-20:]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tool", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--program", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--seconds", type=int, default=300, help="the most for one program under one tool")
    parser.add_argument("--build", default=os.path.join(ROOT, "build", "gpu-tools"))
    parser.add_argument("--library", default=os.path.join(ROOT, "native", "linux-x64", "libonnxruntime_ep_flashllm.so"))
    parser.add_argument("--models", default=os.path.join(ROOT, "build", "gpu-models"))
    arguments = parser.parse_args()
    if shutil.which("compute-sanitizer") is None:
        raise SystemExit("compute-sanitizer was not found. It is part of the CUDA toolkit; put its folder on PATH")
    failed, ran = [], 0
    for tool in arguments.tool:
        for program in arguments.program:
            what, reason = command(program, tool, arguments)
            if what is None:
                print(f"{tool:10} {program:18} left out: {reason}", flush=True)
                continue
            ran += 1
            start = time.time()
            verdict, output = run(tool, what, arguments.seconds)
            print(f"{tool:10} {program:18} {verdict or 'nothing found'}, {time.time() - start:.1f} s", flush=True)
            if verdict:
                failed.append(f"{tool} {program}")
                print("\n".join("    " + line for line in excerpt(output)), flush=True)
    if ran == 0:
        raise SystemExit("nothing was run: every program was left out")
    print("failed:", ", ".join(failed) if failed else "nothing")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
