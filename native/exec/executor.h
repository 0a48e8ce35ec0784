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
  RunStatus step(int n_seqs, const RowsOut& logits, const RowsOut& hidden) {
    step_.prepare(arrays_, n_seqs, logits, hidden, cache_);
    return step_.run();
  }
  int wanted() const { return step_.wanted(); }
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
};

}  // namespace octavo
