// Instructions without a CUDA C++ intrinsic, each a function. tests/emulation/host_instructions.h
// has the same functions for the host.
//
// mma is that of a warp: D [16, 8] += A [16, K] B [K, 8] in float, K 16 half numbers or
// 8 of tf32. With g = lane / 4 and q = lane % 4 a lane holds
//     of D: rows g (d[0], d[1]) and g + 8 (d[2], d[3]), columns 2q and 2q + 1;
//     of A: words a0, a2 of row g and a1, a3 of row g + 8;
//     of B: words b0, b1 of column g;
// a word is two half numbers or one of tf32. Which of the K numbers a word is does not matter for
// the sum as long as A and B agree on it: a0 and a1 go with b0, a2 and a3 with b1.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

#ifndef CAPTIONER_EMULATION

namespace captioner::cuda {

__device__ __forceinline__ void mma(c10::BFloat16, float (&d)[4], uint32_t a0, uint32_t a1,
                                    uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma(c10::Half, float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                    uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma(float, float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                    uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// A float's 32 bits rounded to tf32's ten bits of mantissa, ties away from zero.
__device__ __forceinline__ uint32_t rounded_to_tf32(uint32_t bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}

// Acquire at device scope: after it has read a released value of `flag`, this thread, and those
// that pass a block barrier with it, see what the releasing block had stored before.
__device__ __forceinline__ uint32_t load_acquire(const uint32_t* flag) {
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

// Release at device scope: after a block barrier it covers the stores of all threads of the block.
__device__ __forceinline__ void store_release(uint32_t* flag, uint32_t value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}

// Adds to `counter` with release semantics: after a warp or block barrier it covers the stores of
// all threads of the warp or block.
__device__ __forceinline__ void add_release(uint32_t* counter, uint32_t value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(value) : "memory");
}

// Starts to copy 16 bytes from global to shared memory, past the first-level cache.
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}

// Waits for all copies that this thread has started; a barrier makes them visible to the block.
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// ---- clusters: sm_90 and later; a launch of one is refused elsewhere

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define CAPTIONER_NO_CLUSTERS
#endif

// The cluster barrier, split in two: what a thread has stored before its arrival (release) is seen
// by all threads after their wait (acquire).
__device__ __forceinline__ void cluster_arrive() {
#ifdef CAPTIONER_NO_CLUSTERS
  __trap();
#else
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}

__device__ __forceinline__ void cluster_wait() {
#ifdef CAPTIONER_NO_CLUSTERS
  __trap();
#else
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// The address in the shared memory of the cluster's block `rank` that corresponds to `own`.
template <typename T>
__device__ __forceinline__ T* in_block(T* own, unsigned rank) {
#ifdef CAPTIONER_NO_CLUSTERS
  __trap();
  return own;
#else
  T* remote;
  asm("mapa.u64 %0, %1, %2;" : "=l"(remote) : "l"(own), "r"(rank));
  return remote;
#endif
}

#undef CAPTIONER_NO_CLUSTERS

}  // namespace captioner::cuda

#endif
