// The tile engine of the half types.
#pragma once

#include "match/match_common.cuh"
#include "mma_tile_product.cuh"

namespace cosegflow::match_cuda {

template <class T>
struct MmaEngine : MmaTileProduct<T> {
  using Base = MmaTileProduct<T>;
  static_assert(Base::kRows == TileExtent<T>::kRows && Base::kCols == TileExtent<T>::kCols, "the host's tile");
  using Acc = float;
  static constexpr bool kParkStates = false;
  static constexpr int kForwardBlocksPerSm = 2, kBackwardBlocksPerSm = 2;
  template <class Begin, class Epilogue>
  static __device__ __forceinline__ void run(unsigned char* shared, const typename Base::Strip& strip,
                                             const Begin& begin, const Epilogue& epilogue) {
    Base::run(reinterpret_cast<T*>(shared), strip, begin, epilogue);
  }
};

}  // namespace cosegflow::match_cuda
