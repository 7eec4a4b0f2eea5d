// hostsim: barriers, shuffles and votes, under the names that CUDA gives them.
#pragma once

#include <cstring>
#include <type_traits>

#include "hostsim/runtime.h"

// The default arguments record the place of the call: threads that wait at different barriers are an error.
#define CSF_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
inline void __syncthreads(CSF_HERE) {
  cosegflow::hostsim::block_barrier(cosegflow::hostsim::Barrier::kSync, 0, file, line);
}
inline int __syncthreads_or(int p, CSF_HERE) {
  return cosegflow::hostsim::block_barrier(cosegflow::hostsim::Barrier::kOr, p, file, line);
}
inline int __syncthreads_and(int p, CSF_HERE) {
  return cosegflow::hostsim::block_barrier(cosegflow::hostsim::Barrier::kAnd, p, file, line);
}
inline int __syncthreads_count(int p, CSF_HERE) {
  return cosegflow::hostsim::block_barrier(cosegflow::hostsim::Barrier::kCount, p, file, line);
}
#undef CSF_HERE

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  char nothing = 0;
  cosegflow::hostsim::warp_collective("__syncwarp", mask, &nothing, [](void* const*, unsigned) {});
}

namespace cosegflow {
namespace hostsim {

enum class Shuffle { kIndex, kUp, kDown, kXor };

template <class T, Shuffle Kind>
struct ShuffleLane {
  T value, result;
  int operand, width;

  // PTX shfl: lanes form segments of `width`; a source outside the segment gives the lane its own value. Reading a
  // lane that does not take part is undefined: NaN here.
  static void combine(void* const* lane, unsigned) {
    for (int i = 0; i < 32; ++i) {
      auto* me = static_cast<ShuffleLane*>(lane[i]);
      if (me == nullptr) continue;
      const int first = i & ~(me->width - 1), last = first + me->width - 1;
      int source = 0;
      if (Kind == Shuffle::kIndex) source = first + (me->operand & (me->width - 1));
      if (Kind == Shuffle::kUp) source = i - me->operand < first ? i : i - me->operand;
      if (Kind == Shuffle::kDown) source = i + me->operand > last ? i : i + me->operand;
      if (Kind == Shuffle::kXor) source = (i ^ me->operand) > last ? i : i ^ me->operand;
      const auto* from = static_cast<const ShuffleLane*>(lane[source]);
      if (from != nullptr) {
        me->result = from->value;
      } else {
        std::memset(&me->result, 0xff, sizeof(T));
      }
    }
  }
};

template <Shuffle Kind, class T>
inline T shuffle(const char* name, unsigned mask, T value, int operand, int width) {
  static_assert(std::is_arithmetic_v<T>, "shuffles move numbers");
  if (width <= 0 || width > 32 || (width & (width - 1)) != 0) fail("%s: width %d is not a power of two", name, width);
  ShuffleLane<T, Kind> lane{value, value, operand, width};
  warp_collective(name, mask, &lane, &ShuffleLane<T, Kind>::combine);
  return lane.result;
}

struct VoteLane {
  int predicate;
  unsigned ballot;
  static void combine(void* const* lane, unsigned) {
    unsigned ballot = 0;
    for (int i = 0; i < 32; ++i) {
      if (lane[i] != nullptr && static_cast<VoteLane*>(lane[i])->predicate) ballot |= 1u << i;
    }
    for (int i = 0; i < 32; ++i) {
      if (lane[i] != nullptr) static_cast<VoteLane*>(lane[i])->ballot = ballot;
    }
  }
};

inline unsigned vote(const char* name, unsigned mask, int predicate) {
  VoteLane lane{predicate, 0};
  warp_collective(name, mask, &lane, &VoteLane::combine);
  return lane.ballot;
}

template <class T>
struct MatchLane {
  T value;
  unsigned same;
  static void combine(void* const* lane, unsigned) {
    for (int i = 0; i < 32; ++i) {
      if (lane[i] == nullptr) continue;
      auto* me = static_cast<MatchLane*>(lane[i]);
      me->same = 0;
      for (int j = 0; j < 32; ++j) {
        if (lane[j] != nullptr && std::memcmp(&static_cast<MatchLane*>(lane[j])->value, &me->value, sizeof(T)) == 0) {
          me->same |= 1u << j;
        }
      }
    }
  }
};

}  // namespace hostsim
}  // namespace cosegflow

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return cosegflow::hostsim::shuffle<cosegflow::hostsim::Shuffle::kIndex>("__shfl_sync", mask, value, source, width);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return cosegflow::hostsim::shuffle<cosegflow::hostsim::Shuffle::kUp>("__shfl_up_sync", mask, value,
                                                                       static_cast<int>(delta), width);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return cosegflow::hostsim::shuffle<cosegflow::hostsim::Shuffle::kDown>("__shfl_down_sync", mask, value,
                                                                         static_cast<int>(delta), width);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  return cosegflow::hostsim::shuffle<cosegflow::hostsim::Shuffle::kXor>("__shfl_xor_sync", mask, value, lanes, width);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return cosegflow::hostsim::vote("__ballot_sync", mask, predicate);
}
inline int __any_sync(unsigned mask, int predicate) {
  return cosegflow::hostsim::vote("__any_sync", mask, predicate) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return cosegflow::hostsim::vote("__all_sync", mask, !predicate) == 0;
}
template <class T>
inline unsigned __match_any_sync(unsigned mask, T value) {
  cosegflow::hostsim::MatchLane<T> lane{value, 0};
  cosegflow::hostsim::warp_collective("__match_any_sync", mask, &lane, &cosegflow::hostsim::MatchLane<T>::combine);
  return lane.same;
}
