#pragma once

#include "common.cuh"

// Norms: a warp a row.

__device__ __forceinline__ float inverse_rms(const float *x, int width, float eps) {
    float sum = 0.0f;
    for (int i = threadIdx.x % 32; i < width; i += 32) sum += x[i] * x[i];
    return 1.0f / sqrtf(warp_sum(sum) / width + eps);
}

template <typename Out>
__device__ __forceinline__ void rms_norm_rows(const float *x, const float *w, Out *y, int rows, int width, float eps,
                                              float offset) {
    size_t row = thread_number() / 32;
    if (row >= rows) return;
    x += row * width;
    y += row * width;
    float scale = inverse_rms(x, width, eps);
    for (int i = threadIdx.x % 32; i < width; i += 32) store(y + i, x[i] * scale * (w[i] + offset));
}

KERNEL rms_norm(const float *x, const float *w, float *y, int rows, int width, float eps, float offset) {
    rms_norm_rows(x, w, y, rows, width, eps, offset);
}

KERNEL rms_norm_bf16(const float *x, const float *w, __nv_bfloat16 *y, int rows, int width, float eps, float offset) {
    rms_norm_rows(x, w, y, rows, width, eps, offset);
}

// With g = dy * (w + offset) and r = 1 / rms: dx = r * g - x * r^3 * mean(g * x), and what is to be added to it.
KERNEL rms_norm_dx(const float *x, const float *w, const float *dy, float *dx, int rows, int width, float eps,
                   float offset, const float *onto) {
    size_t row = thread_number() / 32;
    if (row >= rows) return;
    x += row * width;
    dy += row * width;
    dx += row * width;
    float r = inverse_rms(x, width, eps), along = 0.0f;
    for (int i = threadIdx.x % 32; i < width; i += 32) along += dy[i] * (w[i] + offset) * x[i];
    float back = r * r * r * warp_sum(along) / width;
    for (int i = threadIdx.x % 32; i < width; i += 32) {
        dx[i] = dy[i] * (w[i] + offset) * r - x[i] * back + (onto ? onto[row * width + i] : 0.0f);
    }
}

// dw of the rows of a block, `[blocks, width]`: each warp its rows in turn, then the warps' sums.
KERNEL rms_norm_dw(const float *x, const float *dy, float *sums, int rows, int width, float eps, int rows_of_block) {
    extern __shared__ float of_warp[];  // [warps, width]
    int warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % 32;
    float *mine = of_warp + warp * width;
    for (int i = lane; i < width; i += 32) mine[i] = 0.0f;
    int first = blockIdx.x * rows_of_block, end = min(rows, first + rows_of_block);
    for (int row = first + warp; row < end; row += warps) {
        const float *of_row = x + (size_t)row * width, *d = dy + (size_t)row * width;
        float r = inverse_rms(of_row, width, eps);
        for (int i = lane; i < width; i += 32) mine[i] += d[i] * of_row[i] * r;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float sum = 0.0f;
        for (int w = 0; w < warps; w++) sum += of_warp[w * width + i];
        sums[(size_t)blockIdx.x * width + i] = sum;
    }
}

KERNEL sum_rows(const float *x, float *y, int rows, int width) {
    int column = thread_number();
    if (column >= width) return;
    float sum = 0.0f;
    for (int row = 0; row < rows; row++) sum += x[(size_t)row * width + column];
    y[column] = sum;
}

// Weighted sums of rows: y[target[i]] (y[i] without targets) = sum of weight * x[source] over the pairs of i.
// A block takes one i.
KERNEL weighted_rows(const float *x, float *y, const uint32_t *offsets, const uint32_t *sources, const float *weights,
                     const uint32_t *targets, int width) {
    int i = blockIdx.x;
    float *to = y + (size_t)(targets ? targets[i] : i) * width;
    for (int column = threadIdx.x; column < width; column += blockDim.x) {
        float sum = 0.0f;
        for (uint32_t pair = offsets[i]; pair < offsets[i + 1]; pair++) {
            sum += weights[pair] * x[(size_t)sources[pair] * width + column];
        }
        to[column] = sum;
    }
}

// y[i] = x[rows[i]], a block a row.
template <typename In, typename Out>
__device__ __forceinline__ void gather(const In *x, Out *y, const uint32_t *rows, int width) {
    const In *from = x + (size_t)rows[blockIdx.x] * width;
    Out *to = y + (size_t)blockIdx.x * width;
    for (int column = threadIdx.x; column < width; column += blockDim.x) store(to + column, load(from + column));
}

KERNEL gather_rows(const float *x, float *y, const uint32_t *rows, int width) { gather(x, y, rows, width); }
KERNEL gather_rows_bf16(const __nv_bfloat16 *x, float *y, const uint32_t *rows, int width) { gather(x, y, rows, width); }
KERNEL gather_rows_as_they_are(const __nv_bfloat16 *x, __nv_bfloat16 *y, const uint32_t *rows, int width) {
    gather(x, y, rows, width);
}

// y[rows[i]] += x[i]; no row twice.
KERNEL add_to_rows(const float *x, float *y, const uint32_t *rows, int width) {
    const float *from = x + (size_t)blockIdx.x * width;
    float *to = y + (size_t)rows[blockIdx.x] * width;
    for (int column = threadIdx.x; column < width; column += blockDim.x) to[column] += from[column];
}

// y[targets[i]] = x[sources[i]]; a target twice would be a race.
KERNEL place_rows(const float *x, float *y, const uint32_t *sources, const uint32_t *targets, int width) {
    const float *from = x + (size_t)sources[blockIdx.x] * width;
    float *to = y + (size_t)targets[blockIdx.x] * width;
    for (int column = threadIdx.x; column < width; column += blockDim.x) to[column] = from[column];
}

KERNEL clear_rows(float *y, const uint32_t *rows, int width) {
    float *to = y + (size_t)rows[blockIdx.x] * width;
    for (int column = threadIdx.x; column < width; column += blockDim.x) to[column] = 0.0f;
}

// y[i] = x[i] * factors[i], a block a row.
KERNEL scale_rows(const float *x, float *y, const float *factors, int width) {
    float factor = factors[blockIdx.x];
    const float *from = x + (size_t)blockIdx.x * width;
    float *to = y + (size_t)blockIdx.x * width;
    for (int column = threadIdx.x; column < width; column += blockDim.x) to[column] = from[column] * factor;
}
