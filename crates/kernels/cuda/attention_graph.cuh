#pragma once

#include "attention_tensor.cuh"

// Attention within a graph on tensor cores: the forward pass with the sums that the backward pass takes, and that pass.
// Rows are those of attention.cuh, products those of attention_tensor.cuh, sums and the softmax are in f32.
//
// A warp takes 16 rows, or for the gradients of keys 16 keys, and passes over tiles of 32 on the other side, by itself:
// texts that are trained on are short, so that warps of a block often see other keys, and what they share is in the
// first-level cache. Operands go from memory into registers, in orders that let a lane load four neighbours at once:
// - of a step of 16 numbers of a head, lane i loads numbers 4 (i % 4) to 4 (i % 4) + 3 of its row, on both sides alike;
// - of the outputs, column n of the 8 columns of product j is number n * 4 * PARTS + j of a head.

constexpr int WARP_ROWS = 16;

template <int PARTS>
using Left = uint32_t[2 * PARTS][4];
// Two halves of 16 columns each.
using Weights = uint32_t[TILE / 16][4];
// 16 rows times 32 columns.
using Scores = float[TILE / 8][4];
template <int PARTS>
using HeadSums = float[4 * PARTS][4];

// Two rows of a lane, lane / 4 and lane / 4 + 8, as the left side of products. WHOLE as of `four`.
template <int PARTS, bool WHOLE>
__device__ __forceinline__ void load_left(Left<PARTS> &x, const float *upper, const float *lower, int head_dim) {
    int column = threadIdx.x % 4 * 4;
#pragma unroll
    for (int k = 0; k < 2 * PARTS; k++) {
        float4 u = four<WHOLE>(upper, 16 * k + column, head_dim), l = four<WHOLE>(lower, 16 * k + column, head_dim);
        x[k][0] = bf16_pair(u.x, u.y), x[k][1] = bf16_pair(l.x, l.y);
        x[k][2] = bf16_pair(u.z, u.w), x[k][3] = bf16_pair(l.z, l.w);
    }
}

// scores `[16, 32]` = left `[16, H]` * rows^T; row i of 32 is row_of(i), of some row where there is none.
template <int PARTS, bool WHOLE, class RowOf>
__device__ __forceinline__ void multiply_rows(Scores &scores, const Left<PARTS> &left, int head_dim, RowOf row_of) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < TILE / 8; n++) {
        const float *row = row_of(n * 8 + lane / 4);
#pragma unroll
        for (int i = 0; i < 4; i++) scores[n][i] = 0.0f;
#pragma unroll
        for (int k = 0; k < 2 * PARTS; k++) {
            float4 x = four<WHOLE>(row, 16 * k + lane % 4 * 4, head_dim);
            add_product(scores[n], left[k], bf16_pair(x.x, x.y), bf16_pair(x.z, x.w));
        }
    }
}

// Scores as the left side of a product.
__device__ __forceinline__ void round_scores(Weights &weights, const Scores &scores) {
#pragma unroll
    for (int h = 0; h < TILE / 16; h++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float *pair = &scores[2 * h + i / 2][i % 2 * 2];
            weights[h][i] = bf16_pair(pair[0], pair[1]);
        }
    }
}

// sums `[16, H]` += weights `[16, 32]` * rows `[32, H]`; weights of rows that are not there are 0.
template <int PARTS, bool WHOLE, class RowOf>
__device__ __forceinline__ void add_rows(HeadSums<PARTS> &sums, const Weights &weights, int head_dim, RowOf row_of) {
    int lane = threadIdx.x % 32, first = lane / 4 * 4 * PARTS;
#pragma unroll
    for (int h = 0; h < TILE / 16; h++) {
        int at = 16 * h + lane % 4 * 2;
        const float *rows[4] = {row_of(at), row_of(at + 1), row_of(at + 8), row_of(at + 9)};
#pragma unroll
        for (int c = 0; c < PARTS; c++) {
            float4 x[4];
#pragma unroll
            for (int i = 0; i < 4; i++) x[i] = four<WHOLE>(rows[i], first + 4 * c, head_dim);
            add_product(sums[4 * c], weights[h], bf16_pair(x[0].x, x[1].x), bf16_pair(x[2].x, x[3].x));
            add_product(sums[4 * c + 1], weights[h], bf16_pair(x[0].y, x[1].y), bf16_pair(x[2].y, x[3].y));
            add_product(sums[4 * c + 2], weights[h], bf16_pair(x[0].z, x[1].z), bf16_pair(x[2].z, x[3].z));
            add_product(sums[4 * c + 3], weights[h], bf16_pair(x[0].w, x[1].w), bf16_pair(x[2].w, x[3].w));
        }
    }
}

// Writes the sums of row lane / 4, or with `half` 1 of row lane / 4 + 8, times a factor.
template <int PARTS>
__device__ __forceinline__ void write_sums(float *to, const HeadSums<PARTS> &sums, int half, float factor,
                                           int head_dim) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int first = (threadIdx.x % 4 * 2 + i) * 4 * PARTS, at = half * 2 + i;
#pragma unroll
        for (int j = 0; j < 4 * PARTS; j += 4) {
            float4 x = {sums[j][at] * factor, sums[j + 1][at] * factor, sums[j + 2][at] * factor, sums[j + 3][at] * factor};
            put_four(to, first + j, head_dim, x);
        }
    }
}

// The first of the 16 rows or keys that this thread's warp takes.
__device__ __forceinline__ int first_of_warp() { return (blockIdx.x * (THREADS / 32) + threadIdx.x / 32) * WARP_ROWS; }

// The first key from `key` on that one of the warp's rows sees; lanes i and i + 16 have the walk of row i.
__device__ __forceinline__ int next_key_of_warp(const Attention &a, Walk &walk, int key) {
    return warp_min(next_key(a, walk, key));
}

// Which of the tile's keys row lane / 4 sees, with `half` 1 row lane / 4 + 8, from this lane's first on.
__device__ __forceinline__ uint32_t seen_by_row(uint32_t seen, int half) {
    int lane = threadIdx.x % 32;
    return __shfl_sync(ALL_LANES, seen, lane / 4 + half * 8) >> lane % 4 * 2;
}

// Row i of the 16 or 32 from `first` on of `x` `[T, N, H]`, or the last of `rows` in place of one behind it.
__device__ __forceinline__ const float *row_or_last(const Attention &a, const float *x, int row, int rows, int kv_head) {
    return x + row_at(a, min(row, rows - 1), kv_head);
}

// A key's row of keys or values, or that of the last key in place of one behind it.
__device__ __forceinline__ const float *key_or_last(const Attention &a, const float *past, const float *fresh, int key,
                                                    int kv_head) {
    return key_row(a, past, fresh, min(key, a.num_past + a.num_new - 1), kv_head);
}

__device__ __forceinline__ float sum_of_four_lanes(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// As `attention_rows`.
template <int PARTS, bool WHOLE>
__device__ __forceinline__ void attention_graph_rows(const Attention &a, float *out, float *log_sums) {
    int lane = threadIdx.x % 32, rows = a.num_queries * group_of(a), first = first_of_warp(), kv_head = blockIdx.y;
    if (first >= rows) return;
    auto query = [&](int i) { return row_or_last(a, a.q, first + i, rows, kv_head); };
    Left<PARTS> q;
    load_left<PARTS, WHOLE>(q, query(lane / 4), query(lane / 4 + 8), a.head_dim);
    HeadSums<PARTS> sums = {};
    // `total` only over the keys that this lane has.
    float most[2] = {-INFINITY, -INFINITY}, total[2] = {};
    Walk walk = walk_of(a, first + lane % WARP_ROWS);
    for (int at = next_key_of_warp(a, walk, 0); at != INT32_MAX; at = next_key_of_warp(a, walk, at + TILE)) {
        Scores s;
        multiply_rows<PARTS, WHOLE>(s, q, a.head_dim,
                             [&](int i) { return key_or_last(a, a.past_keys, a.new_keys, at + i, kv_head); });
        uint32_t seen = seen_keys(a, walk, at);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t bits = seen_by_row(seen, half);
            float now = most[half], sum = 0.0f;
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float *x = &s[n][half * 2 + i];
                    *x = bits >> (n * 8 + i) & 1 ? score(a, *x) : -INFINITY;
                    now = fmaxf(now, *x);
                }
            }
            now = fmaxf(now, __shfl_xor_sync(ALL_LANES, now, 1));
            now = fmaxf(now, __shfl_xor_sync(ALL_LANES, now, 2));
            // A row that has seen nothing so far has no maximum to subtract.
            float base = now == -INFINITY ? 0.0f : now, rescale = power_of_two((most[half] - base) * LOG2_E);
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float *x = &s[n][half * 2 + i];
                    *x = power_of_two((*x - base) * LOG2_E);
                    sum += *x;
                }
            }
            total[half] = total[half] * rescale + sum;
            most[half] = now;
#pragma unroll
            for (int j = 0; j < 4 * PARTS; j++) sums[j][half * 2] *= rescale, sums[j][half * 2 + 1] *= rescale;
        }
        Weights weights;
        round_scores(weights, s);
        add_rows<PARTS, WHOLE>(sums, weights, a.head_dim,
                        [&](int i) { return key_or_last(a, a.past_values, a.new_values, at + i, kv_head); });
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float whole = sum_of_four_lanes(total[half]);
        int row = first + lane / 4 + half * 8;
        if (row >= rows) continue;
        write_sums<PARTS>(out + row_at(a, row, kv_head), sums, half, whole > 0.0f ? 1.0f / whole : 0.0f, a.head_dim);
        if (lane % 4 == 0) log_sums[(size_t)row * a.kv_heads + kv_head] = most[half] + logf(whole);
    }
}

// A weight of the softmax, and the slope of the loss by the product of its query and key.
struct Slope {
    float weight, slope;
};

__device__ __forceinline__ Slope slope_of(const Attention &a, float product, bool sees, float log_sum, float d_weight,
                                          float mean) {
    float x = score(a, product), p = sees ? power_of_two((x - log_sum) * LOG2_E) : 0.0f;
    return {p, p * (d_weight - mean) * a.scale * cap_slope(a, x)};
}

// d q, and of each row what `attention_means` gives.
template <int PARTS, bool WHOLE>
__device__ __forceinline__ void attention_graph_dq_rows(const Attention &a, const float *y, const float *dy,
                                                        const float *log_sums, float *means, float *dq) {
    int lane = threadIdx.x % 32, rows = a.num_queries * group_of(a), first = first_of_warp(), kv_head = blockIdx.y;
    if (first >= rows) return;
    auto row_of = [&](const float *x, int i) { return row_or_last(a, x, first + i, rows, kv_head); };
    Left<PARTS> q, d;
    load_left<PARTS, WHOLE>(q, row_of(a.q, lane / 4), row_of(a.q, lane / 4 + 8), a.head_dim);
    load_left<PARTS, WHOLE>(d, row_of(dy, lane / 4), row_of(dy, lane / 4 + 8), a.head_dim);
    float log_sum[2], mean[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = lane / 4 + half * 8;
        const float *found = row_of(y, row), *gradient = row_of(dy, row);
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < 2 * PARTS; k++) {
            float4 u = four<WHOLE>(found, 16 * k + lane % 4 * 4, a.head_dim);
            float4 v = four<WHOLE>(gradient, 16 * k + lane % 4 * 4, a.head_dim);
            sum += u.x * v.x + u.y * v.y + u.z * v.z + u.w * v.w;
        }
        mean[half] = sum_of_four_lanes(sum);
        size_t at = (size_t)(first + row) * a.kv_heads + kv_head;
        bool is_there = first + row < rows;
        log_sum[half] = is_there ? log_sums[at] : 0.0f;
        if (is_there && lane % 4 == 0) means[at] = mean[half];
    }
    HeadSums<PARTS> sums = {};
    Walk walk = walk_of(a, first + lane % WARP_ROWS);
    for (int at = next_key_of_warp(a, walk, 0); at != INT32_MAX; at = next_key_of_warp(a, walk, at + TILE)) {
        auto key = [&](int i) { return key_or_last(a, a.past_keys, a.new_keys, at + i, kv_head); };
        Scores s, dp;
        multiply_rows<PARTS, WHOLE>(s, q, a.head_dim, key);
        multiply_rows<PARTS, WHOLE>(dp, d, a.head_dim,
                             [&](int i) { return key_or_last(a, a.past_values, a.new_values, at + i, kv_head); });
        uint32_t seen = seen_keys(a, walk, at);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t bits = seen_by_row(seen, half);
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float *x = &s[n][half * 2 + i];
                    bool sees = bits >> (n * 8 + i) & 1;
                    *x = slope_of(a, *x, sees, log_sum[half], dp[n][half * 2 + i], mean[half]).slope;
                }
            }
        }
        Weights slopes;
        round_scores(slopes, s);
        add_rows<PARTS, WHOLE>(sums, slopes, a.head_dim, key);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = first + lane / 4 + half * 8;
        if (row < rows) write_sums<PARTS>(dq + row_at(a, row, kv_head), sums, half, 1.0f, a.head_dim);
    }
}

// As `attention_dkv_keys`, from the same `queries`.
template <int PARTS, bool WHOLE>
__device__ __forceinline__ void attention_graph_dkv_keys(const Attention &a, const float *dy, const float *log_sums,
                                                         const float *means, const uint2 *queries, float *dk, float *dv) {
    int lane = threadIdx.x % 32, first = first_of_warp(), kv_head = blockIdx.y, group = group_of(a);
    if (first >= a.num_new) return;
    auto key_at = [&](int i) { return ((size_t)(first + i) * a.kv_heads + kv_head) * a.head_dim; };
    auto key = [&](const float *x, int i) { return x + key_at(min(i, a.num_new - 1 - first)); };
    Left<PARTS> k, v;
    load_left<PARTS, WHOLE>(k, key(a.new_keys, lane / 4), key(a.new_keys, lane / 4 + 8), a.head_dim);
    load_left<PARTS, WHOLE>(v, key(a.new_values, lane / 4), key(a.new_values, lane / 4 + 8), a.head_dim);
    HeadSums<PARTS> dk_sums = {}, dv_sums = {};
    int from = queries[first / TILE].x * group, to = queries[first / TILE].y * group;
    for (int at = from; at < to; at += TILE) {
        bool is_there = at + lane < to;
        uint32_t seen = is_there ? seen_keys(a, walk_of(a, at + lane), a.num_past + first) & 0xffff : 0;
        if (!__any_sync(ALL_LANES, seen != 0)) continue;
        size_t of_row = (size_t)(at + lane) * a.kv_heads + kv_head;
        float log_sum = is_there ? log_sums[of_row] : 0.0f, mean = is_there ? means[of_row] : 0.0f;
        auto query = [&](int i) { return row_or_last(a, a.q, at + i, to, kv_head); };
        auto gradient = [&](int i) { return row_or_last(a, dy, at + i, to, kv_head); };
        Scores s, dp;
        multiply_rows<PARTS, WHOLE>(s, k, a.head_dim, query);
        multiply_rows<PARTS, WHOLE>(dp, v, a.head_dim, gradient);
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int row = n * 8 + lane % 4 * 2 + i;
                uint32_t bits = __shfl_sync(ALL_LANES, seen, row) >> lane / 4;
                float sum = __shfl_sync(ALL_LANES, log_sum, row), off = __shfl_sync(ALL_LANES, mean, row);
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float *x = &s[n][half * 2 + i], *d = &dp[n][half * 2 + i];
                    Slope found = slope_of(a, *x, bits >> half * 8 & 1, sum, *d, off);
                    *x = found.weight, *d = found.slope;
                }
            }
        }
        Weights weights;
        round_scores(weights, s);
        add_rows<PARTS, WHOLE>(dv_sums, weights, a.head_dim, gradient);
        round_scores(weights, dp);
        add_rows<PARTS, WHOLE>(dk_sums, weights, a.head_dim, query);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int i = lane / 4 + half * 8;
        if (first + i >= a.num_new) continue;
        write_sums<PARTS>(dk + key_at(i), dk_sums, half, 1.0f, a.head_dim);
        write_sums<PARTS>(dv + key_at(i), dv_sums, half, 1.0f, a.head_dim);
    }
}

// One of two, by whether heads are as wide as their padding.
#define ATTENTION_GRAPH_OF(NAME, PARTS, ...) \
    if (a.head_dim == 32 * PARTS) {          \
        NAME<PARTS, true>(__VA_ARGS__);      \
    } else {                                 \
        NAME<PARTS, false>(__VA_ARGS__);     \
    }

#define ATTENTION_GRAPH(PARTS)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                        \
        attention_graph_##PARTS(Attention a, float *out, float *log_sums) {                                      \
        ATTENTION_GRAPH_OF(attention_graph_rows, PARTS, a, out, log_sums)                                        \
    }                                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                        \
        attention_graph_dq_##PARTS(Attention a, const float *y, const float *dy, const float *log_sums,          \
                                   float *means, float *dq) {                                                    \
        ATTENTION_GRAPH_OF(attention_graph_dq_rows, PARTS, a, y, dy, log_sums, means, dq)                        \
    }                                                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                        \
        attention_graph_dkv_##PARTS(Attention a, const float *dy, const float *log_sums, const float *means,     \
                                    const uint2 *queries, float *dk, float *dv) {                                \
        ATTENTION_GRAPH_OF(attention_graph_dkv_keys, PARTS, a, dy, log_sums, means, queries, dk, dv)             \
    }

// Heads of up to 32, 64, 96 and 128 numbers; registers do not hold sums of wider ones.
ATTENTION_GRAPH(1)
ATTENTION_GRAPH(2)
ATTENTION_GRAPH(3)
ATTENTION_GRAPH(4)
