#pragma once

#include "common.cuh"

// What the steps of a few rows share (few_rows.cuh).

constexpr int FEW_THREADS = 512;
constexpr int FEW_WARPS = FEW_THREADS / 32;
constexpr int EIGHT = 8;       // numbers that a lane takes at once
constexpr int FEW_GROUP = 4;   // heads that are scored together

struct FewLayer {
    const float *input_norm, *feed_forward_norm;
    const __nv_bfloat16 *q, *k, *v, *o, *gate, *up, *down;
    float *keys, *values;           // [S, K, H]
    const float *cosines, *sines;   // [T, H / 2]; none: no rotation
    const uint32_t *offsets;        // intervals of token t: offsets[t]..offsets[t + 1]
    const uint2 *intervals;         // keys from..to
};

struct FewRows {
    const FewLayer *layers;
    const uint32_t *places;        // of each token's keys and values
    float *x;                      // [T, D]
    float *q, *shares, *hidden;    // [T, N, H], [T, N, shares, H + 2], [T, F]
    unsigned *arrived;             // 0
    int num_layers, rows, width, inner, heads, kv_heads, head_dim, num_shares, activation;
    float eps, offset, scale, softcap;
};

// The number of this warp among those of all blocks, so that neighbours are of different blocks, and how many there are.
__device__ __forceinline__ int few_warp() { return blockIdx.x + threadIdx.x / 32 * gridDim.x; }
__device__ __forceinline__ int few_warps() { return gridDim.x * FEW_WARPS; }

// What other blocks have written is read past the first-level cache.
__device__ __forceinline__ float fresh(const float *from) { return __ldcg(from); }

__device__ __forceinline__ void fresh8(const float *from, float (&to)[EIGHT]) {
    float4 low = __ldcg((const float4 *)from), high = __ldcg((const float4 *)from + 1);
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}
