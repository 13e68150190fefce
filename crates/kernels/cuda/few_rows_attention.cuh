#pragma once

#include "few_rows_common.cuh"

// Attention of a few rows: shares of a token's keys, one a block.

// Sums over keys, weighted by exp(score - most), and the weights' total.
struct Share {
    float sums[EIGHT], most, total;
};

__device__ __forceinline__ float weight_of(float most, float now) { return most == -INFINITY ? 0.0f : expf(most - now); }

// The share of each lane joined with that of the lane `distance` away.
__device__ __forceinline__ void join_lanes(Share &share, int distance) {
    float other = __shfl_xor_sync(ALL_LANES, share.most, distance), now = fmaxf(share.most, other);
    float mine = weight_of(share.most, now), its = weight_of(other, now);
    share.total = share.total * mine + __shfl_xor_sync(ALL_LANES, share.total, distance) * its;
#pragma unroll
    for (int i = 0; i < EIGHT; i++) {
        share.sums[i] = share.sums[i] * mine + __shfl_xor_sync(ALL_LANES, share.sums[i], distance) * its;
    }
    share.most = now;
}

// The n-th key that a token sees, for an n that only grows.
struct Keys {
    const uint2 *intervals;
    uint32_t at, before;

    __device__ __forceinline__ uint32_t nth(uint32_t n) {
        while (n - before >= intervals[at].y - intervals[at].x) {
            before += intervals[at].y - intervals[at].x;
            at++;
        }
        return intervals[at].x + (n - before);
    }
};

// The shares of all lanes and warps joined, of so many heads; `to` is where that of the first goes.
__device__ __forceinline__ void join_warps(const FewRows &a, Share (&found)[FEW_GROUP], float *shared, int heads,
                                           float *to) {
    int h = a.head_dim, lanes = h / EIGHT, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    __syncthreads();
#pragma unroll
    for (int g = 0; g < FEW_GROUP; g++) {
        if (g >= heads) continue;
        for (int distance = lanes; distance < 32; distance *= 2) join_lanes(found[g], distance);
        float *of_warp = shared + (warp * FEW_GROUP + g) * (h + 2);
        if (lane < lanes) {
#pragma unroll
            for (int i = 0; i < EIGHT; i++) of_warp[lane * EIGHT + i] = found[g].sums[i];
        }
        if (lane == 0) of_warp[h] = found[g].most, of_warp[h + 1] = found[g].total;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < heads * (h + 2); i += FEW_THREADS) {
        int g = i / (h + 2), at = i % (h + 2);
        const float *of_warps = shared + g * (h + 2);
        float most = -INFINITY, sum = 0.0f;
        for (int w = 0; w < FEW_WARPS; w++) most = fmaxf(most, of_warps[w * FEW_GROUP * (h + 2) + h]);
        for (int w = 0; w < FEW_WARPS; w++) {
            const float *one = of_warps + w * FEW_GROUP * (h + 2);
            sum += one[at] * weight_of(one[h], most);
        }
        to[(size_t)g * a.num_shares * (h + 2) + at] = at == h ? most : sum;
    }
}

// A share of one token's keys for one key head: H / 8 lanes a key, and then all lanes and warps joined.
__device__ __forceinline__ void share_of_keys(const FewRows &a, const FewLayer &layer, float *shared, int task) {
    int number = task % a.num_shares, kv_head = task / a.num_shares % a.kv_heads, token = task / a.num_shares / a.kv_heads;
    int h = a.head_dim, group = a.heads / a.kv_heads;
    int lanes = h / EIGHT, slots = FEW_THREADS / lanes, column = threadIdx.x % lanes * EIGHT;
    uint32_t first = layer.offsets[token], count = 0;
    for (uint32_t i = first; i < layer.offsets[token + 1]; i++) count += layer.intervals[i].y - layer.intervals[i].x;
    uint32_t from = (uint64_t)count * number / a.num_shares, to = (uint64_t)count * (number + 1) / a.num_shares;
    for (int of_group = 0; of_group < group; of_group += FEW_GROUP) {
        int head = kv_head * group + of_group, here = min(FEW_GROUP, group - of_group);
        float *q = shared + FEW_WARPS * FEW_GROUP * (h + 2);  // [FEW_GROUP, H]
        for (int i = threadIdx.x; i < FEW_GROUP * h; i += FEW_THREADS) {
            q[i] = i < here * h ? fresh(a.q + (size_t)(token * a.heads + head) * h + i) : 0.0f;
        }
        __syncthreads();
        Share found[FEW_GROUP];
#pragma unroll
        for (int g = 0; g < FEW_GROUP; g++) {
            found[g].most = -INFINITY, found[g].total = 0.0f;
#pragma unroll
            for (int i = 0; i < EIGHT; i++) found[g].sums[i] = 0.0f;
        }
        Keys keys = {layer.intervals, first, 0};
        // All lanes of a warp go round equally often, because they add up their scores together.
        for (uint32_t base = from; base < to; base += slots) {
            uint32_t n = base + threadIdx.x / lanes;
            bool sees = n < to;
            size_t at = ((size_t)keys.nth(sees ? n : base) * a.kv_heads + kv_head) * h + column;
            float k[EIGHT], v[EIGHT];
            fresh8(layer.keys + at, k);
            fresh8(layer.values + at, v);
#pragma unroll
            for (int g = 0; g < FEW_GROUP; g++) {
                float s = 0.0f;
#pragma unroll
                for (int i = 0; i < EIGHT; i++) s += q[g * h + column + i] * k[i];
                for (int distance = lanes / 2; distance > 0; distance /= 2) s += __shfl_xor_sync(ALL_LANES, s, distance);
                s *= a.scale;
                if (a.softcap != 0.0f) s = a.softcap * tanhf(s / a.softcap);
                if (!sees) continue;
                float now = fmaxf(found[g].most, s), kept = weight_of(found[g].most, now), p = expf(s - now);
                found[g].most = now, found[g].total = found[g].total * kept + p;
#pragma unroll
                for (int i = 0; i < EIGHT; i++) found[g].sums[i] = found[g].sums[i] * kept + p * v[i];
            }
        }
        int first_row = token * a.heads + head;
        join_warps(a, found, shared, here, a.shares + ((size_t)first_row * a.num_shares + number) * (h + 2));
    }
}
