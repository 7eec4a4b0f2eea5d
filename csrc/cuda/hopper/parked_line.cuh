// A warp's walk along the work line, kept in shared memory: some twenty numbers that are wanted once a strip would take
// registers from the loop over its tiles, where the accumulators and the states of the rows leave few.
#pragma once

#include "hopper/work_line.cuh"

namespace cosegflow::hopper {

// One for each consumer warp; all lanes of the warp together.
class ParkedLine {
 public:
  __device__ __forceinline__ void start(const WorkLine& line) {
    if (threadIdx.x % 32 == 0) line_ = line;
  }

  // On to the next strip; false at the end of the run.
  __device__ __forceinline__ bool next() {
    __syncwarp();  // all lanes have read the last strip
    if (threadIdx.x % 32 == 0) more_ = line_.next(strip_);
    __syncwarp();
    return more_ != 0;
  }
  __device__ __forceinline__ const Strip& strip() const { return strip_; }

 private:
  WorkLine line_;
  Strip strip_;
  int more_;
};

}  // namespace cosegflow::hopper
