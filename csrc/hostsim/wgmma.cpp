// hostsim: wgmma. An operation is recorded at issue, with the accumulators' values, and the registers are filled with
// NaN; the wait that covers its group reads the operands from shared memory, multiplies and writes the registers: the
// latest moment at which the hardware may do it. Each warp computes its own 16 rows.
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "common/half.h"
#include "hostsim/hopper.h"
#include "hostsim/shared_memory.h"

namespace cosegflow {
namespace hostsim {
namespace {

constexpr int kM = 16, kN = 128, kK = 16, kD = 64;  // of one warp: d (kM x kN) in kD registers a lane

struct alignas(64) Accumulator {
  float tile[kM][kN];
  float* d[32];    // each lane's registers, NaN until the last operation on them is done
  int operations;  // in flight
  Place place;     // of the newest
};

struct Operation {
  SharedOperand a, b;
  bool accumulate, bfloat16;
  Accumulator* accumulator;
  uint64_t group;
};

struct Warp {
  std::vector<std::unique_ptr<Accumulator>> accumulators;  // in flight
  std::deque<Operation> operations;
  uint64_t committed = 0;  // groups so far; operations not committed yet carry this number
  uint64_t issued = 0;
  bool fenced = false;  // since the last wait that ended operations
};

struct Issued {
  const unsigned char *a, *b;
  bool accumulate, bfloat16;
};

struct Warpgroup {
  std::deque<Issued> log;  // what the first of its warps issued and not all four have
  uint64_t dropped = 0;    // entries that are gone from the front
};

std::deque<Warp> warps;
std::deque<Warpgroup> warpgroups;

std::string text(const Place& p) { return std::string(p.file) + ":" + std::to_string(p.line); }

// ---- registers --------------------------------------------------------------------------------------------------

// Calls visit(register of the lane, element of the tile) for every register of every lane.
template <class Visit>
void for_each_register(Accumulator& acc, Visit visit) {
  for (int t = 0; t < 32; ++t) {
    for (int j = 0; j < kN / 8; ++j) {
      for (int h = 0; h < 2; ++h) {
        for (int e = 0; e < 2; ++e)
          visit(acc.d[t][4 * j + 2 * h + e], acc.tile[8 * h + t / 4][8 * j + 2 * (t % 4) + e]);
      }
    }
  }
}

void take(Accumulator& acc) {
  for_each_register(acc, [](float& d, float& element) { element = d; });
  for (float* d : acc.d) std::memset(d, 0xff, kD * sizeof(float));
}

void check_untouched(const Accumulator& acc, const char* when, const Place& place) {
  for (int t = 0; t < 32; ++t) {
    uint32_t all = 0xffffffffu;
    for (int i = 0; i < kD; ++i) all &= detail::float_to_bits(acc.d[t][i]);
    if (all != 0xffffffffu) {
      fail("%s at %s: lane %d has written registers of the wgmma issued at %s, which was in flight", when,
           text(place).c_str(), t, text(acc.place).c_str());
    }
  }
}

// ---- operands ---------------------------------------------------------------------------------------------------

void decode(const uint16_t (&halves)[8], bool bfloat16, float (&out)[8]) {
  if (bfloat16) {
    for (int i = 0; i < 8; ++i) out[i] = to_float(BFloat16{halves[i]});
  } else {
#if defined(__F16C__)
    __m128i packed;
    std::memcpy(&packed, halves, 16);
    _mm256_storeu_ps(out, _mm256_cvtph_ps(packed));
#else
    for (int i = 0; i < 8; ++i) out[i] = to_float(Half{halves[i]});
#endif
  }
}

// Where an operand's pieces of 16 bytes lie, from its descriptor: line l starts 128 l bytes after the first of its 8
// lines, and groups of 8 lines follow at the stride that the descriptor says; then as many bits of the address from 4
// on as its swizzle says (1: three of them, 128 bytes; 2: two; 3: one) are XORed with those from 7 on.
class OperandReader {
 public:
  OperandReader(SharedOperand operand, bool bfloat16)
      : start_(operand.start),
        view_(async_view(operand.start)),
        mask_(kMasks[operand.layout >> 62]),
        group_(static_cast<int>(operand.layout >> 32 & 0x3fff) * 16),
        box_(static_cast<int>(operand.layout >> 16 & 0x3fff) * 16),
        bfloat16_(bfloat16) {}

  // Piece `chunk` of a line, in the box-th box of an operand that lies turned. What the asynchronous proxy does not see
  // is NaN.
  void read(int box, int line, int chunk, float (&out)[8]) const {
    const auto begin = reinterpret_cast<uintptr_t>(start_);
    uintptr_t address = begin + static_cast<uintptr_t>(box * box_ + line / 8 * group_ + line % 8 * 128 + chunk * 16);
    address ^= (address >> 7 & mask_) << 4;
    const auto offset = static_cast<std::ptrdiff_t>(address - begin);
    uint16_t halves[8];
    std::memcpy(halves, start_ + offset, 16);
    if (std::memcmp(halves, view_ + offset, 16) != 0) std::memset(halves, 0xff, 16);
    decode(halves, bfloat16_, out);
  }

 private:
  static constexpr uintptr_t kMasks[4] = {0, 7, 3, 1};
  const unsigned char *start_, *view_;
  uintptr_t mask_;
  int group_, box_;
  bool bfloat16_;
};
constexpr uintptr_t OperandReader::kMasks[4];

// Rows [first, first + Rows) of an operand at its 16 depths.
template <int Rows>
void read_operand(SharedOperand operand, int first, bool bfloat16, float (&out)[Rows][kK]) {
  const OperandReader reader(operand, bfloat16);
  float numbers[8];
  if (operand.turned) {
    for (int k = 0; k < kK; ++k) {
      for (int r = 0; r < Rows; r += 8) {
        reader.read((first + r) / 64, k, (first + r) % 64 / 8, numbers);
        for (int i = 0; i < 8; ++i) out[r + i][k] = numbers[i];
      }
    }
    return;
  }
  for (int r = 0; r < Rows; ++r) {
    for (int chunk = 0; chunk < 2; ++chunk) {
      reader.read(0, first + r, chunk, numbers);
      std::memcpy(&out[r][8 * chunk], numbers, sizeof(numbers));
    }
  }
}

using Floats = float __attribute__((vector_size(32)));  // 8

// d += a b^T: sums in float32, k ascending; the products are exact.
void multiply(const float (&a)[kM][kK], const float (&b)[kN][kK], float (&d)[kM][kN]) {
  alignas(32) float by_k[kK][kN];
  for (int n = 0; n < kN; ++n) {
    for (int k = 0; k < kK; ++k) by_k[k][n] = b[n][k];
  }
  constexpr int kAtOnce = 8;  // vectors
  for (int m = 0; m < kM; ++m) {
    for (int n = 0; n < kN; n += 8 * kAtOnce) {
      auto* const out = reinterpret_cast<Floats*>(&d[m][n]);
      Floats sum[kAtOnce];
#pragma GCC unroll 8
      for (int i = 0; i < kAtOnce; ++i) sum[i] = out[i];
      for (int k = 0; k < kK; ++k) {
        const auto* const row = reinterpret_cast<const Floats*>(&by_k[k][n]);
#pragma GCC unroll 8
        for (int i = 0; i < kAtOnce; ++i) sum[i] += row[i] * a[m][k];
      }
#pragma GCC unroll 8
      for (int i = 0; i < kAtOnce; ++i) out[i] = sum[i];
    }
  }
}

void carry_out(const Operation& op, int warp) {
  float a[kM][kK], b[kN][kK];
  read_operand(op.a, warp % 4 * kM, op.bfloat16, a);
  read_operand(op.b, 0, op.bfloat16, b);
  Accumulator& acc = *op.accumulator;
  if (!op.accumulate) std::memset(acc.tile, 0, sizeof(acc.tile));
  multiply(a, b, acc.tile);
}

// ---- what a warp does together ----------------------------------------------------------------------------------

int this_warp() {
  const int warp = linear_thread() / 32;
  if (static_cast<size_t>(warp / 4) >= warpgroups.size()) fail("wgmma: the warp is not part of a whole warpgroup");
  return warp;
}

void check_operand(SharedOperand operand, int rows, const char* name, const Place& place) {
  const auto within = reinterpret_cast<uintptr_t>(operand.start) % 1024;
  if (operand.turned) {  // 16 lines of each box
    for (int box = 0; box < rows / 64; ++box) {
      const auto offset = static_cast<int>(operand.layout >> 16 & 0x3fff) * 16 * box;
      check_shared(operand.start + offset, 2048, 1024, "wgmma_m64n128k16");
    }
    return;
  }
  if (within % 32 != 0 || within > 96) {
    fail("wgmma_m64n128k16() at %s: the descriptor of %s is not of a row 0 and a depth of 0, 16, 32 or 48",
         text(place).c_str(), name);
  }
  if ((operand.layout >> 32 & 0x3fff) * 16 != 1024) {
    fail("wgmma_m64n128k16() at %s: groups of 8 rows of %s are not 1024 bytes apart", text(place).c_str(), name);
  }
  check_shared(operand.start - within, static_cast<size_t>(rows) * 128, 1024, "wgmma_m64n128k16");
}

struct MultiplyLane {
  float* d;
  SharedOperand a, b;
  bool accumulate, bfloat16;
  Place place;

  static void combine(void* const* lane, unsigned) {
    const auto& me = *static_cast<MultiplyLane*>(lane[0]);
    const std::string place = text(me.place);
    for (int i = 1; i < 32; ++i) {
      const auto& other = *static_cast<MultiplyLane*>(lane[i]);
      if (other.a.start != me.a.start || other.b.start != me.b.start || other.accumulate != me.accumulate ||
          other.bfloat16 != me.bfloat16) {
        fail("wgmma_m64n128k16() at %s: lanes of a warp disagree", place.c_str());
      }
    }
    check_operand(me.a, 64, "a", me.place);
    check_operand(me.b, 128, "b", me.place);
    const int number = this_warp();
    Warp& warp = warps[static_cast<size_t>(number)];
    compare_with_others(number, {me.a.start, me.b.start, me.accumulate, me.bfloat16}, place);

    Accumulator* acc = nullptr;
    for (const auto& other : warp.accumulators) {
      if (other->d[0] == me.d) acc = other.get();
    }
    if (acc == nullptr) {
      if (!warp.fenced) fail("wgmma_m64n128k16() at %s: no wgmma_fence() since the last wgmma_wait()", place.c_str());
      warp.accumulators.push_back(std::make_unique<Accumulator>());
      acc = warp.accumulators.back().get();
      for (int i = 0; i < 32; ++i) acc->d[i] = static_cast<MultiplyLane*>(lane[i])->d;
      take(*acc);
    } else {
      check_untouched(*acc, "wgmma_m64n128k16()", me.place);
      for (int i = 0; i < 32; ++i) {
        if (acc->d[i] != static_cast<MultiplyLane*>(lane[i])->d) {
          fail("wgmma_m64n128k16() at %s: lanes of a warp name different registers", place.c_str());
        }
      }
    }
    ++acc->operations;
    acc->place = me.place;
    warp.operations.push_back({me.a, me.b, me.accumulate, me.bfloat16, acc, warp.committed});
  }

  // The four warps of a warpgroup issue the same operations.
  static void compare_with_others(int number, Issued mine, const std::string& place) {
    Warpgroup& group = warpgroups[static_cast<size_t>(number / 4)];
    const uint64_t turn = warps[static_cast<size_t>(number)].issued++;
    if (turn - group.dropped == group.log.size()) {
      group.log.push_back(mine);
      return;
    }
    const Issued& first = group.log[turn - group.dropped];
    if (first.a != mine.a || first.b != mine.b || first.accumulate != mine.accumulate ||
        first.bfloat16 != mine.bfloat16) {
      fail("wgmma_m64n128k16() at %s: the warps of a warpgroup disagree on its operands", place.c_str());
    }
    uint64_t all = turn + 1;  // operations that all four have issued
    for (int w = number / 4 * 4; w < number / 4 * 4 + 4; ++w) {
      all = warps[static_cast<size_t>(w)].issued < all ? warps[static_cast<size_t>(w)].issued : all;
    }
    for (; group.dropped < all; ++group.dropped) group.log.pop_front();
  }
};

struct FenceLane {
  static void combine(void* const*, unsigned) { warps[static_cast<size_t>(this_warp())].fenced = true; }
};

struct CommitLane {
  static void combine(void* const*, unsigned) { ++warps[static_cast<size_t>(this_warp())].committed; }
};

struct WaitLane {
  int pending;
  Place place;

  static void combine(void* const* lane, unsigned) {
    const auto& me = *static_cast<WaitLane*>(lane[0]);
    const int number = this_warp();
    Warp& warp = warps[static_cast<size_t>(number)];
    while (!warp.operations.empty() &&
           warp.operations.front().group + static_cast<uint64_t>(me.pending) < warp.committed) {
      const Operation op = warp.operations.front();
      warp.operations.pop_front();
      warp.fenced = false;
      carry_out(op, number);
      Accumulator& acc = *op.accumulator;
      if (--acc.operations > 0) continue;
      check_untouched(acc, "wgmma_wait()", me.place);
      for_each_register(acc, [](float& d, float& element) { d = element; });
      for (size_t i = 0; i < warp.accumulators.size(); ++i) {
        if (warp.accumulators[i].get() != &acc) continue;
        warp.accumulators.erase(warp.accumulators.begin() + static_cast<std::ptrdiff_t>(i));
        break;
      }
    }
  }
};

}  // namespace

void begin_block_wgmma(int threads) {
  warps.clear();
  warpgroups.clear();
  warps.resize(static_cast<size_t>(threads / 128) * 4);
  warpgroups.resize(static_cast<size_t>(threads / 128));
}

std::string end_block_wgmma() {
  for (size_t w = 0; w < warps.size(); ++w) {
    if (!warps[w].operations.empty()) {
      return "the block ended without waiting for the wgmma issued at " +
             text(warps[w].operations.back().accumulator->place);
    }
    if (warps[w].issued != warps[w / 4 * 4].issued) {
      return "warp " + std::to_string(w) + " issued " + std::to_string(warps[w].issued) + " wgmma, warp " +
             std::to_string(w / 4 * 4) + " of its warpgroup " + std::to_string(warps[w / 4 * 4].issued);
    }
  }
  return {};
}

SharedOperand shared_operand(const void* tile, uint64_t layout, bool turned) {
  check_shared(tile, 1024, 1024, "shared_operand");
  return {static_cast<const unsigned char*>(tile), layout, turned};
}

void wgmma_fence(Place) {
  FenceLane lane;
  warp_collective("wgmma_fence", 0xffffffffu, &lane, &FenceLane::combine, true);
}

void wgmma_commit(Place) {
  CommitLane lane;
  warp_collective("wgmma_commit", 0xffffffffu, &lane, &CommitLane::combine, true);
}

void wgmma_wait(int pending, Place place) {
  WaitLane lane{pending, place};
  warp_collective("wgmma_wait", 0xffffffffu, &lane, &WaitLane::combine, true);
}

void wgmma_m64n128k16(float (&d)[64], SharedOperand a, SharedOperand b, bool accumulate, bool bfloat16, Place place) {
  MultiplyLane lane{d, a, b, accumulate, bfloat16, place};
  warp_collective("wgmma_m64n128k16", 0xffffffffu, &lane, &MultiplyLane::combine, true);
}

}  // namespace hostsim
}  // namespace cosegflow
