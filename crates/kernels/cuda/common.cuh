#pragma once

#include <cuda_bf16.h>
#include <stdint.h>

#define KERNEL extern "C" __global__ void

constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ float warp_sum(float x) {
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}

__device__ __forceinline__ double warp_sum(double x) {
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
    return x;
}

__device__ __forceinline__ int warp_min(int x) {
    for (int distance = 16; distance > 0; distance /= 2) x = min(x, __shfl_xor_sync(ALL_LANES, x, distance));
    return x;
}

// The number of this thread in a grid of one dimension, and the number of threads there.
__device__ __forceinline__ size_t thread_number() { return (size_t)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ size_t num_threads() { return (size_t)gridDim.x * blockDim.x; }

__device__ __forceinline__ void store(float *to, float x) { *to = x; }
__device__ __forceinline__ void store(__nv_bfloat16 *to, float x) { *to = __float2bfloat16(x); }
__device__ __forceinline__ float load(const float *from) { return *from; }
__device__ __forceinline__ float load(const __nv_bfloat16 *from) { return __bfloat162float(*from); }

// The numbers of two bf16 bit patterns, the first in the low half.
__device__ __forceinline__ float low_half(uint32_t bits) { return __uint_as_float(bits << 16); }
__device__ __forceinline__ float high_half(uint32_t bits) { return __uint_as_float(bits & 0xffff0000u); }

// Asks for the 128 bytes at an address, into the second-level cache.
__device__ __forceinline__ void prefetch_l2(const void *at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

// Adds to a counter that other blocks wait on, after all that this block has written; and the counter as they read it.
__device__ __forceinline__ void add_release(unsigned *counter, unsigned count) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(count) : "memory");
}

__device__ __forceinline__ unsigned load_acquire(const unsigned *counter) {
    unsigned found;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(found) : "l"(counter) : "memory");
    return found;
}
