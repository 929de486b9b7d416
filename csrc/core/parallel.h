#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <utility>

// ThreadSanitizer sees nothing of what happens inside libgomp and would report every barrier as a race, so builds
// with it run the same ranges on std::thread, as do builds without OpenMP.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define GLASS_FAST_STD_THREADS
#endif
#endif
#if defined(__SANITIZE_THREAD__) || !defined(_OPENMP)
#define GLASS_FAST_STD_THREADS
#endif

#if defined(GLASS_FAST_STD_THREADS)
#include <system_error>
#include <thread>
#include <vector>
#endif

namespace glass_fast {

// Number of workers that parallel_tasks uses: min(tasks, threads), but at least 1; for sizing scratch memory.
inline int worker_count(int64_t tasks, int threads) {
  return static_cast<int>(std::clamp<int64_t>(tasks, 1, std::max(threads, 1)));
}

// Calls body(worker, first, last) once for each of worker_count(tasks, threads) workers (none when tasks < 1) and
// returns when all are done.
//
// worker      0 to worker_count - 1
// first, last contiguous ranges that cover 0 to tasks; they depend on `tasks` and `threads` alone, sizes differ by
//             at most 1
//
// One worker runs on the caller, without any thread. An exception does not leave a thread: the others finish, and
// the first one caught is thrown again on the caller.
template <typename F>
void parallel_tasks(int64_t tasks, int threads, F&& body) {
  if (tasks < 1) return;
  const int workers = worker_count(tasks, threads);
  if (workers == 1) {
    body(0, int64_t{0}, tasks);
    return;
  }
  std::atomic_flag failed = ATOMIC_FLAG_INIT;
  std::exception_ptr failure;
  const auto run = [&](int worker) {
    const int64_t size = tasks / workers, longer = tasks % workers;
    const int64_t first = worker * size + std::min<int64_t>(worker, longer);
    try {
      body(worker, first, first + size + (worker < longer ? 1 : 0));
    } catch (...) {
      if (!failed.test_and_set()) failure = std::current_exception();
    }
  };
#if defined(GLASS_FAST_STD_THREADS)
  std::vector<std::thread> team;
  team.reserve(static_cast<size_t>(workers));
  int started = 1;
  try {
    for (; started < workers; ++started) team.emplace_back(run, started);
  } catch (const std::system_error&) {  // no more threads to be had: the caller does the rest
  }
  run(0);
  for (int worker = started; worker < workers; ++worker) run(worker);
  for (std::thread& thread : team) thread.join();
#else
  // A loop over workers, not omp_get_thread_num(): the team may be smaller than asked for.
#pragma omp parallel for num_threads(workers) schedule(static, 1)
  for (int worker = 0; worker < workers; ++worker) run(worker);
#endif
  if (failure) std::rethrow_exception(std::move(failure));
}

}  // namespace glass_fast
