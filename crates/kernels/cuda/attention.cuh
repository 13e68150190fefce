#pragma once

#include "common.cuh"

// Attention under visibility, in f32. The rows of a key head are its queries times the heads that share it: row r is
// query r / group and head r % group of those. A block takes 32 rows (or, for the gradients of keys, 32 keys) and passes
// over tiles of 32 keys (or rows), stepping over tiles that none of its rows sees; no score is kept in memory. Sums run
// online as in FlashAttention (arXiv 2205.14135).
//
// Within a tile a warp takes 8 rows and each lane a key, for scores; then each lane some of the numbers of a head, for
// sums over the tile.

constexpr int TILE = 32;
constexpr int ROWS_OF_WARP = 8;
constexpr int THREADS = 128;

struct Attention {
    const float *q;                                                // [T, N, H]
    const float *past_keys, *past_values, *new_keys, *new_values;  // [past | new, K, H]
    const uint32_t *offsets;                                       // intervals of query t: offsets[t]..offsets[t + 1]
    const uint2 *intervals;                                        // keys from..to, ascending
    int num_past, num_new, num_queries, heads, kv_heads, head_dim;
    float scale, softcap;  // 0: none
};

__device__ __forceinline__ int group_of(const Attention &a) { return a.heads / a.kv_heads; }

// Numbers of a row of `x` `[T, N, H]`.
__device__ __forceinline__ size_t row_at(const Attention &a, int row, int kv_head) {
    int group = group_of(a);
    return ((size_t)(row / group) * a.heads + kv_head * group + row % group) * a.head_dim;
}

__device__ __forceinline__ float score(const Attention &a, float product) {
    float s = a.scale * product;
    return a.softcap != 0.0f ? a.softcap * tanhf(s / a.softcap) : s;
}

// Derivative of the cap at a capped score.
__device__ __forceinline__ float cap_slope(const Attention &a, float s) {
    float t = a.softcap != 0.0f ? s / a.softcap : 0.0f;
    return 1.0f - t * t;
}

// Where a row's walk over its intervals stands.
struct Walk {
    uint32_t at, end;
};

__device__ __forceinline__ Walk walk_of(const Attention &a, int row) {
    if (row >= a.num_queries * group_of(a)) return {0, 0};
    int query = row / group_of(a);
    return {a.offsets[query], a.offsets[query + 1]};
}

// The first key from `key` on that the row sees.
__device__ __forceinline__ int next_key(const Attention &a, Walk &walk, int key) {
    while (walk.at < walk.end && (int)a.intervals[walk.at].y <= key) walk.at++;
    return walk.at < walk.end ? max(key, (int)a.intervals[walk.at].x) : INT32_MAX;
}

// Which of the keys `first..first + 32` the row sees, a bit a key.
__device__ __forceinline__ uint32_t seen_keys(const Attention &a, Walk walk, int first) {
    uint32_t seen = 0;
    for (; walk.at < walk.end; walk.at++) {
        int from = max((int)a.intervals[walk.at].x - first, 0), to = min((int)a.intervals[walk.at].y - first, TILE);
        if (from >= TILE) break;
        if (to > from) seen |= (to - from == 32 ? ALL_LANES : (1u << (to - from)) - 1) << from;
    }
    return seen;
}

// 32 rows of `width` numbers each, `stride` apart in shared memory, zeros behind them.
template <int PADDED>
__device__ __forceinline__ void load_rows(const Attention &a, float *to, int stride, const float *from, int first,
                                          int kv_head) {
    int rows = a.num_queries * group_of(a);
    for (int i = threadIdx.x; i < TILE * PADDED; i += THREADS) {
        int row = i / PADDED, column = i % PADDED;
        bool is_there = first + row < rows && column < a.head_dim;
        to[row * stride + column] = is_there ? from[row_at(a, first + row, kv_head) + column] : 0.0f;
    }
}

template <int PADDED>
__device__ __forceinline__ void load_keys(const Attention &a, float *keys, float *values, int stride, int first,
                                          int kv_head) {
    for (int i = threadIdx.x; i < TILE * PADDED; i += THREADS) {
        int key = first + i / PADDED, column = i % PADDED;
        bool is_past = key < a.num_past, is_there = key < a.num_past + a.num_new && column < a.head_dim;
        size_t at = ((size_t)(is_past ? key : key - a.num_past) * a.kv_heads + kv_head) * a.head_dim + column;
        keys[i / PADDED * stride + column] = is_there ? (is_past ? a.past_keys : a.new_keys)[at] : 0.0f;
        values[i / PADDED * stride + column] = is_there ? (is_past ? a.past_values : a.new_values)[at] : 0.0f;
    }
}

// Products of 8 rows of `a`, the same for all lanes, with this lane's row of `b`.
template <int PADDED>
__device__ __forceinline__ void products(const float *a, int a_stride, const float *b_of_lane, float (&sums)[8]) {
    for (int r = 0; r < ROWS_OF_WARP; r++) sums[r] = 0.0f;
#pragma unroll 4
    for (int h = 0; h < PADDED; h += 4) {
        float4 y = *(const float4 *)(b_of_lane + h);
#pragma unroll
        for (int r = 0; r < ROWS_OF_WARP; r++) {
            float4 x = *(const float4 *)(a + r * a_stride + h);
            sums[r] += x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
        }
    }
}

// sums[r][c] += sum over the tile of weights[r][i] * rows[i][lane + 32 c]; weights `[8, 32]` of this warp.
template <int PARTS>
__device__ __forceinline__ void add_weighted(const float *weights, const float *rows, int stride,
                                             float (&sums)[8][PARTS]) {
    int lane = threadIdx.x % 32;
    for (int i = 0; i < TILE; i += 4) {
        float4 w[ROWS_OF_WARP];
#pragma unroll
        for (int r = 0; r < ROWS_OF_WARP; r++) w[r] = *(const float4 *)(weights + r * TILE + i);
#pragma unroll
        for (int c = 0; c < PARTS; c++) {
            const float *x = rows + i * stride + lane + 32 * c;
            float x0 = x[0], x1 = x[stride], x2 = x[2 * stride], x3 = x[3 * stride];
#pragma unroll
            for (int r = 0; r < ROWS_OF_WARP; r++) {
                sums[r][c] += w[r].x * x0 + w[r].y * x1 + w[r].z * x2 + w[r].w * x3;
            }
        }
    }
}

// Writes `[8, H]` sums of the rows from `first` on.
template <int PARTS>
__device__ __forceinline__ void write_rows(const Attention &a, float *to, int first, int kv_head,
                                           const float (&sums)[8][PARTS]) {
    int lane = threadIdx.x % 32, rows = a.num_queries * group_of(a);
#pragma unroll
    for (int r = 0; r < ROWS_OF_WARP; r++) {
        if (first + r >= rows) continue;
        float *row = to + row_at(a, first + r, kv_head);
#pragma unroll
        for (int c = 0; c < PARTS; c++) {
            if (lane + 32 * c < a.head_dim) row[lane + 32 * c] = sums[r][c];
        }
    }
}

// The next tile of keys that one of the block's rows sees, from `key` on, and what each row sees of it. By the first
// warp, a lane a row; all threads meet before and after.
__device__ __forceinline__ int next_tile(const Attention &a, Walk &walk, int key, uint32_t *seen, int *tile) {
    __syncthreads();
    if (threadIdx.x < TILE) {
        int first = warp_min(next_key(a, walk, key));
        if (first != INT32_MAX) seen[threadIdx.x] = seen_keys(a, walk, first);
        if (threadIdx.x == 0) *tile = first;
    }
    __syncthreads();
    return *tile;
}

// A block's rows over the keys `from..to`: sums weighted by exp(score - most), and the weights' totals.
template <int PARTS>
struct Sums {
    float sums[8][PARTS], most[8], total[8];
};

template <int PARTS>
__device__ __forceinline__ void attend(const Attention &a, int from, int to, Sums<PARTS> &found) {
    constexpr int PADDED = 32 * PARTS, STRIDE = PADDED + 4;
    extern __shared__ float4 shared[];
    float *q = (float *)shared, *keys = q + TILE * PADDED, *values = keys + TILE * STRIDE;
    float *weights = values + TILE * STRIDE;
    __shared__ uint32_t seen[TILE];
    __shared__ int tile;
    int lane = threadIdx.x % 32, first = blockIdx.x * TILE, kv_head = blockIdx.y;
    int of_warp = threadIdx.x / 32 * ROWS_OF_WARP;
    float *mine = weights + of_warp * TILE;
    Walk walk = threadIdx.x < TILE ? walk_of(a, first + threadIdx.x) : Walk{0, 0};
    load_rows<PADDED>(a, q, PADDED, a.q, first, kv_head);
#pragma unroll
    for (int r = 0; r < ROWS_OF_WARP; r++) {
        found.most[r] = -INFINITY, found.total[r] = 0.0f;
#pragma unroll
        for (int c = 0; c < PARTS; c++) found.sums[r][c] = 0.0f;
    }
    for (int at = next_tile(a, walk, from, seen, &tile); at < to; at = next_tile(a, walk, at + TILE, seen, &tile)) {
        load_keys<PADDED>(a, keys, values, STRIDE, at, kv_head);
        __syncthreads();
        float s[8];
        products<PADDED>(q + of_warp * PADDED, PADDED, keys + lane * STRIDE, s);
#pragma unroll
        for (int r = 0; r < ROWS_OF_WARP; r++) {
            bool sees = (seen[of_warp + r] >> lane & 1) && at + lane < to;
            float x = sees ? score(a, s[r]) : -INFINITY;
            float now = fmaxf(found.most[r], warp_max(x));
            // A row that has seen nothing so far has no maximum to subtract.
            float rescale = now == -INFINITY ? 1.0f : expf(found.most[r] - now);
            float p = sees ? expf(x - now) : 0.0f;
            found.total[r] = found.total[r] * rescale + warp_sum(p);
            found.most[r] = now;
#pragma unroll
            for (int c = 0; c < PARTS; c++) found.sums[r][c] *= rescale;
            mine[r * TILE + lane] = p;
        }
        __syncwarp();
        add_weighted<PARTS>(mine, values, STRIDE, found.sums);
    }
}

// `out` `[T, N, H]`; `log_sums` `[T * group, K]`, the logarithm of each row's softmax sum, where it is asked for.
template <int PARTS>
__device__ __forceinline__ void attention_rows(const Attention &a, float *out, float *log_sums) {
    int lane = threadIdx.x % 32, kv_head = blockIdx.y, first = blockIdx.x * TILE + threadIdx.x / 32 * ROWS_OF_WARP;
    Sums<PARTS> found;
    attend<PARTS>(a, 0, INT32_MAX, found);
#pragma unroll
    for (int r = 0; r < ROWS_OF_WARP; r++) {
        float inverse = found.total[r] > 0.0f ? 1.0f / found.total[r] : 0.0f;
#pragma unroll
        for (int c = 0; c < PARTS; c++) found.sums[r][c] *= inverse;
        if (log_sums && lane == 0 && first + r < a.num_queries * group_of(a)) {
            log_sums[(size_t)(first + r) * a.kv_heads + kv_head] = found.most[r] + logf(found.total[r]);
        }
    }
    write_rows<PARTS>(a, out, first, kv_head, found.sums);
}

// As `attention_rows`, the keys shared out among the blocks of the third dimension, `keys_of_share` each: few rows over
// many keys. `shares` `[shares, T, N, H]` are sums that are not yet divided, `stats` `[shares, T * group, K]` each row's
// maximum and total.
template <int PARTS>
__device__ __forceinline__ void attention_share_rows(const Attention &a, int keys_of_share, float *shares,
                                                     float2 *stats) {
    int lane = threadIdx.x % 32, kv_head = blockIdx.y, first = blockIdx.x * TILE + threadIdx.x / 32 * ROWS_OF_WARP;
    size_t rows = (size_t)a.num_queries * a.heads;
    Sums<PARTS> found;
    attend<PARTS>(a, blockIdx.z * keys_of_share, (blockIdx.z + 1) * keys_of_share, found);
#pragma unroll
    for (int r = 0; r < ROWS_OF_WARP; r++) {
        if (lane == 0 && first + r < a.num_queries * group_of(a)) {
            stats[blockIdx.z * rows + (size_t)(first + r) * a.kv_heads + kv_head] = {found.most[r], found.total[r]};
        }
    }
    write_rows<PARTS>(a, shares + blockIdx.z * rows * a.head_dim, first, kv_head, found.sums);
}

// The shares of each row put together; a warp a row.
KERNEL attention_join(Attention a, const float *shares, const float2 *stats, int num_shares, float *out) {
    size_t rows = (size_t)a.num_queries * a.heads, row = thread_number() / 32;
    if (row >= rows) return;
    size_t at = row_at(a, row / a.kv_heads, row % a.kv_heads);
    float most = -INFINITY, total = 0.0f;
    for (int s = 0; s < num_shares; s++) most = fmaxf(most, stats[s * rows + row].x);
    for (int s = 0; s < num_shares; s++) total += stats[s * rows + row].y * expf(stats[s * rows + row].x - most);
    for (int i = threadIdx.x % 32; i < a.head_dim; i += 32) {
        float sum = 0.0f;
        for (int s = 0; s < num_shares; s++) {
            sum += shares[s * rows * a.head_dim + at + i] * expf(stats[s * rows + row].x - most);
        }
        out[at + i] = sum / total;
    }
}

// The product of each row's output with its gradient, `[T * group, K]`: what the softmax takes off every slope.
KERNEL attention_means(Attention a, const float *y, const float *dy, float *means) {
    size_t row = thread_number() / 32;
    if (row >= (size_t)a.num_queries * a.heads) return;
    int lane = threadIdx.x % 32, kv_head = row % a.kv_heads;
    size_t at = row_at(a, row / a.kv_heads, kv_head);
    float sum = 0.0f;
    for (int i = lane; i < a.head_dim; i += 32) sum += y[at + i] * dy[at + i];
    sum = warp_sum(sum);
    if (lane == 0) means[row] = sum;
}

// d q, `[T, N, H]`.
template <int PARTS>
__device__ __forceinline__ void attention_dq_rows(const Attention &a, const float *dy, const float *log_sums,
                                                  const float *means, float *dq) {
    constexpr int PADDED = 32 * PARTS, STRIDE = PADDED + 4;
    extern __shared__ float4 shared[];
    float *q = (float *)shared, *d = q + TILE * PADDED, *keys = d + TILE * PADDED, *values = keys + TILE * STRIDE;
    float *weights = values + TILE * STRIDE;
    __shared__ uint32_t seen[TILE];
    __shared__ int tile;
    int lane = threadIdx.x % 32, first = blockIdx.x * TILE, kv_head = blockIdx.y;
    int of_warp = threadIdx.x / 32 * ROWS_OF_WARP, rows = a.num_queries * group_of(a);
    float *mine = weights + of_warp * TILE;
    Walk walk = threadIdx.x < TILE ? walk_of(a, first + threadIdx.x) : Walk{0, 0};
    load_rows<PADDED>(a, q, PADDED, a.q, first, kv_head);
    load_rows<PADDED>(a, d, PADDED, dy, first, kv_head);
    float sums[8][PARTS] = {}, log_sum[8], mean[8];
    for (int r = 0; r < ROWS_OF_WARP; r++) {
        size_t at = (size_t)(first + of_warp + r) * a.kv_heads + kv_head;
        bool is_there = first + of_warp + r < rows;
        log_sum[r] = is_there ? log_sums[at] : 0.0f;
        mean[r] = is_there ? means[at] : 0.0f;
    }
    for (int at = next_tile(a, walk, 0, seen, &tile); at != INT32_MAX;
         at = next_tile(a, walk, at + TILE, seen, &tile)) {
        load_keys<PADDED>(a, keys, values, STRIDE, at, kv_head);
        __syncthreads();
        float s[8], dp[8];
        products<PADDED>(q + of_warp * PADDED, PADDED, keys + lane * STRIDE, s);
        products<PADDED>(d + of_warp * PADDED, PADDED, values + lane * STRIDE, dp);
#pragma unroll
        for (int r = 0; r < ROWS_OF_WARP; r++) {
            float x = score(a, s[r]);
            float p = seen[of_warp + r] >> lane & 1 ? expf(x - log_sum[r]) : 0.0f;
            mine[r * TILE + lane] = p * (dp[r] - mean[r]) * a.scale * cap_slope(a, x);
        }
        __syncwarp();
        add_weighted<PARTS>(mine, keys, STRIDE, sums);
    }
    write_rows<PARTS>(a, dq, first + of_warp, kv_head, sums);
}

// d k and d v of the new keys, `[S_new, K, H]` each. `queries` has, of each tile of 32 new keys, the queries from..to
// among which are all that see one of its keys.
template <int PARTS>
__device__ __forceinline__ void attention_dkv_keys(const Attention &a, const float *dy, const float *log_sums,
                                                   const float *means, const uint2 *queries, float *dk, float *dv) {
    constexpr int PADDED = 32 * PARTS, STRIDE = PADDED + 4;
    extern __shared__ float4 shared[];
    float *keys = (float *)shared, *values = keys + TILE * PADDED, *q = values + TILE * PADDED;
    float *d = q + TILE * STRIDE, *weights = d + TILE * STRIDE, *slopes = weights + TILE * TILE;
    __shared__ uint32_t seen[TILE];
    int lane = threadIdx.x % 32, first = blockIdx.x * TILE, kv_head = blockIdx.y, group = group_of(a);
    int of_warp = threadIdx.x / 32 * ROWS_OF_WARP, rows = a.num_queries * group;
    float *my_weights = weights + of_warp * TILE, *my_slopes = slopes + of_warp * TILE;
    load_keys<PADDED>(a, keys, values, PADDED, a.num_past + first, kv_head);
    float dk_sums[8][PARTS] = {}, dv_sums[8][PARTS] = {};
    int from = queries[blockIdx.x].x * group, to = queries[blockIdx.x].y * group;
    for (int at = from; at < to; at += TILE) {
        __syncthreads();
        uint32_t mine = 0;
        if (threadIdx.x < TILE && at + (int)threadIdx.x < to) {
            mine = seen_keys(a, walk_of(a, at + threadIdx.x), a.num_past + first);
        }
        if (threadIdx.x < TILE) seen[threadIdx.x] = mine;
        if (!__syncthreads_or(mine != 0)) continue;
        load_rows<PADDED>(a, q, STRIDE, a.q, at, kv_head);
        load_rows<PADDED>(a, d, STRIDE, dy, at, kv_head);
        bool is_there = at + lane < rows;
        size_t row = (size_t)(at + lane) * a.kv_heads + kv_head;
        float log_sum = is_there ? log_sums[row] : 0.0f, mean = is_there ? means[row] : 0.0f;
        __syncthreads();
        float s[8], dp[8];
        products<PADDED>(keys + of_warp * PADDED, PADDED, q + lane * STRIDE, s);
        products<PADDED>(values + of_warp * PADDED, PADDED, d + lane * STRIDE, dp);
#pragma unroll
        for (int r = 0; r < ROWS_OF_WARP; r++) {
            float x = score(a, s[r]);
            float p = seen[lane] >> (of_warp + r) & 1 ? expf(x - log_sum) : 0.0f;
            my_weights[r * TILE + lane] = p;
            my_slopes[r * TILE + lane] = p * (dp[r] - mean) * a.scale * cap_slope(a, x);
        }
        __syncwarp();
        add_weighted<PARTS>(my_weights, d, STRIDE, dv_sums);
        add_weighted<PARTS>(my_slopes, q, STRIDE, dk_sums);
    }
#pragma unroll
    for (int r = 0; r < ROWS_OF_WARP; r++) {
        int key = first + of_warp + r;
        if (key >= a.num_new) continue;
        size_t row = ((size_t)key * a.kv_heads + kv_head) * a.head_dim;
#pragma unroll
        for (int c = 0; c < PARTS; c++) {
            int column = lane + 32 * c;
            if (column >= a.head_dim) continue;
            dk[row + column] = dk_sums[r][c];
            dv[row + column] = dv_sums[r][c];
        }
    }
}

#define ATTENTION(PARTS)                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                       \
        attention_##PARTS(Attention a, float *out, float *log_sums) {                                           \
        attention_rows<PARTS>(a, out, log_sums);                                                                \
    }                                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                       \
        attention_share_##PARTS(Attention a, int keys_of_share, float *shares, float2 *stats) {                 \
        attention_share_rows<PARTS>(a, keys_of_share, shares, stats);                                           \
    }                                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_dq_##PARTS(                                 \
        Attention a, const float *dy, const float *log_sums, const float *means, float *dq) {                   \
        attention_dq_rows<PARTS>(a, dy, log_sums, means, dq);                                                   \
    }                                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                       \
        attention_dkv_##PARTS(Attention a, const float *dy, const float *log_sums, const float *means,          \
                              const uint2 *queries, float *dk, float *dv) {                                     \
        attention_dkv_keys<PARTS>(a, dy, log_sums, means, queries, dk, dv);                                     \
    }

// Heads of up to 32, 64, 96, 128 and 256 numbers.
ATTENTION(1)
ATTENTION(2)
ATTENTION(3)
ATTENTION(4)
ATTENTION(8)
