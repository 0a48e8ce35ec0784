// A loaded model that runs steps: description, cache, plan, threads and workspace together.
#pragma once

#include <memory>
#include <string>

#include "exec/step.h"

namespace octavo {

class Executor {
 public:
  // Throws std::invalid_argument naming what can't be planned, std::bad_alloc without memory.
  Executor(ModelDesc model, RuntimeDesc runtime)
      : model_(std::move(model)),
        runtime_(std::move(runtime)),
        cache_(model_, runtime_),
        plan_(make_plan(model_, runtime_, cache_)),
        pool_(runtime_.threads, runtime_.usable_cpus),
        step_(plan_, pool_) {}

  void bind(const StepArrays& arrays) { arrays_ = arrays; }
  // One step, or the same sequences' next `times` tokens. Results stand one time after the other.
  RunStatus step(int n_seqs, const RowsOut& logits, const RowsOut& hidden, int times) {
    StepArrays arrays = arrays_;
    wanted_ = 0;
    for (int i = 0; i < times; ++i) {
      if (i != 0) step_.advance(arrays);
      step_.prepare(arrays, n_seqs, logits, hidden, cache_);
      if (i == 0) step_.check_times(times);
      const RunStatus status = step_.run();
      if (status != RunStatus::kDone) return status;
      cache_.wrote(step_.rows());
      wanted_ += step_.wanted();
      if (step_.kv_lost() != 0) break;
    }
    return RunStatus::kDone;
  }
  int wanted() const { return wanted_; }
  int64_t kv_lost() const { return step_.kv_lost(); }

  ThreadPool& pool() { return pool_; }
  KvCache& cache() { return cache_; }
  const KvCache& cache() const { return cache_; }
  Step& state() { return step_; }
  const Plan& plan() const { return plan_; }

 private:
  ModelDesc model_;
  RuntimeDesc runtime_;
  KvCache cache_;
  Plan plan_;
  ThreadPool pool_;
  Step step_;
  StepArrays arrays_{};
  int wanted_ = 0;  // results of the last call
};

}  // namespace octavo
