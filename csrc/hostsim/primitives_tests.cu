// See primitives_tests.h. Also compiles under nvcc, so that the same tests can run on a GPU.
#include "hostsim/primitives_tests.h"

#include <cstring>

#include "common/half.h"
#include "primitives/async_copy.cuh"
#include "primitives/launch.cuh"
#include "primitives/mma.cuh"
#include "primitives/warp_reduce.cuh"

namespace cosegflow {
namespace {

constexpr unsigned kAll = 0xffffffffu;

// ---- ldmatrix and mma -------------------------------------------------------------------------------------------

// a: 32 rows of 8 numbers of 16 bits; lane i names row i. out: the registers of each lane.
template <int Tiles, bool Transposed>
__global__ void ldmatrix_kernel(const uint16_t* a, uint32_t* out) {
  struct __align__(16) Rows {
    uint16_t at[32][8];
  };
  CSF_SHARED(Rows, rows);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 8; ++i) rows.at[lane][i] = a[lane * 8 + i];
  __syncthreads();
  uint32_t r[Tiles];
  if constexpr (Tiles == 4) {
    if constexpr (Transposed) {
      ldmatrix_x4_trans(r, rows.at[lane]);
    } else {
      ldmatrix_x4(r, rows.at[lane]);
    }
  } else {
    if constexpr (Transposed) {
      ldmatrix_x2_trans(r, rows.at[lane]);
    } else {
      ldmatrix_x2(r, rows.at[lane]);
    }
  }
  for (int i = 0; i < Tiles; ++i) out[lane * Tiles + i] = r[i];
}

// a: [32][4] registers, b: [32][2] registers, out: [32][4] floats, read and written.
template <class T>
__global__ void mma_registers_kernel(const uint32_t* a, const uint32_t* b, float* out) {
  const int lane = static_cast<int>(threadIdx.x);
  uint32_t ra[4], rb[2];
  float d[4];
  for (int i = 0; i < 4; ++i) ra[i] = a[lane * 4 + i];
  for (int i = 0; i < 2; ++i) rb[i] = b[lane * 2 + i];
  for (int i = 0; i < 4; ++i) d[i] = out[lane * 4 + i];
  mma_m16n8k16<T>(d, ra, rb);
  for (int i = 0; i < 4; ++i) out[lane * 4 + i] = d[i];
}

// out (16 x 8, by row) += A (16 x 16) * B (16 x 8) through shared memory and ldmatrix. a: by row. b: by column
// ("k fastest"), or by row with `Transposed`.
template <class T, bool Transposed>
__global__ void mma_shared_kernel(const T* a, const T* b, float* out) {
  struct __align__(16) Tiles {
    T a[16][16];
    T b[16 * 8];
  };
  CSF_SHARED(Tiles, s);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) s.a[i / 16][i % 16] = a[i];
  for (int i = lane; i < 128; i += 32) s.b[i] = b[i];
  __syncwarp();
  uint32_t ra[4], rb[2];
  ldmatrix_x4(ra, &s.a[lane % 16][lane / 16 * 8]);
  if constexpr (Transposed) {
    ldmatrix_x2_trans(rb, &s.b[lane % 16 * 8]);
  } else {
    ldmatrix_x2(rb, &s.b[lane % 8 * 16 + lane / 8 % 2 * 8]);
  }
  const int row = lane / 4, column = 2 * (lane % 4);
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = out[(row + i / 2 * 8) * 8 + column + i % 2];
  mma_m16n8k16<T>(d, ra, rb);
  for (int i = 0; i < 4; ++i) out[(row + i / 2 * 8) * 8 + column + i % 2] = d[i];
}

// ---- warp and block ---------------------------------------------------------------------------------------------

// parameter: operand + 256 * width
template <class T, int Kind>
__global__ void shuffle_kernel(const T* a, T* out, int parameter) {
  const int t = static_cast<int>(threadIdx.x), operand = parameter % 256, width = parameter / 256;
  T v = a[t];
  if (Kind == 0) v = __shfl_sync(kAll, v, operand, width);
  if (Kind == 1) v = __shfl_up_sync(kAll, v, static_cast<unsigned>(operand), width);
  if (Kind == 2) v = __shfl_down_sync(kAll, v, static_cast<unsigned>(operand), width);
  if (Kind == 3) v = __shfl_xor_sync(kAll, v, operand, width);
  out[t] = v;
}

// out: per thread ballot, any, all; then or, and, count over the block.
__global__ void vote_kernel(const int* a, int* out) {
  const int t = static_cast<int>(threadIdx.x), p = a[t];
  out[t * 6 + 0] = static_cast<int>(__ballot_sync(kAll, p));
  out[t * 6 + 1] = __any_sync(kAll, p);
  out[t * 6 + 2] = __all_sync(kAll, p);
  out[t * 6 + 3] = __syncthreads_or(p);
  out[t * 6 + 4] = __syncthreads_and(p);
  out[t * 6 + 5] = __syncthreads_count(p);
}

// Both halves of a warp exchange among themselves, a different number of times, then all together.
__global__ void half_warp_kernel(const int* a, int* out) {
  const int t = static_cast<int>(threadIdx.x);
  const unsigned mask = t % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
  int v = a[t];
  for (int i = 0; i < (t % 32 < 16 ? 1 : 3); ++i) v = __shfl_xor_sync(mask, v, 1);
  __syncwarp();
  out[t] = __shfl_sync(kAll, v, 31 - t % 32);
}

template <class T>
__global__ void reduce_kernel(const T* a, T* out) {
  const int t = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  const T v = a[t];
  out[t] = warp_reduce_sum(v);
  out[t + n] = warp_reduce_max(v);
  out[t + 2 * n] = warp_reduce_sum<8>(v);
  out[t + 3 * n] = warp_reduce_max<4>(v);
  out[t + 4 * n] = block_reduce_sum(v);
  out[t + 5 * n] = block_reduce_sum(v * v);
}

// Every block: a histogram by atomics of a, in out[0..7]; out[8] counts blocks.
__global__ void atomic_kernel(const int* a, float* out, int n) {
  const int t = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (t < n) atomicAdd(&out[a[t]], 1.0f);
  if (threadIdx.x == 0) atomicAdd(&out[8], 1.0f);
}

// ---- cp.async ---------------------------------------------------------------------------------------------------

// Each thread fetches 16 bytes in each of two groups and writes what it then sees to out.
// parameter 0: waits for both; 1: waits for the first only; 2: does not wait; 3: odd threads fetch nothing (zeros);
// 4: does not commit; 5: the destination is not aligned; 6: overwrites a stage and reads its old content.
__global__ void cp_async_kernel(const float* a, float* out, int parameter) {
  CSF_DYNAMIC_SHARED(float, s);
  const int t = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  const bool valid = parameter != 3 || t % 2 == 0;
  float* first = s + 4 * t;
  float* second = s + 4 * (n + t);
  cp_async_16(first + (parameter == 5 ? 1 : 0), a + 4 * t, valid);
  cp_async_commit();
  cp_async_16(second, a + 4 * (n + t), valid);
  if (parameter != 4) cp_async_commit();
  if (parameter == 0 || parameter == 3 || parameter == 4 || parameter == 6) cp_async_wait<0>();
  if (parameter == 1) cp_async_wait<1>();
  if (parameter == 6) cp_async_16(first, a, true);
  for (int i = 0; i < 4; ++i) {
    out[4 * t + i] = first[i];
    out[4 * (n + t) + i] = second[i];
  }
  cp_async_wait<0>();
}

// ---- shared memory ----------------------------------------------------------------------------------------------

// Reads shared memory that nobody has written, then writes it: the next block must not see that.
__global__ void poison_kernel(float* out) {
  using Row = float[32];
  CSF_SHARED(Row, row);
  CSF_DYNAMIC_SHARED(float, dynamic);
  const int t = static_cast<int>(threadIdx.x);
  float* o = out + blockIdx.x * 64;
  o[t] = row[t];
  o[32 + t] = dynamic[t];
  row[t] = 1.0f;
  dynamic[t] = 1.0f;
}

// Mirrors a through shared memory. Without the barrier it works in one thread order only.
template <bool WithBarrier>
__global__ void mirror_kernel(const float* a, float* out) {
  CSF_DYNAMIC_SHARED(float, s);
  const int t = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  s[t] = a[t];
  if (WithBarrier) __syncthreads();
  out[t] = s[n - 1 - t];
}

// Touches one element too many: 0 reads static, 1 writes static, 2 reads dynamic, 3 writes dynamic, 4 reads global.
__global__ void overrun_kernel(const float* a, float* out, int parameter, int beyond) {
  using Row = float[32];
  CSF_SHARED(Row, row);
  CSF_DYNAMIC_SHARED(float, dynamic);
  const int t = static_cast<int>(threadIdx.x);
  float* const flat = &row[0];
  flat[t] = dynamic[t] = 0.0f;
  if (parameter == 0) out[t] = flat[t + beyond];
  if (parameter == 1) flat[t + beyond] = 1.0f;
  if (parameter == 2) out[t] = dynamic[t + beyond];
  if (parameter == 3) dynamic[t + beyond] = 1.0f;
  if (parameter == 4) out[t] = a[t + beyond];
}

// ---- kernels that are wrong -------------------------------------------------------------------------------------

// 0: the upper half returns before a barrier; 1: two different barriers; 2: the upper half of a warp returns before a
// shuffle; 3: the mask does not name the caller; 4: half a warp at a barrier, half at __syncwarp; 5: one polls forever;
// 6: lanes disagree on the mask; 7: a trap; 8: a barrier first, then a thread that returns late
__global__ void wrong_kernel(int* out, int parameter) {
  const int t = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  const bool upper = t >= n / 2;
  if (parameter == 0) {
    if (upper) return;
    __syncthreads();
  }
  if (parameter == 1) {
    if (upper) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  }
  if (parameter == 2) {
    if (t % 32 >= 16) return;
    out[t] = __shfl_down_sync(kAll, t, 1);
  }
  if (parameter == 3) __syncwarp(t % 32 == 5 ? 0xfu : 0xfu);
  if (parameter == 4) {
    if (t % 32 < 16) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }
  if (parameter == 5 && t == 0) {
    volatile int* flag = out;
    while (*flag == 0) __nanosleep(10);
  }
  if (parameter == 6) __syncwarp(t % 32 < 16 ? kAll : 0xffff0000u | (1u << (t % 32)));
  if (parameter == 7 && t == 3) __trap();
  if (parameter == 8) {
    __syncthreads();
    if (t == 7) return;
    __syncthreads();
  }
}

// As much work as a collective-free and a barrier-bound kernel have, to measure the simulation.
__global__ void speed_kernel(float* out, int parameter) {
  const int t = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  float v = static_cast<float>(t);
  for (int i = 0; i < parameter; ++i) v += __shfl_xor_sync(kAll, v, 1);
  out[t] = v;
}

template <class T>
__global__ void mma_speed_kernel(float* out, int parameter) {
  uint32_t a[4] = {1, 2, 3, 4}, b[2] = {5, 6};
  float d[4] = {};
  for (int i = 0; i < parameter; ++i) mma_m16n8k16<T>(d, a, b);
  out[blockIdx.x * blockDim.x + threadIdx.x] = d[0] + d[1] + d[2] + d[3];
}

template <class T>
bool run_shuffle(const char* kind, const PrimitiveTest& t, Stream stream, Status* status) {
  const auto go = [&](auto kernel) {
    *status = launch(kernel, dim3(static_cast<unsigned>(t.grid)), dim3(static_cast<unsigned>(t.block)), 0, stream,
                     static_cast<const T*>(t.a), static_cast<T*>(t.out), t.parameter);
    return true;
  };
  if (std::strcmp(kind, "idx") == 0) return go(shuffle_kernel<T, 0>);
  if (std::strcmp(kind, "up") == 0) return go(shuffle_kernel<T, 1>);
  if (std::strcmp(kind, "down") == 0) return go(shuffle_kernel<T, 2>);
  if (std::strcmp(kind, "xor") == 0) return go(shuffle_kernel<T, 3>);
  return false;
}

}  // namespace

Status run_primitive_test(const char* name, const PrimitiveTest& t, Stream stream) {
  const dim3 grid(static_cast<unsigned>(t.grid)), block(static_cast<unsigned>(t.block));
  const size_t bytes = static_cast<size_t>(t.dynamic_bytes);
  const auto is = [&](const char* other) { return std::strcmp(name, other) == 0; };
  const auto a16 = static_cast<const uint16_t*>(t.a);
  const auto a32 = static_cast<const uint32_t*>(t.a), b32 = static_cast<const uint32_t*>(t.b);
  const auto af = static_cast<const float*>(t.a);
  const auto ai = static_cast<const int*>(t.a);
  const auto outf = static_cast<float*>(t.out);
  const auto outi = static_cast<int*>(t.out);
  const auto out32 = static_cast<uint32_t*>(t.out);
  const auto ah = static_cast<const Half*>(t.a), bh = static_cast<const Half*>(t.b);
  const auto ab = static_cast<const BFloat16*>(t.a), bb = static_cast<const BFloat16*>(t.b);

  if (is("ldmatrix_x4")) return launch(ldmatrix_kernel<4, false>, grid, block, 0, stream, a16, out32);
  if (is("ldmatrix_x4_trans")) return launch(ldmatrix_kernel<4, true>, grid, block, 0, stream, a16, out32);
  if (is("ldmatrix_x2")) return launch(ldmatrix_kernel<2, false>, grid, block, 0, stream, a16, out32);
  if (is("ldmatrix_x2_trans")) return launch(ldmatrix_kernel<2, true>, grid, block, 0, stream, a16, out32);
  if (is("mma_registers_half")) return launch(mma_registers_kernel<Half>, grid, block, 0, stream, a32, b32, outf);
  if (is("mma_registers_bf16")) return launch(mma_registers_kernel<BFloat16>, grid, block, 0, stream, a32, b32, outf);
  if (is("mma_half")) return launch(mma_shared_kernel<Half, false>, grid, block, 0, stream, ah, bh, outf);
  if (is("mma_bf16")) return launch(mma_shared_kernel<BFloat16, false>, grid, block, 0, stream, ab, bb, outf);
  if (is("mma_half_trans")) return launch(mma_shared_kernel<Half, true>, grid, block, 0, stream, ah, bh, outf);
  if (is("mma_bf16_trans")) return launch(mma_shared_kernel<BFloat16, true>, grid, block, 0, stream, ab, bb, outf);
  if (is("vote")) return launch(vote_kernel, grid, block, 0, stream, ai, outi);
  if (is("half_warp")) return launch(half_warp_kernel, grid, block, 0, stream, ai, outi);
  if (is("reduce_f32")) return launch(reduce_kernel<float>, grid, block, 0, stream, af, outf);
  if (is("reduce_f64")) {
    return launch(reduce_kernel<double>, grid, block, 0, stream, static_cast<const double*>(t.a),
                  static_cast<double*>(t.out));
  }
  if (is("atomic")) return launch(atomic_kernel, grid, block, 0, stream, ai, outf, t.parameter);
  if (is("cp_async")) return launch(cp_async_kernel, grid, block, bytes, stream, af, outf, t.parameter);
  if (is("poison")) return launch(poison_kernel, grid, block, bytes, stream, outf);
  if (is("mirror")) return launch(mirror_kernel<true>, grid, block, bytes, stream, af, outf);
  if (is("mirror_without_barrier")) return launch(mirror_kernel<false>, grid, block, bytes, stream, af, outf);
  if (is("overrun")) return launch(overrun_kernel, grid, block, bytes, stream, af, outf, t.parameter, 1);
  if (is("wrong")) return launch(wrong_kernel, grid, block, bytes, stream, outi, t.parameter);
  if (is("speed")) return launch(speed_kernel, grid, block, 0, stream, outf, t.parameter);
  if (is("mma_speed_half")) return launch(mma_speed_kernel<Half>, grid, block, 0, stream, outf, t.parameter);
  if (is("mma_speed_bf16")) return launch(mma_speed_kernel<BFloat16>, grid, block, 0, stream, outf, t.parameter);

  Status status{"unknown primitive test"};
  if (std::strncmp(name, "shfl_", 5) == 0) {
    const char* type = std::strrchr(name, '_') + 1;
    char kind[16] = {};
    for (const char* p = name + 5; p + 1 < type && p < name + 20; ++p) kind[p - name - 5] = *p;
    if (std::strcmp(type, "i32") == 0) run_shuffle<int>(kind, t, stream, &status);
    if (std::strcmp(type, "u32") == 0) run_shuffle<unsigned>(kind, t, stream, &status);
    if (std::strcmp(type, "i64") == 0) run_shuffle<long long>(kind, t, stream, &status);
    if (std::strcmp(type, "f32") == 0) run_shuffle<float>(kind, t, stream, &status);
    if (std::strcmp(type, "f64") == 0) run_shuffle<double>(kind, t, stream, &status);
  }
  return status;
}

}  // namespace cosegflow
