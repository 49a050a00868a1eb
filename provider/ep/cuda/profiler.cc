#include "provider/ep/cuda/profiler.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "provider/ep/cuda/call.h"
#include "provider/ep/json.h"
#include "provider/ep/options.h"

namespace flashllm::ep {
namespace {

/// As many events as ONNX Runtime keeps of its own.
constexpr size_t kMostEvents = 1000000;

int64_t HostNanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

int64_t NanosecondsBetween(cudaEvent_t begin, cudaEvent_t end) {
  float milliseconds = 0;
  CheckCuda(cudaEventElapsedTime(&milliseconds, begin, end), "reading the time of a kernel");
  return std::llround(1e6 * static_cast<double>(milliseconds));
}

/// As ONNX Runtime must be given a text: it writes it into a JSON string as it is.
std::string Escaped(const std::string& text) {
  const std::string quoted = JsonString(text);
  return quoted.substr(1, quoted.size() - 2);
}

/// A moment that host and device share. Events tell times between two of them only; measured from a moment that is
/// close, a 32-bit float of milliseconds resolves better than the device does.
class SharedMoment {
 public:
  explicit SharedMoment(cudaEvent_t event) : event_(event) {
    const OwnStream stream;
    const int64_t before = HostNanoseconds();
    CheckCuda(cudaEventRecord(event, stream.get()), "recording an event");
    CheckCuda(cudaEventSynchronize(event), "waiting for an event");
    host_ = before + (HostNanoseconds() - before) / 2;
  }

  int64_t HostTimeOf(cudaEvent_t event) const { return host_ - NanosecondsBetween(event, event_); }

 private:
  const cudaEvent_t event_;
  int64_t host_ = 0;
};

/// What an event takes: the time between two with nothing between them. One goes before a kernel and one behind it, and
/// the time between those is longer than the kernel's by two of these (found on an H100, with kernels of known length,
/// in streams and in graphs).
int64_t TimeOfEvent(const std::vector<TimedLaunch>& pairs) {
  const OwnStream stream;
  for (const TimedLaunch& pair : pairs) {
    CheckCuda(cudaEventRecord(pair.begin, stream.get()), "recording an event");
    CheckCuda(cudaEventRecord(pair.end, stream.get()), "recording an event");
  }
  std::vector<int64_t> times;
  for (const TimedLaunch& pair : pairs) {
    CheckCuda(cudaEventSynchronize(pair.end), "waiting for an event");
    times.push_back(NanosecondsBetween(pair.begin, pair.end));
  }
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

/// One line of the profile.
struct KernelEvent {
  const char* op;
  std::string node;
  int64_t start, nanoseconds;  // start: on the host's clock
  bool replayed;
};

/// Launches whose events go back to where they came from at the end of a scope, whatever was thrown in it.
struct Lent {
  KernelTimes* const times;
  std::vector<TimedLaunch> launches = {};

  ~Lent() { times->Recycle(&launches); }
};

struct ReleaseEvent {
  void operator()(OrtProfilingEvent* event) const { g_ort.ep->ReleaseProfilingEvent(event); }
};

}  // namespace

/// A profile of a session or of a run. ONNX Runtime tells it of each of its own events, on the thread that computes
/// between their beginning and end: so a launch finds the profile that it belongs to.
class Profiler : public OrtEpProfilerImpl {
 public:
  explicit Profiler(std::shared_ptr<KernelTimes> times) : OrtEpProfilerImpl{}, times_(std::move(times)) {
    ort_version_supported = g_ort.version;
    OrtEpProfilerImpl::Release = [](OrtEpProfilerImpl* self) noexcept { delete static_cast<Profiler*>(self); };
    StartProfiling = [](OrtEpProfilerImpl* self, int64_t offset) noexcept -> OrtStatus* {
      return Guard([&] { static_cast<Profiler*>(self)->Start(offset); });
    };
    StartEvent = [](OrtEpProfilerImpl* self, uint64_t) noexcept -> OrtStatus* {
      return Guard([&] { running.push_back(static_cast<Profiler*>(self)); });
    };
    StopEvent = [](OrtEpProfilerImpl* self, uint64_t, const OrtProfilingEvent*) noexcept -> OrtStatus* {
      const auto last = std::find(running.rbegin(), running.rend(), static_cast<Profiler*>(self));
      if (last != running.rend()) running.erase(std::next(last).base());
      return nullptr;
    };
    EndProfiling = [](OrtEpProfilerImpl* self, OrtProfilingEventsContainer* events) noexcept -> OrtStatus* {
      return Guard([&] { static_cast<Profiler*>(self)->End(events); });
    };
  }
  ~Profiler() {
    times_->Detach(this);
    times_->Recycle(&pending_);
  }

  /// The profile whose event of this thread is the innermost, if it is one of `times`.
  static Profiler* OfThisThread(const KernelTimes* times) {
    return !running.empty() && running.back()->times_.get() == times ? running.back() : nullptr;
  }

  void Add(TimedLaunch&& launch) {
    std::lock_guard<std::mutex> lock(mutex_);
    pending_.push_back(std::move(launch));
  }

  /// Reads the events that have happened; `wait`: of all.
  void Collect(bool wait) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto happened = [&](const TimedLaunch& launch) {
      if (wait) CheckCuda(cudaEventSynchronize(launch.end), "the work on the GPU");
      return wait || cudaEventQuery(launch.end) == cudaSuccess;
    };
    const auto rest = std::stable_partition(pending_.begin(), pending_.end(), happened);
    Lent done{times_.get()};
    done.launches.assign(std::make_move_iterator(pending_.begin()), std::make_move_iterator(rest));
    pending_.erase(pending_.begin(), rest);
    Keep(done.launches, false);
  }

  void AddReplay(const std::vector<TimedLaunch>& launches) {
    std::lock_guard<std::mutex> lock(mutex_);
    Keep(launches, true);
  }

 private:
  void Start(int64_t offset) {
    offset_ = offset - HostNanoseconds();
    const DeviceScope scope(times_->device_);
    Lent pairs{times_.get()};
    times_->TakePairs(9, &pairs.launches);
    event_time_ = TimeOfEvent(pairs.launches);
    times_->Attach(this);
  }

  void Keep(const std::vector<TimedLaunch>& launches, bool replayed) {
    if (launches.empty() || events_.size() >= kMostEvents) return;
    Lent moment{times_.get()};
    times_->TakePairs(1, &moment.launches);
    const SharedMoment now(moment.launches[0].begin);
    for (const TimedLaunch& launch : launches) {
      const int64_t took = NanosecondsBetween(launch.begin, launch.end) - 2 * event_time_;
      events_.push_back(
          {launch.op, launch.node, now.HostTimeOf(launch.begin) + event_time_, std::max<int64_t>(took, 0), replayed});
    }
  }

  void End(OrtProfilingEventsContainer* container) {
    times_->Detach(this);
    const DeviceScope scope(times_->device_);
    Collect(true);
    std::lock_guard<std::mutex> lock(mutex_);
    for (const KernelEvent& event : events_) Report(event, container);
    events_.clear();
  }

  void Report(const KernelEvent& event, OrtProfilingEventsContainer* container) const {
    // The profile's own duration counts whole microseconds, which many kernels do not take.
    const std::string duration = std::to_string(event.nanoseconds), node = Escaped(event.node);
    const char* keys[] = {"op_name", "node", "provider", "device_ns", "cuda_graph"};
    const char* values[] = {event.op, node.c_str(), kEpName, duration.c_str(), event.replayed ? "1" : "0"};
    OrtProfilingEvent* made = nullptr;
    Check(g_ort.ep->CreateProfilingEvent(OrtProfilingEventCategory_KERNEL, -1, -1, node.c_str(),
                                         (offset_ + event.start) / 1000, (event.nanoseconds + 500) / 1000, keys, values,
                                         std::size(keys), &made));
    const std::unique_ptr<OrtProfilingEvent, ReleaseEvent> owned(made);
    const OrtProfilingEvent* const one = made;
    Check(g_ort.ep->ProfilingEventsContainer_AddEvents(container, &one, 1));
  }

  static thread_local std::vector<Profiler*> running;  // of the events that this thread is in

  const std::shared_ptr<KernelTimes> times_;
  int64_t offset_ = 0;  // added to the host's clock: time since ONNX Runtime began the profile
  int64_t event_time_ = 0;
  std::mutex mutex_;
  std::vector<TimedLaunch> pending_;
  std::vector<KernelEvent> events_;
};

thread_local std::vector<Profiler*> Profiler::running;

KernelTimes::~KernelTimes() {
  for (cudaEvent_t event : free_) static_cast<void>(cudaEventDestroy(event));
}

OrtEpProfilerImpl* KernelTimes::MakeProfiler() { return new Profiler(shared_from_this()); }

void KernelTimes::Attach(Profiler* profiler) {
  std::lock_guard<std::mutex> lock(profilers_mutex_);
  profilers_.push_back(profiler);
  active_ = static_cast<int>(profilers_.size());
}

void KernelTimes::Detach(Profiler* profiler) {
  std::lock_guard<std::mutex> lock(profilers_mutex_);
  profilers_.erase(std::remove(profilers_.begin(), profilers_.end(), profiler), profilers_.end());
  active_ = static_cast<int>(profilers_.size());
}

void KernelTimes::Collect() noexcept {
  if (!active()) return;
  try {
    const DeviceScope scope(device_);
    std::lock_guard<std::mutex> lock(profilers_mutex_);
    for (Profiler* profiler : profilers_) profiler->Collect(false);
  } catch (...) {
  }
}

void KernelTimes::CollectReplay(const std::vector<TimedLaunch>& launches) noexcept {
  try {
    const DeviceScope scope(device_);
    std::lock_guard<std::mutex> lock(profilers_mutex_);
    if (!profilers_.empty()) profilers_.back()->AddReplay(launches);
  } catch (...) {
  }
}

cudaEvent_t KernelTimes::TakeEvent() {
  {
    std::lock_guard<std::mutex> lock(events_mutex_);
    if (!free_.empty()) {
      const cudaEvent_t event = free_.back();
      free_.pop_back();
      return event;
    }
  }
  cudaEvent_t event = nullptr;
  CheckCuda(cudaEventCreateWithFlags(&event, cudaEventBlockingSync), "creating an event");
  return event;
}

void KernelTimes::TakePairs(size_t count, std::vector<TimedLaunch>* pairs) {
  pairs->resize(count);
  for (TimedLaunch& pair : *pairs) pair.begin = TakeEvent(), pair.end = TakeEvent();
}

void KernelTimes::Recycle(std::vector<TimedLaunch>* launches) noexcept {
  std::lock_guard<std::mutex> lock(events_mutex_);
  for (const TimedLaunch& launch : *launches) {
    for (cudaEvent_t event : {launch.begin, launch.end}) {
      if (event != nullptr) free_.push_back(event);
    }
  }
  launches->clear();
}

void KernelTimes::AddRecorded(TimedLaunch&& launch) {
  std::lock_guard<std::mutex> lock(events_mutex_);
  recorded_.push_back(std::move(launch));
}

std::vector<TimedLaunch> KernelTimes::TakeRecorded() {
  std::lock_guard<std::mutex> lock(events_mutex_);
  return std::exchange(recorded_, {});
}

void KernelTimes::DropRecorded() noexcept {
  std::vector<TimedLaunch> launches = TakeRecorded();
  Recycle(&launches);
}

LaunchTimer::LaunchTimer(KernelTimes* times)
    : times_(times), profiler_(times->active() ? Profiler::OfThisThread(times) : nullptr) {}

LaunchTimer::~LaunchTimer() {
  if (launch_.begin == nullptr) return;
  std::vector<TimedLaunch> unused;
  unused.push_back(std::move(launch_));
  times_->Recycle(&unused);
}

void LaunchTimer::Begin(cudaStream_t stream) {
  if (profiler_ == nullptr || launch_.begin != nullptr) return;
  stream_ = stream;
  recorded_ = IsCapturing(stream);
  launch_.begin = times_->TakeEvent();
  Record(launch_.begin);
}

void LaunchTimer::End(const char* op, const std::string& node) {
  if (launch_.begin == nullptr) return;
  launch_.end = times_->TakeEvent();
  Record(launch_.end);
  launch_.op = op;
  launch_.node = node;
  if (recorded_) {
    times_->AddRecorded(std::move(launch_));
  } else {
    profiler_->Add(std::move(launch_));
  }
  launch_ = TimedLaunch{};
}

void LaunchTimer::Record(cudaEvent_t event) const {
  CheckCuda(cudaEventRecordWithFlags(event, stream_, recorded_ ? cudaEventRecordExternal : cudaEventRecordDefault),
            "recording an event");
}

}  // namespace flashllm::ep
