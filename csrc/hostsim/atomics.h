// hostsim: atomics, cached loads and fences. Fibers only switch at collectives, so plain operations are atomic.
#pragma once

#include <cstring>

#include "hostsim/runtime.h"

#define CSF_HOSTSIM_ATOMIC(name, type, expression) \
  inline type name(type* address, type value) {    \
    const type old = *address;                     \
    *address = (expression);                       \
    return old;                                    \
  }
#define CSF_HOSTSIM_ATOMICS_OF(type)                               \
  CSF_HOSTSIM_ATOMIC(atomicAdd, type, old + value)                 \
  CSF_HOSTSIM_ATOMIC(atomicExch, type, value)                      \
  CSF_HOSTSIM_ATOMIC(atomicMax, type, old > value ? old : value)   \
  CSF_HOSTSIM_ATOMIC(atomicMin, type, old < value ? old : value)   \
  CSF_HOSTSIM_ATOMIC(atomicAnd, type, old& value)                  \
  CSF_HOSTSIM_ATOMIC(atomicOr, type, old | value)                  \
  CSF_HOSTSIM_ATOMIC(atomicXor, type, old ^ value)                 \
  inline type atomicCAS(type* address, type compare, type value) { \
    const type old = *address;                                     \
    if (old == compare) *address = value;                          \
    return old;                                                    \
  }
CSF_HOSTSIM_ATOMICS_OF(unsigned)
CSF_HOSTSIM_ATOMICS_OF(unsigned long long)
#undef CSF_HOSTSIM_ATOMICS_OF
CSF_HOSTSIM_ATOMIC(atomicAdd, float, old + value)
CSF_HOSTSIM_ATOMIC(atomicAdd, double, old + value)
CSF_HOSTSIM_ATOMIC(atomicExch, float, value)
CSF_HOSTSIM_ATOMIC(atomicExch, int, value)
CSF_HOSTSIM_ATOMIC(atomicMax, int, old > value ? old : value)
CSF_HOSTSIM_ATOMIC(atomicMin, int, old < value ? old : value)
CSF_HOSTSIM_ATOMIC(atomicMax, long long, old > value ? old : value)
CSF_HOSTSIM_ATOMIC(atomicMin, long long, old < value ? old : value)
CSF_HOSTSIM_ATOMIC(atomicAnd, int, old& value)
CSF_HOSTSIM_ATOMIC(atomicOr, int, old | value)
#undef CSF_HOSTSIM_ATOMIC

inline int atomicAdd(int* address, int value) {  // wraps, as on the device
  const int old = *address;
  *address = static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value));
  return old;
}
inline int atomicCAS(int* address, int compare, int value) {
  const int old = *address;
  if (old == compare) *address = value;
  return old;
}

// Loads and stores with a cache hint. A vector type must be aligned, as on the device.
namespace cosegflow {
namespace hostsim {
template <class T>
inline void check_aligned(const T* p, const char* what) {
  if (reinterpret_cast<uintptr_t>(p) % alignof(T) != 0) {
    fail("%s: the address %p is not aligned to %zu bytes", what, static_cast<const void*>(p), alignof(T));
  }
}
}  // namespace hostsim
}  // namespace cosegflow

#define CSF_HOSTSIM_LOAD(name)                   \
  template <class T>                             \
  inline T name(const T* p) {                    \
    cosegflow::hostsim::check_aligned(p, #name); \
    return *p;                                   \
  }
CSF_HOSTSIM_LOAD(__ldg)
CSF_HOSTSIM_LOAD(__ldcg)
CSF_HOSTSIM_LOAD(__ldca)
CSF_HOSTSIM_LOAD(__ldcs)
#undef CSF_HOSTSIM_LOAD
#define CSF_HOSTSIM_STORE(name)                  \
  template <class T>                             \
  inline void name(T* p, T value) {              \
    cosegflow::hostsim::check_aligned(p, #name); \
    *p = value;                                  \
  }
CSF_HOSTSIM_STORE(__stcg)
CSF_HOSTSIM_STORE(__stcs)
CSF_HOSTSIM_STORE(__stwt)
#undef CSF_HOSTSIM_STORE

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) { cosegflow::hostsim::yield(); }
[[noreturn]] inline void __trap() { cosegflow::hostsim::fail("__trap()"); }
