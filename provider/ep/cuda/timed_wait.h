// Waiting for work that takes about as long every time.
#pragma once

#include <algorithm>
#include <chrono>
#include <thread>

namespace flashllm::ep {

/// Waits for one and the same work on a GPU, again and again: sleeps until shortly before it should be done, then asks
/// until it is. A thread that sleeps on an event wakes late, by the way of an interrupt: 150 to 200 µs on a virtual
/// machine, 4 % of a decode step (docs/decode-step.md). How long to sleep is learned from how long the asking took.
template <typename Clock = std::chrono::steady_clock>
class TimedWait {
 public:
  using Time = typename Clock::time_point;
  using Duration = typename Clock::duration;

  /// The work has been given to the GPU.
  void Begin() { began_ = Clock::now(); }

  /// Returns when it is done. `is_done()` asks; `sleep(Time until)` sleeps, not at all where that is past; `block()`
  /// waits for as long as it takes, which is right where nothing is known of the work, and where it is short.
  template <typename IsDone, typename Sleep, typename Block>
  void End(const IsDone& is_done, const Sleep& sleep, const Block& block) {
    if (sleep_ > Duration::zero()) {
      sleep(began_ + sleep_);
      const Time woke = Clock::now();
      const Duration aim = std::max<Duration>(kLeastAsking, sleep_ / kAskingShare);
      if (is_done()) {  // slept too long, nobody knows by how much
        sleep_ = std::max(Duration::zero(), sleep_ - std::max(aim, sleep_ / 16));
        return;
      }
      for (Time now = woke; now - woke < std::max<Duration>(kPatience, sleep_ / 2); now = Clock::now()) {
        if (is_done()) {
          sleep_ = std::max(Duration::zero(), sleep_ + (now - woke - aim) / 2);
          return;
        }
        std::this_thread::yield();
      }
    }
    block();
    const Duration took = Clock::now() - began_;
    // Of work that is longer for once, the next wait must not sleep through its end.
    const Duration most = sleep_ == Duration::zero() ? took : sleep_ + sleep_ / 8;
    sleep_ = took < kShort ? Duration::zero() : std::min(took * 3 / 4, most);
  }

 private:
  /// Asking takes a core, so it should take little of the time: a fiftieth, though not less than a sleep is inexact.
  static constexpr int kAskingShare = 50;
  static constexpr std::chrono::microseconds kLeastAsking{50}, kPatience{200}, kShort{400};

  Time began_{};
  Duration sleep_ = Duration::zero();  // from the beginning; 0: not known yet
};

}  // namespace flashllm::ep
