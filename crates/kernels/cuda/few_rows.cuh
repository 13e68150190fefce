#pragma once

#include "elementwise.cuh"
#include "few_rows_attention.cuh"
#include "few_rows_common.cuh"

// All layers of a decoder for a few tokens in one launch: a token at a time, what a kernel does is over before the host has
// asked for the next one. The blocks, one for each multiprocessor, meet after each of a layer's five steps:
//
//   norm, products of q, k and v, rotation; keys and values go to their places
//   scores and sums of a share of the keys, for the heads that share a key head
//   the shares' sums joined, product with o, added to the state
//   norm, products with gate and up, activation
//   product with down, added to the state
//
// Weights are bf16, all else is f32; a warp takes an output, whose weights its lanes read 16 bytes at a time.

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
__device__ __forceinline__ void heads_step(const FewRows &a, const FewLayer &layer, float *shared) {
    float scales[ROWS];
    take_normed<ROWS>(a, layer.input_norm, shared, scales);
    int half = a.head_dim / 2, lane = threadIdx.x % 32, tasks = (a.heads + 2 * a.kv_heads) * half;
    for (int task = few_warp(); task < tasks; task += few_warps()) {
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
__device__ __forceinline__ void add_product(const FewRows &a, const __nv_bfloat16 *matrix, int width, const float *x) {
    int lane = threadIdx.x % 32;
    for (int out = few_warp(); out < a.width; out += few_warps()) {
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
__device__ __forceinline__ void gates_step(const FewRows &a, const FewLayer &layer, float *shared) {
    float scales[ROWS];
    take_normed<ROWS>(a, layer.feed_forward_norm, shared, scales);
    for (int out = few_warp(); out < a.inner; out += few_warps()) {
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
    int warp = few_warp();
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
        heads_step<ROWS>(a, layer, shared);
        if (warp < a.width) ask_for(layer.o + (size_t)warp * attended, attended);
        meet(a.arrived, expected);
        int shares = a.rows * a.kv_heads * a.num_shares;
        for (int task = blockIdx.x; task < shares; task += gridDim.x) share_of_keys(a, layer, shared, task);
        if (warp < a.inner) ask_for(layer.gate + (size_t)warp * a.width, a.width);
        if (warp < a.inner) ask_for(layer.up + (size_t)warp * a.width, a.width);
        meet(a.arrived, expected);
        join_shares<ROWS>(a, shared);
        add_product<ROWS>(a, layer.o, attended, shared);
        if (warp < a.width) ask_for(layer.down + (size_t)warp * a.inner, a.inner);
        meet(a.arrived, expected);
        gates_step<ROWS>(a, layer, shared);
        if (number + 1 < a.num_layers && warp < (a.heads + 2 * a.kv_heads) * a.head_dim / 2) {
            const __nv_bfloat16 *next = row_of(a, turns[(number + 1) % 2], head_pair(a, warp));
            ask_for(next, a.width);
            ask_for(next + (size_t)a.head_dim / 2 * a.width, a.width);
        }
        meet(a.arrived, expected);
        take_rows<ROWS>(a, a.hidden, a.inner, shared);
        add_product<ROWS>(a, layer.down, a.inner, shared);
        meet(a.arrived, expected);
    }
}

#define FEW_ROWS(N) \
    extern "C" __global__ void __launch_bounds__(FEW_THREADS, 1) few_rows_##N(FewRows a) { few_rows<N>(a); }
FEW_ROWS(1)
FEW_ROWS(2)
FEW_ROWS(4)
FEW_ROWS(8)
