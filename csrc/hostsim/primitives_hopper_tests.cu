// Small kernels, right and deliberately wrong, for what sm_90 adds to cuda/primitives. Compiles under nvcc too, where
// only the right ones are instantiated: `Fault` 0.
#include <cstring>

#include "common/half.h"
#include "hostsim/primitives_tests.h"
#include "primitives/bulk_copy.cuh"
#include "primitives/launch.cuh"
#include "primitives/real_math.cuh"
#include "primitives/warpgroup.cuh"
#include "primitives/wgmma.cuh"

namespace cosegflow {
namespace {

__device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }

__device__ __forceinline__ void init_barrier(Mbarrier* bar, unsigned arrivals) {
  if (thread() == 0) {
    mbarrier_init(bar, arrivals);
    fence_proxy_async();
  }
  __syncthreads();
}

// ---- bulk copies ------------------------------------------------------------------------------------------------

// out: the bytes of a tile of `box_rows` rows after one copy of the box at (image, row, channel).
// Fault 1: wrong parity; 2: too few bytes expected; 3: too many; 4: no bytes expected; 5: no fence_proxy_async after
// the init; 6: destination misaligned; 7: no wait at all; 8: too many arrivals; 9: plain stores to the destination,
// then no fence; 10: two copies to one destination; 11: the mbarrier overwritten; 12: never initialised; 13:
// initialised twice; 14: a plain store while the copy is in flight; 15: waits for the phase after; 16: only one thread
// waits.
template <int Fault>
__global__ void tile_kernel(const __grid_constant__ TensorMap map, uint16_t* out, int channel, int row, int image,
                            int box_rows) {
  CSF_HOPPER_SHARED(unsigned char, shared);
  CSF_SHARED(Mbarrier, bar);
  auto* const halves = reinterpret_cast<uint16_t*>(shared);
  const int count = box_rows * kTileDepth;
  const unsigned bytes = static_cast<unsigned>(count) * 2;
  if (thread() == 0) {
    if (Fault != 12) mbarrier_init(&bar, 1);
    if (Fault == 13) mbarrier_init(&bar, 1);
    if (Fault != 5) fence_proxy_async();
    if (Fault == 11) bar.opaque = 1;
    if (Fault == 9) halves[7] = 1;
  }
  __syncthreads();
  if (thread() == 0) {
    prefetch_tensor_map(&map);
    if (Fault == 4) mbarrier_arrive(&bar);
    if (Fault == 16) bulk_load_tile(shared, &map, &bar, channel, row, image);
    if (Fault != 4) mbarrier_arrive_expect_bytes(&bar, Fault == 2 ? bytes - 16 : Fault == 3 ? bytes + 16 : bytes);
    if (Fault == 8) mbarrier_arrive(&bar);
    if (Fault != 16) bulk_load_tile(shared + (Fault == 6 ? 128 : 0), &map, &bar, channel, row, image);
    if (Fault == 10) bulk_load_tile(shared, &map, &bar, channel, row, image);
    if (Fault == 14) halves[5] = 1;
  }
  if (Fault == 1) {
    mbarrier_wait(&bar, 1);
  } else if (Fault == 15) {
    mbarrier_wait(&bar, 0);
    mbarrier_wait(&bar, 1);
  } else if (Fault != 7 && (Fault != 16 || thread() == 0)) {
    mbarrier_wait(&bar, 0);
  }
  for (int i = thread(); i < count; i += static_cast<int>(blockDim.x)) out[i] = halves[i];
  if (Fault == 1) {
    __syncthreads();
    mbarrier_wait(&bar, 0);
  }
}

// out: 1024 bytes of shared memory, of which `bytes` from `to` on come from a + from. Both offsets in bytes.
__global__ void bulk_load_kernel(const unsigned char* a, unsigned char* out, int from, int to, int bytes) {
  CSF_HOPPER_SHARED(unsigned char, shared);
  CSF_SHARED(Mbarrier, bar);
  for (int i = thread(); i < 1024; i += static_cast<int>(blockDim.x)) shared[i] = 7;
  fence_proxy_async();
  init_barrier(&bar, 1);
  if (thread() == 0) {
    bulk_load(shared + to, a + from, static_cast<unsigned>(bytes), &bar);
    mbarrier_arrive_expect_bytes(&bar, static_cast<unsigned>(bytes));  // before or after the copy is issued
  }
  mbarrier_wait(&bar, 0);
  for (int i = thread(); i < 1024; i += static_cast<int>(blockDim.x)) out[i] = shared[i];
}

// ---- phases -----------------------------------------------------------------------------------------------------

// A value goes back and forth between the first half of the block and the second, `rounds` times; each adds its share.
// Fault 1: one thread arrives twice and one never; 2: one never arrives.
template <int Fault>
__global__ void ping_pong_kernel(int* out, int rounds) {
  struct Shared {
    Mbarrier full, empty;
    int values[1024];
  };
  CSF_SHARED(Shared, s);
  const int n = static_cast<int>(blockDim.x) / 2, t = thread() % n;
  const bool first = thread() < n;
  if (thread() == 0) {
    mbarrier_init(&s.full, static_cast<unsigned>(n));
    mbarrier_init(&s.empty, static_cast<unsigned>(n));
    fence_proxy_async();
  }
  __syncthreads();
  int sum = 0;
  for (int round = 0; round < rounds; ++round) {
    const unsigned parity = static_cast<unsigned>(round) % 2;
    if (first) {
      mbarrier_wait(&s.empty, parity ^ 1);  // in round 0 the barrier is fresh: parity 1 passes
      s.values[t] = round * n + t;
      if (Fault == 2 && t == 1) return;
      mbarrier_arrive(&s.full);
    } else {
      mbarrier_wait(&s.full, parity);
      sum += s.values[n - 1 - t];
      mbarrier_arrive(&s.empty);
      if (Fault == 1 && t == 0) mbarrier_arrive(&s.empty);
      if (Fault == 1 && t == 1) break;
    }
  }
  if (!first) out[t] = sum;
}

// ---- wgmma ------------------------------------------------------------------------------------------------------

// One warpgroup: d (64 x 128) += a (64 x 64) b (128 x 64)^T. a and b hold the tiles' bytes as they lie in shared
// memory; they get there by plain stores. out: the 64 registers of each thread, read and written. Fault 1: d is read
// before the wait; 2: no commit; 3: no wgmma_fence; 4: descriptor misaligned; 5: no fence_proxy_async; 6: one warp has
// another descriptor; 7: a lane writes d in flight; 8: one warp issues one less; 9: the wait leaves one group pending;
// 10: no wait at all; 11: lanes of a warp disagree; 12: a tile beyond the shared memory; 13: no second wgmma_fence.
template <class T, int Fault>
__global__ void __launch_bounds__(128) wgmma_kernel(const uint16_t* a, const uint16_t* b, float* out, int accumulate) {
  struct Tiles {
    uint16_t a[64 * kTileDepth], b[128 * kTileDepth];
  };
  CSF_HOPPER_SHARED(Tiles, s);
  for (int i = thread(); i < 64 * kTileDepth; i += 128) s->a[i] = a[i];
  for (int i = thread(); i < 128 * kTileDepth; i += 128) s->b[i] = b[i];
  if (Fault != 5) fence_proxy_async();
  __syncthreads();
  float d[64];
  for (int i = 0; i < 64; ++i) d[i] = out[thread() * 64 + i];
  SharedOperand tile_a = shared_operand(s->a + (Fault == 4 ? 64 : 0)), tile_b = shared_operand(s->b);
  if (Fault == 12) tile_b = shared_operand(s->b + 64 * kTileDepth);
  if (Fault == 6 && thread() / 32 == 2) tile_a = at_depth(tile_a, 1);
  if (Fault == 11 && thread() == 70) tile_a = at_depth(tile_a, 1);
  if (Fault != 3) wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    if (Fault == 8 && step == 3 && thread() / 32 == 2) break;
    wgmma_m64n128k16<T>(d, at_depth(tile_a, step), at_depth(tile_b, step), accumulate != 0 || step > 0);
    if (Fault == 7 && step == 1 && thread() == 5) d[3] = 0;
  }
  if (Fault != 2) wgmma_commit();
  if (Fault == 1) {
    for (int i = 0; i < 64; ++i) out[thread() * 64 + i] = d[i];
  }
  if (Fault == 9) {
    wgmma_wait<1>();
    for (int i = 0; i < 64; ++i) out[thread() * 64 + i] = d[i];
  }
  if (Fault != 10) wgmma_wait<0>();
  keep_in_registers(d);
  if (Fault == 13) {
    wgmma_m64n128k16<T>(d, tile_a, tile_b, true);
    wgmma_commit();
    wgmma_wait<0>();
  }
  if (Fault != 1 && Fault != 9) {
    for (int i = 0; i < 64; ++i) out[thread() * 64 + i] = d[i];
  }
}

// Two accumulators in turn, one group each: the older one is read while the newer is in flight. a: 64 x 64, b: 256 x
// 64, as they lie in shared memory. out: [2][128][64].
template <class T>
__global__ void __launch_bounds__(128) two_groups_kernel(const uint16_t* a, const uint16_t* b, float* out) {
  struct Tiles {
    uint16_t a[64 * kTileDepth], b[2][128 * kTileDepth];
  };
  CSF_HOPPER_SHARED(Tiles, s);
  for (int i = thread(); i < 64 * kTileDepth; i += 128) s->a[i] = a[i];
  for (int i = thread(); i < 128 * kTileDepth; i += 128) {
    s->b[0][i] = b[i];
    s->b[1][i] = b[128 * kTileDepth + i];
  }
  fence_proxy_async();
  __syncthreads();
  float first[64], second[64];
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    wgmma_m64n128k16<T>(first, at_depth(shared_operand(s->a), k), at_depth(shared_operand(s->b[0]), k), k > 0);
  }
  wgmma_commit();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    wgmma_m64n128k16<T>(second, at_depth(shared_operand(s->a), k), at_depth(shared_operand(s->b[1]), k), k > 0);
  }
  wgmma_commit();
  wgmma_wait<1>();
  keep_in_registers(first);
  for (int i = 0; i < 64; ++i) out[thread() * 64 + i] = first[i];
  wgmma_wait<0>();
  keep_in_registers(second);
  for (int i = 0; i < 64; ++i) out[(128 + thread()) * 64 + i] = second[i];
}

template <class T>
__global__ void __launch_bounds__(128) wgmma_speed_kernel(float* out, int repeats) {
  struct Tiles {
    uint16_t a[64 * kTileDepth], b[128 * kTileDepth];
  };
  CSF_HOPPER_SHARED(Tiles, s);
  for (int i = thread(); i < 64 * kTileDepth; i += 128) s->a[i] = 0;
  for (int i = thread(); i < 128 * kTileDepth; i += 128) s->b[i] = 0;
  fence_proxy_async();
  __syncthreads();
  float d[64];
  for (int i = 0; i < repeats; ++i) {
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      wgmma_m64n128k16<T>(d, at_depth(shared_operand(s->a), k), at_depth(shared_operand(s->b), k), i + k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
  }
  keep_in_registers(d);
  float sum = 0;
  for (int i = 0; i < 64; ++i) sum += d[i];
  out[thread()] = sum;
}

// ---- a pipeline -------------------------------------------------------------------------------------------------

// The shape of a real kernel: one warpgroup issues copies into a ring of two stages, two others multiply. a: (128,
// depth), b: (128, depth) halves; out: (128, 128) = a b^T.
// Fault 1: a stage is given back before the wgmma that read it are done; 2: never given back; 3: the parity of `full`
// never changes; 4: the parity of `empty` starts with the other value; 5: only half of the bytes are expected.
template <class T, int Fault>
__global__ void __launch_bounds__(384, 1)
    pipeline_kernel(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b, float* out,
                    int slabs) {
  constexpr int kStages = 2;
  struct Stage {
    uint16_t a[128 * kTileDepth], b[128 * kTileDepth];
  };
  struct Shared {
    Stage stage[kStages];
    Mbarrier full[kStages], empty[kStages];
  };
  CSF_HOPPER_SHARED(Shared, s);
  if (thread() == 0) {
    for (int i = 0; i < kStages; ++i) {
      mbarrier_init(&s->full[i], 1);
      mbarrier_init(&s->empty[i], 2);
    }
    fence_proxy_async();
  }
  __syncthreads();
  const int warpgroup = thread() / 128;
  if (warpgroup == 0) {
    give_registers<40>();
    if (thread() / 32 == 0 && elect_one()) {
      for (int slab = 0; slab < slabs; ++slab) {
        const int stage = slab % kStages;
        const unsigned parity = static_cast<unsigned>(slab / kStages) % 2;
        mbarrier_wait(&s->empty[stage], Fault == 4 ? parity : parity ^ 1);
        mbarrier_arrive_expect_bytes(&s->full[stage], Fault == 5 ? sizeof(Stage) / 2 : sizeof(Stage));
        bulk_load_tile(s->stage[stage].a, &map_a, &s->full[stage], slab * kTileDepth, 0, 0);
        bulk_load_tile(s->stage[stage].b, &map_b, &s->full[stage], slab * kTileDepth, 0, 0);
      }
    }
    return;
  }
  take_registers<232>();
  float d[64];
  for (int slab = 0; slab < slabs; ++slab) {
    const int stage = slab % kStages;
    mbarrier_wait(&s->full[stage], Fault == 3 ? 0 : static_cast<unsigned>(slab / kStages) % 2);
    const SharedOperand a = shared_operand(s->stage[stage].a + (warpgroup - 1) * 64 * kTileDepth);
    const SharedOperand b = shared_operand(s->stage[stage].b);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) wgmma_m64n128k16<T>(d, at_depth(a, k), at_depth(b, k), slab + k > 0);
    wgmma_commit();
    if (Fault == 1 && thread() % 128 == 0) mbarrier_arrive(&s->empty[stage]);
    wgmma_wait<0>();
    named_barrier_sync(warpgroup, 128);
    if (Fault != 1 && Fault != 2 && thread() % 128 == 0) mbarrier_arrive(&s->empty[stage]);
  }
  keep_in_registers(d);
  const int t = thread() % 32, row = (warpgroup - 1) * 64 + thread() % 128 / 32 * 16 + t / 4;
#pragma unroll
  for (int i = 0; i < 64; ++i) out[(row + i / 2 % 2 * 8) * 128 + i / 4 * 8 + 2 * (t % 4) + i % 2] = d[i];
}

// ---- warpgroups -------------------------------------------------------------------------------------------------

// Fault 1: one warp only; 2: the warps disagree; 3: more registers than there are; 4: gives fewer than it has taken.
template <int Fault>
__global__ void __launch_bounds__(384, 1) registers_kernel(int* out) {
  const int warpgroup = thread() / 128;
  if (warpgroup == 0) {
    if (Fault != 1 || thread() / 32 == 1) give_registers<40>();
  } else if (Fault == 3) {
    take_registers<240>();
  } else if (Fault == 4) {
    take_registers<160>();
  } else if (Fault == 2 && thread() / 32 == 6) {
    take_registers<224>();
  } else {
    take_registers<232>();
  }
  out[thread()] = 1;
}

// Groups of `width` threads mirror a among themselves, each with its own barrier.
// Fault 1: barrier 0; 2: they disagree on the number; 3: one warp never comes; 4: not a number of whole warps; 5: a
// warp comes with half of its lanes, twice.
template <int Fault>
__global__ void named_barrier_kernel(const int* a, int* out, int width) {
  struct Values {
    int at[1024];
  };
  CSF_SHARED(Values, s);
  const int group = thread() / width, first = group * width;
  for (int round = 0; round < 3; ++round) {
    s.at[thread()] = a[thread()] + round;
    if (Fault == 3 && thread() / 32 == 1) return;
    named_barrier_sync(Fault == 1 ? 0 : 1 + group, Fault == 4   ? width - 1
                                                   : Fault == 2 ? (thread() / 32 == 1 ? width : 2 * width)
                                                                : width);
    out[thread()] = s.at[first + width - 1 - (thread() - first)];
    named_barrier_sync(1 + group, width);
  }
}

// out: for each warp how many lanes were elected, in two calls, and whether it was the same one.
__global__ void elect_kernel(int* out) {
  const bool once = elect_one(), again = elect_one();
  const unsigned first = __ballot_sync(0xffffffffu, once), second = __ballot_sync(0xffffffffu, again);
  if (thread() % 32 == 0) {
    out[thread() / 32 * 2] = __popc(first) + __popc(second);
    out[thread() / 32 * 2 + 1] = first == second;
  }
}

__global__ void exp2_kernel(const float* a, float* out) { out[thread()] = exp2_fast(a[thread()]); }

// ---- by name ----------------------------------------------------------------------------------------------------

#if defined(COSEGFLOW_HOSTSIM)
constexpr int kMostFaults = 17;
#else
constexpr int kMostFaults = 1;
#endif

// launcher(std::integral_constant<int, fault>) for a fault that is known at run time only.
template <int Fault = 0, class Launcher>
Status with_fault(int fault, Launcher launcher) {
  if (fault == Fault) return launcher(std::integral_constant<int, Fault>());
  if constexpr (Fault + 1 < kMostFaults) return with_fault<Fault + 1>(fault, launcher);
  return {"this test has no such fault"};
}

template <class T>
Status run_wgmma(const PrimitiveTest& t, size_t bytes, Stream stream) {
  return with_fault(t.fault, [&](auto fault) {
    return launch_hopper(wgmma_kernel<T, decltype(fault)::value>, dim3(1), dim3(static_cast<unsigned>(t.block)), bytes,
                         stream, static_cast<const uint16_t*>(t.a), static_cast<const uint16_t*>(t.b),
                         static_cast<float*>(t.out), t.parameter);
  });
}

template <class T>
Status run_pipeline(const PrimitiveTest& t, Stream stream) {
  const int64_t depth = t.parameter;
  TensorMap a, b;
  Status status = make_tensor_map(a, t.a, depth, 128, 1, 128);
  if (status.ok()) status = make_tensor_map(b, t.b, depth, 128, 1, 128);
  if (!status.ok()) return status;
  return with_fault(t.fault, [&](auto fault) {
    return launch_hopper(pipeline_kernel<T, decltype(fault)::value>, dim3(1), dim3(384),
                         static_cast<size_t>(t.dynamic_bytes), stream, a, b, static_cast<float*>(t.out),
                         static_cast<int>((depth + kTileDepth - 1) / kTileDepth));
  });
}

// numbers: depth, rows, images, box_rows, channel, row, image
Status run_tile(const PrimitiveTest& t, Stream stream) {
  const int64_t* const n = t.numbers;
  TensorMap map;
  const Status status = make_tensor_map(map, t.a, n[0], n[1], n[2], static_cast<int>(n[3]));
  if (!status.ok()) return status;
  return with_fault(t.fault, [&](auto fault) {
    return launch_hopper(tile_kernel<decltype(fault)::value>, dim3(static_cast<unsigned>(t.grid)),
                         dim3(static_cast<unsigned>(t.block)), static_cast<size_t>(t.dynamic_bytes), stream, map,
                         static_cast<uint16_t*>(t.out), static_cast<int>(n[4]), static_cast<int>(n[5]),
                         static_cast<int>(n[6]), static_cast<int>(n[3]));
  });
}

}  // namespace

Status run_hopper_test(const char* name, const PrimitiveTest& t, Stream stream) {
  const dim3 grid(static_cast<unsigned>(t.grid)), block(static_cast<unsigned>(t.block));
  const size_t bytes = static_cast<size_t>(t.dynamic_bytes);
  const auto is = [&](const char* other) { return std::strcmp(name, other) == 0; };
  const auto a16 = static_cast<const uint16_t*>(t.a), b16 = static_cast<const uint16_t*>(t.b);
  const auto outf = static_cast<float*>(t.out);
  const auto outi = static_cast<int*>(t.out);

  if (is("tile")) return run_tile(t, stream);
  if (is("bulk_load")) {
    return launch_hopper(bulk_load_kernel, grid, block, bytes, stream, static_cast<const unsigned char*>(t.a),
                         static_cast<unsigned char*>(t.out), static_cast<int>(t.numbers[0]),
                         static_cast<int>(t.numbers[1]), static_cast<int>(t.numbers[2]));
  }
  if (is("ping_pong")) {
    return with_fault(t.fault, [&](auto fault) {
      return launch_hopper(ping_pong_kernel<decltype(fault)::value>, grid, block, 0, stream, outi, t.parameter);
    });
  }
  if (is("wgmma_half")) return run_wgmma<Half>(t, bytes, stream);
  if (is("wgmma_bf16")) return run_wgmma<BFloat16>(t, bytes, stream);
  if (is("two_groups")) return launch_hopper(two_groups_kernel<Half>, grid, block, bytes, stream, a16, b16, outf);
  if (is("wgmma_speed_half")) {
    return launch_hopper(wgmma_speed_kernel<Half>, grid, block, bytes, stream, outf, t.parameter);
  }
  if (is("wgmma_speed_bf16")) {
    return launch_hopper(wgmma_speed_kernel<BFloat16>, grid, block, bytes, stream, outf, t.parameter);
  }
  if (is("pipeline_half")) return run_pipeline<Half>(t, stream);
  if (is("pipeline_bf16")) return run_pipeline<BFloat16>(t, stream);
  if (is("registers")) {
    return with_fault(t.fault, [&](auto fault) {
      return launch_hopper(registers_kernel<decltype(fault)::value>, grid, block, 0, stream, outi);
    });
  }
  if (is("named_barrier")) {
    return with_fault(t.fault, [&](auto fault) {
      return launch_hopper(named_barrier_kernel<decltype(fault)::value>, grid, block, 0, stream,
                           static_cast<const int*>(t.a), outi, t.parameter);
    });
  }
  if (is("elect")) return launch_hopper(elect_kernel, grid, block, 0, stream, outi);
  if (is("exp2")) return launch_hopper(exp2_kernel, grid, block, 0, stream, static_cast<const float*>(t.a), outf);
  return {"unknown primitive test"};
}

}  // namespace cosegflow
