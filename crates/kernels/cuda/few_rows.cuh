#pragma once

#include "common.cuh"
#include "elementwise.cuh"

// All layers of a decoder for a few tokens in one launch: a token at a time, what a kernel does is over before the host has
// asked for the next one. The blocks, as many as the GPU runs at once, meet after each of a layer's five steps:
//
//   norm, products of q, k and v, rotation; keys and values go to their places
//   scores and sums of a share of the keys, for the heads that share a key head
//   the shares' sums joined, product with o, added to the state
//   norm, products with gate and up, activation
//   product with down, added to the state
//
// Weights are bf16, all else is f32; a warp takes an output, whose weights its lanes read 16 bytes at a time.

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

// What other blocks have written is read past the first-level cache.
__device__ __forceinline__ float fresh(const float *from) { return __ldcg(from); }

__device__ __forceinline__ void fresh8(const float *from, float (&to)[EIGHT]) {
    float4 low = __ldcg((const float4 *)from), high = __ldcg((const float4 *)from + 1);
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

// All blocks of the grid meet; `expected` counts arrivals. What a block wrote before is seen by all after.
__device__ __forceinline__ void meet(unsigned *arrived, unsigned &expected) {
    expected += gridDim.x;
    __syncthreads();
    if (threadIdx.x == 0) {
        add_release(arrived, 1u);
        while (load_acquire(arrived) < expected) {}
    }
    __syncthreads();
}

// Asks for a row of weights that comes next, before the blocks meet.
__device__ __forceinline__ void ask_for(const __nv_bfloat16 *row, int width) {
    constexpr int LINE = 64;  // numbers of 128 bytes
    for (int i = threadIdx.x % 32 * LINE; i < width; i += 32 * LINE) prefetch_l2(row + i);
}

// Products of N rows of weights with the rows of `x` `[ROWS, width]` in shared memory: the sums, in all lanes. As many
// weights as there are registers for are on their way at once.
template <int ROWS, int N>
__device__ __forceinline__ void dots(const __nv_bfloat16 *const (&weights)[N], int width, const float *x,
                                     float (&sums)[N][ROWS]) {
    constexpr int AT_ONCE = ROWS == 1 ? 6 : 3;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int r = 0; r < ROWS; r++) sums[n][r] = 0.0f;
    for (int first = threadIdx.x % 32 * EIGHT; first < width; first += AT_ONCE * 32 * EIGHT) {
        uint4 bits[AT_ONCE][N];
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            int i = first + u * 32 * EIGHT;
#pragma unroll
            for (int n = 0; n < N; n++) bits[u][n] = i < width ? __ldg((const uint4 *)(weights[n] + i)) : uint4{0, 0, 0, 0};
        }
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
            int i = first + u * 32 * EIGHT;
            if (i >= width) break;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                float4 low = *(const float4 *)(x + r * width + i), high = *(const float4 *)(x + r * width + i + 4);
#pragma unroll
                for (int n = 0; n < N; n++) {
                    uint4 w = bits[u][n];
                    sums[n][r] += low_half(w.x) * low.x + high_half(w.x) * low.y + low_half(w.y) * low.z +
                                  high_half(w.y) * low.w + low_half(w.z) * high.x + high_half(w.z) * high.y +
                                  low_half(w.w) * high.z + high_half(w.w) * high.w;
                }
            }
        }
    }
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int r = 0; r < ROWS; r++) sums[n][r] = warp_sum(sums[n][r]);
}

// Rows of `from` `[rows, width]` into shared memory, zeros behind them.
template <int ROWS>
__device__ __forceinline__ void take_rows(const FewRows &a, const float *from, int width, float *to) {
    for (int i = 4 * threadIdx.x; i < ROWS * width; i += 4 * FEW_THREADS) {
        *(float4 *)(to + i) = i < a.rows * width ? __ldcg((const float4 *)(from + i)) : float4{0.0f, 0.0f, 0.0f, 0.0f};
    }
    __syncthreads();
}

// As `take_rows` of the state times the weights of a norm; `scales` is what products with a row are to be multiplied by.
// Some warps take a row.
template <int ROWS>
__device__ __forceinline__ void take_normed(const FewRows &a, const float *weight, float *to, float (&scales)[ROWS]) {
    constexpr int PER_ROW = FEW_THREADS / ROWS, WARPS_PER_ROW = FEW_WARPS / ROWS;
    __shared__ float squares[FEW_WARPS];
    int row = threadIdx.x / PER_ROW;
    const float *from = a.x + (size_t)row * a.width;
    to += row * a.width;
    float sum = 0.0f;
    for (int i = 4 * (threadIdx.x % PER_ROW); i < a.width; i += 4 * PER_ROW) {
        float4 x = row < a.rows ? __ldcg((const float4 *)(from + i)) : float4{0.0f, 0.0f, 0.0f, 0.0f};
        float4 w = __ldg((const float4 *)(weight + i));
        sum += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
        *(float4 *)(to + i) = {x.x * (w.x + a.offset), x.y * (w.y + a.offset), x.z * (w.z + a.offset), x.w * (w.w + a.offset)};
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) squares[threadIdx.x / 32] = sum;
    __syncthreads();
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float total = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS_PER_ROW; w++) total += squares[r * WARPS_PER_ROW + w];
        scales[r] = 1.0f / sqrtf(total / a.width + a.eps);
    }
}

// Two numbers of a head of q, k or v, which rotation turns together.
struct HeadPair {
    int kind, head, at;  // kind 0: q, 1: k, 2: v
};

__device__ __forceinline__ HeadPair head_pair(const FewRows &a, int task) {
    int half = a.head_dim / 2, of_q = a.heads * half, of_k = a.kv_heads * half;
    int kind = task < of_q ? 0 : task < of_q + of_k ? 1 : 2;
    int rest = task - (kind > 0 ? of_q : 0) - (kind > 1 ? of_k : 0);
    return {kind, rest / half, rest % half};
}

__device__ __forceinline__ const __nv_bfloat16 *row_of(const FewRows &a, const FewLayer &layer, HeadPair pair) {
    const __nv_bfloat16 *of_kind = pair.kind == 0 ? layer.q : pair.kind == 1 ? layer.k : layer.v;
    return of_kind + (size_t)(pair.head * a.head_dim + pair.at) * a.width;
}

template <int ROWS>
__device__ __forceinline__ void heads_step(const FewRows &a, const FewLayer &layer, float *shared, int warp, int warps) {
    float scales[ROWS];
    take_normed<ROWS>(a, layer.input_norm, shared, scales);
    int half = a.head_dim / 2, lane = threadIdx.x % 32, tasks = (a.heads + 2 * a.kv_heads) * half;
    for (int task = warp; task < tasks; task += warps) {
        HeadPair pair = head_pair(a, task);
        const __nv_bfloat16 *first = row_of(a, layer, pair);
        const __nv_bfloat16 *const rows[2] = {first, first + (size_t)half * a.width};
        // A lane's row: what it needs at the end is on its way meanwhile.
        bool turns = lane < a.rows && pair.kind != 2 && layer.cosines;
        float c = turns ? layer.cosines[lane * half + pair.at] : 1.0f, s = turns ? layer.sines[lane * half + pair.at] : 0.0f;
        size_t key_row = lane < a.rows && pair.kind != 0 ? a.places[lane] : 0;
        float sums[2][ROWS];
        dots<ROWS, 2>(rows, a.width, shared, sums);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (lane != r || r >= a.rows) continue;
            float x = sums[0][r] * scales[r], y = sums[1][r] * scales[r];
            float *to = pair.kind == 0 ? a.q + (size_t)(r * a.heads + pair.head) * a.head_dim
                                       : (pair.kind == 1 ? layer.keys : layer.values) +
                                             (key_row * a.kv_heads + pair.head) * a.head_dim;
            to[pair.at] = x * c - y * s, to[pair.at + half] = y * c + x * s;
        }
    }
}

// Sums over keys, weighted by exp(score - most), and the weights' total.
struct Share {
    float sums[EIGHT], most, total;
};

__device__ __forceinline__ float weight_of(float most, float now) { return most == -INFINITY ? 0.0f : expf(most - now); }

// `from` of each lane joined with that of the lane `distance` away.
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

// A share of one token's keys for one key head: H / 8 lanes a key, and then all lanes and warps joined.
__device__ __forceinline__ void share_of_keys(const FewRows &a, const FewLayer &layer, float *shared, int token,
                                              int kv_head, int number) {
    int h = a.head_dim, group = a.heads / a.kv_heads, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int lanes = h / EIGHT, slots = FEW_THREADS / lanes, column = lane % lanes * EIGHT;
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
        __syncthreads();
#pragma unroll
        for (int g = 0; g < FEW_GROUP; g++) {
            if (g >= here) continue;
            for (int distance = lanes; distance < 32; distance *= 2) join_lanes(found[g], distance);
            float *of_warp = shared + (warp * FEW_GROUP + g) * (h + 2);
            if (lane < lanes) {
#pragma unroll
                for (int i = 0; i < EIGHT; i++) of_warp[column + i] = found[g].sums[i];
            }
            if (lane == 0) of_warp[h] = found[g].most, of_warp[h + 1] = found[g].total;
        }
        __syncthreads();
        for (int i = threadIdx.x; i < here * (h + 2); i += FEW_THREADS) {
            int g = i / (h + 2), at = i % (h + 2);
            const float *of_warps = shared + g * (h + 2);
            float most = -INFINITY, sum = 0.0f;
            for (int w = 0; w < FEW_WARPS; w++) most = fmaxf(most, of_warps[w * FEW_GROUP * (h + 2) + h]);
            for (int w = 0; w < FEW_WARPS; w++) {
                const float *one = of_warps + w * FEW_GROUP * (h + 2);
                sum += one[at] * weight_of(one[h], most);
            }
            a.shares[((size_t)(token * a.heads + head + g) * a.num_shares + number) * (h + 2) + at] = at == h ? most : sum;
        }
    }
}

// What the heads found, from the shares of their keys: `[ROWS, N * H]` in shared memory. A thread takes two numbers.
template <int ROWS>
__device__ __forceinline__ void join_shares(const FewRows &a, float *to) {
    int h = a.head_dim, width = a.heads * h;
    for (int i = 2 * threadIdx.x; i < ROWS * width; i += 2 * FEW_THREADS) {
        float2 sum = {0.0f, 0.0f};
        if (i < a.rows * width) {
            const float *shares = a.shares + (size_t)(i / h) * a.num_shares * (h + 2);
            float most[2] = {-INFINITY, -INFINITY}, total = 0.0f;
            // Eight shares are on their way at once.
            for (int first = 0; first < a.num_shares; first += 8) {
                float2 stats[8], part[8];
#pragma unroll
                for (int u = 0; u < 8; u++) {
                    const float *share = shares + (first + u) * (h + 2);
                    bool is_there = first + u < a.num_shares;
                    stats[u] = is_there ? __ldcg((const float2 *)(share + h)) : float2{-INFINITY, 0.0f};
                    part[u] = is_there ? __ldcg((const float2 *)(share + i % h)) : float2{0.0f, 0.0f};
                }
#pragma unroll
                for (int u = 0; u < 8; u++) most[1] = fmaxf(most[1], stats[u].x);
                float kept = weight_of(most[0], most[1]);
                total *= kept, sum.x *= kept, sum.y *= kept, most[0] = most[1];
#pragma unroll
                for (int u = 0; u < 8; u++) {
                    float weight = weight_of(stats[u].x, most[1]);
                    total += weight * stats[u].y, sum.x += weight * part[u].x, sum.y += weight * part[u].y;
                }
            }
            sum.x /= total, sum.y /= total;
        }
        *(float2 *)(to + i) = sum;
    }
    __syncthreads();
}

// Adds the products of `x` `[ROWS, width]`, in shared memory, with a matrix to the state.
template <int ROWS>
__device__ __forceinline__ void add_product(const FewRows &a, const __nv_bfloat16 *matrix, int width, const float *x,
                                            int warp, int warps) {
    int lane = threadIdx.x % 32;
    for (int out = warp; out < a.width; out += warps) {
        const __nv_bfloat16 *const rows[1] = {matrix + (size_t)out * width};
        float *to = a.x + (size_t)lane * a.width + out, before = lane < a.rows ? fresh(to) : 0.0f, sums[1][ROWS];
        dots<ROWS, 1>(rows, width, x, sums);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (lane == r && r < a.rows) *to = before + sums[0][r];
        }
    }
}

template <int ROWS>
__device__ __forceinline__ void gates_step(const FewRows &a, const FewLayer &layer, float *shared, int warp, int warps) {
    float scales[ROWS];
    take_normed<ROWS>(a, layer.feed_forward_norm, shared, scales);
    for (int out = warp; out < a.inner; out += warps) {
        size_t row = (size_t)out * a.width;
        const __nv_bfloat16 *const rows[2] = {layer.gate + row, layer.up + row};
        float sums[2][ROWS];
        dots<ROWS, 2>(rows, a.width, shared, sums);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (threadIdx.x % 32 != r || r >= a.rows) continue;
            float gate = sums[0][r] * scales[r], up = sums[1][r] * scales[r];
            a.hidden[(size_t)r * a.inner + out] = activate<false>(gate, a.activation).value * up;
        }
    }
}

template <int ROWS>
__device__ __forceinline__ void few_rows(const FewRows &a) {
    extern __shared__ float4 few_rows_memory[];
    float *shared = (float *)few_rows_memory;
    int warps = gridDim.x * FEW_WARPS, warp = blockIdx.x + threadIdx.x / 32 * gridDim.x;
    unsigned expected = 0;
    int attended = a.heads * a.head_dim;
    // In turns, so that one is read while the next comes.
    __shared__ FewLayer turns[2];
    constexpr int WORDS = sizeof(FewLayer) / sizeof(uint64_t);
    auto fetch = [&](int number) {
        if (threadIdx.x < WORDS) ((uint64_t *)&turns[number % 2])[threadIdx.x] = ((const uint64_t *)(a.layers + number))[threadIdx.x];
    };
    fetch(0);
    __syncthreads();
    for (int number = 0; number < a.num_layers; number++) {
        const FewLayer &layer = turns[number % 2];
        if (number + 1 < a.num_layers) fetch(number + 1);
        heads_step<ROWS>(a, layer, shared, warp, warps);
        if (warp < a.width) ask_for(layer.o + (size_t)warp * attended, attended);
        meet(a.arrived, expected);
        int shares = a.rows * a.kv_heads * a.num_shares;
        for (int task = blockIdx.x; task < shares; task += gridDim.x) {
            int of_head = task / a.num_shares;
            share_of_keys(a, layer, shared, of_head / a.kv_heads, of_head % a.kv_heads, task % a.num_shares);
        }
        if (warp < a.inner) ask_for(layer.gate + (size_t)warp * a.width, a.width);
        if (warp < a.inner) ask_for(layer.up + (size_t)warp * a.width, a.width);
        meet(a.arrived, expected);
        join_shares<ROWS>(a, shared);
        add_product<ROWS>(a, layer.o, attended, shared, warp, warps);
        if (warp < a.width) ask_for(layer.down + (size_t)warp * a.inner, a.inner);
        meet(a.arrived, expected);
        gates_step<ROWS>(a, layer, shared, warp, warps);
        if (number + 1 < a.num_layers && warp < (a.heads + 2 * a.kv_heads) * a.head_dim / 2) {
            const __nv_bfloat16 *next = row_of(a, turns[(number + 1) % 2], head_pair(a, warp));
            ask_for(next, a.width);
            ask_for(next + (size_t)a.head_dim / 2 * a.width, a.width);
        }
        meet(a.arrived, expected);
        take_rows<ROWS>(a, a.hidden, a.inner, shared);
        add_product<ROWS>(a, layer.down, a.inner, shared, warp, warps);
        meet(a.arrived, expected);
    }
}

#define FEW_ROWS(N) \
    extern "C" __global__ void __launch_bounds__(FEW_THREADS, 1) few_rows_##N(FewRows a) { few_rows<N>(a); }
FEW_ROWS(1)
FEW_ROWS(2)
FEW_ROWS(4)
FEW_ROWS(8)
