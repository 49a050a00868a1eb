// Threads for loading weights: they check, copy and sum while the one that makes the session's kernels waits.
#pragma once

#include <cstddef>
#include <functional>

namespace flashllm::ep {

/// How many parts of a work that reads memory are worth running at once: one thread copies from the page cache at some
/// 8 GB/s.
size_t LoadWorkers();

/// Calls run(0) to run(parts - 1) at once, each on a thread of its own (at most LoadWorkers() parts; part 0 on the
/// caller's), and waits for all. The threads are kept for the next call. One call at a time goes on in the process.
/// Rethrows the exception of the first part that threw one.
void RunAtOnce(size_t parts, const std::function<void(size_t)>& run);

/// Ends the threads. The next call makes new ones.
void ReleaseLoadWorkers() noexcept;

}  // namespace flashllm::ep
