#pragma once

#include "attention.cuh"

// The forward pass of attention.cuh on tensor cores: products of bf16 numbers with sums in f32, the softmax online in
// f32, as in FlashAttention-2 (arXiv 2307.08691). Rows are as there. A block of four warps takes 64 of them, 16 a warp,
// and passes over tiles of 64 keys, stepping over tiles that none of its rows sees. Scores never leave registers.
//
// Dynamic shared memory is 128 * (32 * PARTS + 8) bytes for each tile of 64 rows of bf16:
//     256 * (32 * PARTS + 8)  for PARTS 1, 2, 3, 4: 10240, 18432, 26624, 34816; queries, later keys, and values,
//     384 * (32 * PARTS + 8)  for PARTS 8:          101376, which is 99 KiB; keys, values and queries.

constexpr int TENSOR_TILE = 64;
constexpr float LOG2_E = 1.4426950408889634f;

// What differs by width of a head.
template <int PARTS>
struct Shape {
    static constexpr int PADDED = 32 * PARTS, STEPS = PADDED / 16;
    // The 16 bytes behind each row put 8 rows that follow each other on banks of their own.
    static constexpr int STRIDE = PADDED + 8;
    // Whether registers hold the queries, and the next tile while the one before it is worked on.
    static constexpr bool IN_REGISTERS = PARTS <= 4;
    // Of a tile a thread loads four rows' parts, as many at once.
    static constexpr int AT_ONCE = IN_REGISTERS ? 4 : 1;
};

template <int PARTS>
using Fetched = float4[Shape<PARTS>::AT_ONCE][PARTS];

// Four matrices of 8 x 8; lane i gives row i % 8 of matrix i / 8 and gets two neighbours in row lane / 4 of each.
__device__ __forceinline__ void load_matrices(uint32_t (&x)[4], const __nv_bfloat16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}

// The same of the matrices' transposes.
__device__ __forceinline__ void load_transposed(uint32_t (&x)[4], const __nv_bfloat16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}

// sums `[16, 8]` += a `[16, 16]` * b `[16, 8]`. A lane has of the sums two neighbours in column lane % 4 * 2 of row
// lane / 4 and two in row lane / 4 + 8.
__device__ __forceinline__ void add_product(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 2 to the power of x, 0 for -infinity.
__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ uint32_t bf16_pair(float x, float y) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
    return *(uint32_t *)&pair;
}

// A key's row of keys or values; none behind the last key.
__device__ __forceinline__ const float *key_row(const Attention &a, const float *past, const float *fresh, int key,
                                                int kv_head) {
    if (key >= a.num_past + a.num_new) return nullptr;
    bool is_past = key < a.num_past;
    return (is_past ? past : fresh) + ((size_t)(is_past ? key : key - a.num_past) * a.kv_heads + kv_head) * a.head_dim;
}

// Which row of 16 a thread loads, and from which column on 4 of each 32 numbers: eight threads take 128 bytes of a row
// together. Neighbouring eights are four rows apart, where their stores of 64 bytes meet no bank twice.
__device__ __forceinline__ int row_to_load() {
    int eight = threadIdx.x / 8;
    return eight / 8 * 8 + eight % 2 * 4 + eight / 2 % 4;
}
__device__ __forceinline__ int column_to_load() { return threadIdx.x % 8 * 4; }

// Four numbers of a row from a column on, zeros behind its end and where `row` is null. WHOLE: there is a row, and heads
// are as wide as their padding; loads stand under no condition then, and many are on their way at once.
template <bool WHOLE>
__device__ __forceinline__ float4 four(const float *row, int column, int head_dim) {
    float4 x = {0.0f, 0.0f, 0.0f, 0.0f};
    if constexpr (WHOLE) return *(const float4 *)(row + column);
    int left = row ? head_dim - column : 0;
    if (head_dim % 4 == 0) {
        if (left > 0) x = *(const float4 *)(row + column);
    } else {
        if (left > 0) x.x = row[column];
        if (left > 1) x.y = row[column + 1];
        if (left > 2) x.z = row[column + 2];
        if (left > 3) x.w = row[column + 3];
    }
    return x;
}

// Writes them.
__device__ __forceinline__ void put_four(float *row, int column, int head_dim, float4 x) {
    int left = head_dim - column;
    if (head_dim % 4 == 0) {
        if (left > 0) *(float4 *)(row + column) = x;
    } else {
        if (left > 0) row[column] = x.x;
        if (left > 1) row[column + 1] = x.y;
        if (left > 2) row[column + 2] = x.z;
        if (left > 3) row[column + 3] = x.w;
    }
}

// This thread's share of a tile, from its row `from` of four on; row i is row_of(i), or zeros where that is null.
template <int PARTS, class RowOf>
__device__ __forceinline__ void fetch(Fetched<PARTS> &x, int from, int head_dim, RowOf row_of) {
    auto load = [&](auto four) {
#pragma unroll
        for (int r = 0; r < Shape<PARTS>::AT_ONCE; r++) {
            const float *row = row_of(row_to_load() + (from + r) * 16);
#pragma unroll
            for (int c = 0; c < PARTS; c++) x[r][c] = four(row, column_to_load() + 32 * c, head_dim);
        }
    };
    if (head_dim == Shape<PARTS>::PADDED) {
        float4 zeros = {0.0f, 0.0f, 0.0f, 0.0f};
        load([&](const float *row, int column, int) { return row ? *(const float4 *)(row + column) : zeros; });
    } else {
        load(four<false>);
    }
}

// Writes what fetch took, times a factor, as bf16.
template <int PARTS>
__device__ __forceinline__ void put(const Fetched<PARTS> &x, int from, __nv_bfloat16 *to, float factor) {
    to += (row_to_load() + from * 16) * Shape<PARTS>::STRIDE + column_to_load();
#pragma unroll
    for (int r = 0; r < Shape<PARTS>::AT_ONCE; r++) {
#pragma unroll
        for (int c = 0; c < PARTS; c++) {
            float4 f = x[r][c];
            uint2 four = {bf16_pair(f.x * factor, f.y * factor), bf16_pair(f.z * factor, f.w * factor)};
            *(uint2 *)(to + r * 16 * Shape<PARTS>::STRIDE + 32 * c) = four;
        }
    }
}

// Loads a tile into shared memory in two halves, so that work between them hides the time that memory takes. Heads that
// leave no registers for that have it all done by the first half. From the first half on until all threads have met
// after the second, nobody may read the tile's place.
template <int PARTS, class RowOf>
__device__ __forceinline__ void begin_tile(Fetched<PARTS> &x, __nv_bfloat16 *to, float factor, int head_dim,
                                           RowOf row_of) {
    if constexpr (Shape<PARTS>::IN_REGISTERS) {
        fetch<PARTS>(x, 0, head_dim, row_of);
    } else {
#pragma unroll 1
        for (int from = 0; from < 4; from++) {
            fetch<PARTS>(x, from, head_dim, row_of);
            put<PARTS>(x, from, to, factor);
        }
    }
}

template <int PARTS>
__device__ __forceinline__ void end_tile(const Fetched<PARTS> &x, __nv_bfloat16 *to, float factor) {
    if constexpr (Shape<PARTS>::IN_REGISTERS) put<PARTS>(x, 0, to, factor);
}

// The first key from `key` on that one of the block's rows sees. Each warp asks for all 64 rows, two a lane, so that
// the block need not meet.
__device__ __forceinline__ int next_key_of_block(const Attention &a, Walk (&walks)[2], int key) {
    int of_first = next_key(a, walks[0], key), of_second = next_key(a, walks[1], key);
    return warp_min(min(of_first, of_second));
}

// What row lane % 16 of the warp's 16 sees of the tile's keys, the first 32 in lanes 0..16 and the others in 16..32.
__device__ __forceinline__ uint32_t seen_by_warp(const Attention &a, const Walk (&walks)[2], int first) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, from = warp % 2 * 16 + lane % 16;
    Walk walk = warp < 2 ? walks[0] : walks[1];
    walk = {__shfl_sync(ALL_LANES, walk.at, from), __shfl_sync(ALL_LANES, walk.end, from)};
    return seen_keys(a, walk, first + lane / 16 * 32);
}

// Products of queries and keys to scores, all times log2(e), so that powers of two make the softmax. Without a cap the
// queries have been scaled.
__device__ __forceinline__ void cap(const Attention &a, float (&s)[8][4]) {
    if (a.softcap == 0.0f) return;
    float top = a.softcap * LOG2_E, slope = 2.0f * LOG2_E * a.scale / a.softcap;
    // tanh(x) = 1 - 2 / (exp(2 x) + 1)
#pragma unroll
    for (int n = 0; n < 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) s[n][i] = top - __fdividef(2.0f * top, power_of_two(s[n][i] * slope) + 1.0f);
    }
}

// Takes from s the scores of keys that the lane's two rows do not see.
__device__ __forceinline__ void hide_unseen(uint32_t seen, float (&s)[8][4]) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
        for (int word = 0; word < 2; word++) {
            uint32_t bits = __shfl_sync(ALL_LANES, seen, lane / 4 + half * 8 + word * 16) >> lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < 4; n++) {
                float *pair = &s[word * 4 + n][half * 2];
                if (!(bits >> n * 8 & 1)) pair[0] = -INFINITY;
                if (!(bits >> n * 8 & 2)) pair[1] = -INFINITY;
            }
        }
    }
}

template <int PARTS>
__device__ __forceinline__ void attention_tensor_rows(const Attention &a, float *out) {
    using S = Shape<PARTS>;
    extern __shared__ float4 shared[];
    __nv_bfloat16 *keys = (__nv_bfloat16 *)shared, *values = keys + TENSOR_TILE * S::STRIDE;
    __nv_bfloat16 *queries = S::IN_REGISTERS ? keys : values + TENSOR_TILE * S::STRIDE;
    int lane = threadIdx.x % 32, of_warp = threadIdx.x / 32 * 16, rows = a.num_queries * group_of(a);
    // Later rows often see more keys: they start first.
    int first = (gridDim.x - 1 - blockIdx.x) * TENSOR_TILE, kv_head = blockIdx.y;
    auto query_row = [&](int i) { return first + i < rows ? a.q + row_at(a, first + i, kv_head) : nullptr; };
    Walk walks[2] = {walk_of(a, first + lane), walk_of(a, first + lane + 32)};
    int at = next_key_of_block(a, walks, 0);
    auto keys_row = [&](int i) { return key_row(a, a.past_keys, a.new_keys, at + i, kv_head); };
    auto values_row = [&](int i) { return key_row(a, a.past_values, a.new_values, at + i, kv_head); };

    // Where this lane's row of matrices begins: for queries and values by the tile's rows, for keys by its columns.
    const __nv_bfloat16 *my_query = queries + (of_warp + lane % 16) * S::STRIDE + lane / 16 * 8;
    const __nv_bfloat16 *my_key = keys + (lane % 8 + lane / 16 * 8) * S::STRIDE + lane / 8 % 2 * 8;
    const __nv_bfloat16 *my_value = values + lane % 16 * S::STRIDE + lane / 16 * 8;

    Fetched<PARTS> on_the_way;
    float factor = a.softcap == 0.0f ? a.scale * LOG2_E : 1.0f;
    begin_tile<PARTS>(on_the_way, queries, factor, a.head_dim, query_row);
    end_tile<PARTS>(on_the_way, queries, factor);
    if (at != INT32_MAX) begin_tile<PARTS>(on_the_way, keys, 1.0f, a.head_dim, keys_row);
    __syncthreads();
    uint32_t q[S::IN_REGISTERS ? S::STEPS : 1][4];
    if constexpr (S::IN_REGISTERS) {
#pragma unroll
        for (int k = 0; k < S::STEPS; k++) load_matrices(q[k], my_query + k * 16);
        __syncthreads();
    }
    if (at != INT32_MAX) end_tile<PARTS>(on_the_way, keys, 1.0f);

    // Of rows lane / 4 and lane / 4 + 8 of the warp's; `total` only over the keys that this lane has.
    float sums[S::PADDED / 8][4] = {}, most[2] = {-INFINITY, -INFINITY}, total[2] = {};
    while (at != INT32_MAX) {
        // From here on the keys are there and nobody needs the last values, from the next meeting on the reverse.
        __syncthreads();
        begin_tile<PARTS>(on_the_way, values, 1.0f, a.head_dim, values_row);
        uint32_t seen = seen_by_warp(a, walks, at), p[4][4];
        bool sees_some = __any_sync(ALL_LANES, seen != 0);
        if (sees_some) {
            float s[8][4] = {};
#pragma unroll
            for (int k = 0; k < S::STEPS; k++) {
                if constexpr (!S::IN_REGISTERS) load_matrices(q[0], my_query + k * 16);
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    uint32_t b[4];
                    load_matrices(b, my_key + n * 16 * S::STRIDE + k * 16);
                    add_product(s[2 * n], q[S::IN_REGISTERS ? k : 0], b[0], b[1]);
                    add_product(s[2 * n + 1], q[S::IN_REGISTERS ? k : 0], b[2], b[3]);
                }
            }
            cap(a, s);
            if (!__all_sync(ALL_LANES, seen == ALL_LANES)) hide_unseen(seen, s);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float now = most[half];
#pragma unroll
                for (int n = 0; n < 8; n++) now = fmaxf(now, fmaxf(s[n][half * 2], s[n][half * 2 + 1]));
                now = fmaxf(now, __shfl_xor_sync(ALL_LANES, now, 1));
                now = fmaxf(now, __shfl_xor_sync(ALL_LANES, now, 2));
                // A row that has seen nothing so far has no maximum to subtract.
                float base = now == -INFINITY ? 0.0f : now, rescale = power_of_two(most[half] - base), sum = 0.0f;
#pragma unroll
                for (int n = 0; n < 8; n++) {
                    float x = power_of_two(s[n][half * 2] - base), y = power_of_two(s[n][half * 2 + 1] - base);
                    sum += x + y;
                    // Sums of one product are laid out as the left side of the next.
                    p[n / 2][n % 2 * 2 + half] = bf16_pair(x, y);
                }
                total[half] = total[half] * rescale + sum;
                most[half] = now;
#pragma unroll
                for (int n = 0; n < S::PADDED / 8; n++) {
                    sums[n][half * 2] *= rescale;
                    sums[n][half * 2 + 1] *= rescale;
                }
            }
        }
        end_tile<PARTS>(on_the_way, values, 1.0f);
        at = next_key_of_block(a, walks, at + TENSOR_TILE);
        __syncthreads();
        if (at != INT32_MAX) begin_tile<PARTS>(on_the_way, keys, 1.0f, a.head_dim, keys_row);
        if (sees_some) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
#pragma unroll
                for (int n = 0; n < S::STEPS; n++) {
                    uint32_t b[4];
                    load_transposed(b, my_value + k * 16 * S::STRIDE + n * 16);
                    add_product(sums[2 * n], p[k], b[0], b[1]);
                    add_product(sums[2 * n + 1], p[k], b[2], b[3]);
                }
            }
        }
        if (at != INT32_MAX) end_tile<PARTS>(on_the_way, keys, 1.0f);
    }
#pragma unroll
    for (int distance = 1; distance <= 2; distance *= 2) {
        for (int half = 0; half < 2; half++) total[half] += __shfl_xor_sync(ALL_LANES, total[half], distance);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = first + of_warp + lane / 4 + half * 8;
        if (row >= rows) continue;
        float inverse = total[half] > 0.0f ? 1.0f / total[half] : 0.0f;
        float *to = out + row_at(a, row, kv_head);
#pragma unroll
        for (int n = 0; n < S::PADDED / 8; n++) {
            int column = n * 8 + lane % 4 * 2;
            if (column < a.head_dim) to[column] = sums[n][half * 2] * inverse;
            if (column + 1 < a.head_dim) to[column + 1] = sums[n][half * 2 + 1] * inverse;
        }
    }
}

#define ATTENTION_BF16(PARTS)                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_bf16_##PARTS(Attention a, float *out) { \
        attention_tensor_rows<PARTS>(a, out);                                                               \
    }

// Heads of up to 32, 64, 96, 128 and 256 numbers.
ATTENTION_BF16(1)
ATTENTION_BF16(2)
ATTENTION_BF16(3)
ATTENTION_BF16(4)
ATTENTION_BF16(8)
