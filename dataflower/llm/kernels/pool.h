// Threads that work off the phases of a step together.
//
// Items of a phase are taken one by one, and a phase is over when its items are, not when all threads have met: a
// thread that the machine has put aside (others want its core) holds up nobody but the item that it has in hand.
// OpenMP's teams wait for every member at every product, which costs milliseconds beside one busy neighbour.

#pragma once

#include <atomic>
#include <memory>
#include <thread>

namespace dataflower {

constexpr int kSpins = 4000;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// What a step is: `count(context, phase)` items in each phase, and how one is done, with the thread's own scratch.
struct Job {
  void* context;
  int phases;
  int (*count)(void* context, int phase);
  void (*item)(void* context, int phase, int item, void* scratch);
  void (*forget)(void* context, int phase, void* scratch);  // a phase begins: what scratch holds is of another one
};

struct alignas(64) Counter {
  std::atomic<int> taken{0};
  std::atomic<int> done{0};
};

class Pool {
 public:
  // Run a job with at most `threads` threads, the caller's among them. One job at a time.
  void run(const Job& job, int threads, void* (*make_scratch)()) {
    make_ = make_scratch;
    if (job.phases > room_) counters_.reset(new Counter[room_ = job.phases]);
    for (; started_ < threads - 1; ++started_) std::thread(&Pool::work, this, started_).detach();
    for (int phase = 0; phase < job.phases; ++phase) {
      counters_[phase].taken.store(0, std::memory_order_relaxed);
      counters_[phase].done.store(0, std::memory_order_relaxed);
    }
    job_ = job;
    helpers_.store(threads - 1, std::memory_order_relaxed);
    if (!scratch_) scratch_ = make_();
    open_.store(true);
    turn_.fetch_add(1);
    if (threads > 1) turn_.notify_all();
    through(scratch_);
    open_.store(false);
    while (inside_.load() != 0) relax();  // those who only skim through what is over
  }

 private:
  void through(void* scratch) {
    for (int phase = 0; phase < job_.phases; ++phase) {
      Counter& counter = counters_[phase];
      const int count = job_.count(job_.context, phase);
      if (counter.done.load(std::memory_order_acquire) == count) continue;
      job_.forget(job_.context, phase, scratch);
      for (int item; (item = counter.taken.fetch_add(1, std::memory_order_relaxed)) < count;) {
        job_.item(job_.context, phase, item, scratch);
        if (counter.done.fetch_add(1, std::memory_order_acq_rel) + 1 == count) counter.done.notify_all();
      }
      await(counter.done, count);
    }
  }

  static void await(std::atomic<int>& value, int wanted) {
    int seen;
    for (int spin = 0; (seen = value.load(std::memory_order_acquire)) != wanted;) {
      if (++spin < kSpins) {
        relax();
      } else {
        value.wait(seen, std::memory_order_acquire);
      }
    }
  }

  void work(int index) {
    void* scratch = make_();
    for (int seen = 0;;) {
      int turn = turn_.load();
      for (int spin = 0; turn == seen && spin < kSpins; ++spin) {
        relax();
        turn = turn_.load();
      }
      if (turn == seen) {
        turn_.wait(seen);
        continue;
      }
      seen = turn;
      inside_.fetch_add(1);
      if (open_.load() && index < helpers_.load()) through(scratch);
      inside_.fetch_sub(1);
    }
  }

  Job job_{};
  void* (*make_)() = nullptr;
  void* scratch_ = nullptr;
  int started_ = 0;
  std::atomic<int> turn_{0};
  std::atomic<int> helpers_{0};
  std::atomic<int> inside_{0};
  std::atomic<bool> open_{false};
  int room_ = 0;
  std::unique_ptr<Counter[]> counters_;
};

}  // namespace dataflower
