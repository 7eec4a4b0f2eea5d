// hostsim: the vector types of CUDA and the qualifiers that mean nothing to g++.
#pragma once

#include <cstddef>
#include <cstdint>

#define COSEGFLOW_HOSTSIM 1

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// `__shared__` is deliberately not defined: use CSF_SHARED and CSF_DYNAMIC_SHARED (primitives/launch.cuh), which start
// poisoned and have their own heap allocation.

struct CUstream_st;
using cudaStream_t = CUstream_st*;

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

#define CSF_HOSTSIM_VECTORS(scalar, name, align2, align4)                 \
  struct name##1 { scalar x; };                                           \
  struct __attribute__((aligned(align2))) name##2 { scalar x, y; };       \
  struct __attribute__((aligned(align4))) name##4 { scalar x, y, z, w; }; \
  constexpr name##2 make_##name##2(scalar x, scalar y) { return {x, y}; } \
  constexpr name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }
CSF_HOSTSIM_VECTORS(char, char, 2, 4)
CSF_HOSTSIM_VECTORS(unsigned char, uchar, 2, 4)
CSF_HOSTSIM_VECTORS(short, short, 4, 8)
CSF_HOSTSIM_VECTORS(unsigned short, ushort, 4, 8)
CSF_HOSTSIM_VECTORS(int, int, 8, 16)
CSF_HOSTSIM_VECTORS(unsigned, uint, 8, 16)
CSF_HOSTSIM_VECTORS(long long, longlong, 16, 16)
CSF_HOSTSIM_VECTORS(float, float, 8, 16)
CSF_HOSTSIM_VECTORS(double, double, 16, 16)
#undef CSF_HOSTSIM_VECTORS

struct float3 {
  float x, y, z;
};
struct int3 {
  int x, y, z;
};
struct double3 {
  double x, y, z;
};
constexpr float3 make_float3(float x, float y, float z) { return {x, y, z}; }
constexpr int3 make_int3(int x, int y, int z) { return {x, y, z}; }
constexpr uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
