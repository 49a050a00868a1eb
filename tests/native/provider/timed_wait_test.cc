#include "provider/ep/cuda/timed_wait.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <random>

using namespace std::chrono_literals;

namespace {

/// A clock that stands still but for what the test spends.
struct FakeClock {
  using duration = std::chrono::nanoseconds;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<FakeClock>;
  static constexpr bool is_steady = true;
  static time_point now() { return time; }
  static inline time_point time{};
};

/// A GPU whose work takes what the test says, asked at 2 µs each, on a machine that wakes sleepers late: from a sleep
/// by 20 to 90 µs, from an event by 150.
class Machine {
 public:
  /// One piece of work, waited for. How late the wait returned.
  FakeClock::duration Run(FakeClock::duration took) {
    const FakeClock::time_point end = FakeClock::time + took;
    wait_.Begin();
    wait_.End(
        [&] {
          ++asked;
          FakeClock::time += 2us;
          return FakeClock::time >= end;
        },
        [&](FakeClock::time_point until) {
          if (until > FakeClock::time) FakeClock::time = until + std::chrono::microseconds(20 + random_() % 70);
        },
        [&] {
          ++blocked;
          FakeClock::time = std::max(FakeClock::time, end) + 150us;
        });
    CHECK(FakeClock::time >= end);
    return FakeClock::time - end;
  }

  int asked = 0, blocked = 0;

 private:
  flashllm::ep::TimedWait<FakeClock> wait_;
  std::mt19937 random_{7};
};

}  // namespace

TEST_CASE("work of a known length is waited for by sleeping, then by asking for a little") {
  for (const FakeClock::duration took :
       {FakeClock::duration(1ms), FakeClock::duration(2600us), FakeClock::duration(20ms)}) {
    Machine machine;
    for (int i = 0; i < 20; ++i) machine.Run(took);  // it learns
    machine.asked = machine.blocked = 0;
    FakeClock::duration late{}, latest{};
    for (int i = 0; i < 200; ++i) {
      const FakeClock::duration by = machine.Run(took + std::chrono::microseconds(i % 7 * 3));
      late += by, latest = std::max(latest, by);
    }
    CHECK(late / 200 < 25us);
    CHECK(latest < 100us);
    CHECK(machine.blocked == 0);
    const FakeClock::duration asking = machine.asked * FakeClock::duration(2us) / 200;
    CHECK(asking < std::max<FakeClock::duration>(80us, took / 25));
  }
}

TEST_CASE("short work is waited for by its event alone") {
  Machine machine;
  for (int i = 0; i < 50; ++i) machine.Run(200us);
  CHECK(machine.blocked == 50);
  CHECK(machine.asked == 0);
}

TEST_CASE("work that becomes shorter or longer is learned anew") {
  Machine machine;
  for (int i = 0; i < 20; ++i) machine.Run(4ms);
  for (int i = 0; i < 40; ++i) machine.Run(2ms);
  CHECK(machine.Run(2ms) < 100us);
  for (int i = 0; i < 40; ++i) machine.Run(5ms);
  machine.blocked = 0;
  CHECK(machine.Run(5ms) < 100us);
  CHECK(machine.blocked == 0);
}

TEST_CASE("one piece of work that is longer hardly delays the next") {
  Machine machine;
  for (int i = 0; i < 30; ++i) machine.Run(3ms);
  machine.Run(30ms);
  CHECK(machine.Run(3ms) < 600us);
}
