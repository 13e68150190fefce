#pragma once

#include "common.cuh"

// Four bf16 numbers, read or written at once.
struct alignas(8) Bf16x4 {
    __nv_bfloat162 low, high;
};

__device__ __forceinline__ Bf16x4 round4(float4 x) {
    return {__floats2bfloat162_rn(x.x, x.y), __floats2bfloat162_rn(x.z, x.w)};
}

// How many of `count` numbers can be taken in fours: none where an address is not that of four.
__device__ __forceinline__ size_t in_fours(size_t count, const void *a, const void *b) {
    return (((size_t)a | (size_t)b) % sizeof(float4) == 0) ? count / 4 : 0;
}

KERNEL to_bf16(const float *x, __nv_bfloat16 *y, size_t count) {
    size_t fours = in_fours(count, x, y);
    for (size_t i = thread_number(); i < fours; i += num_threads()) ((Bf16x4 *)y)[i] = round4(((const float4 *)x)[i]);
    for (size_t i = 4 * fours + thread_number(); i < count; i += num_threads()) y[i] = __float2bfloat16(x[i]);
}

constexpr int MOST_RUNS = 8;

struct Runs {
    const float *x[MOST_RUNS];
    size_t from[MOST_RUNS + 1];  // where a run begins in what comes out
};

// Blocks of the second dimension take a run each.
KERNEL runs_to_bf16(Runs runs, __nv_bfloat16 *y) {
    const float *x = runs.x[blockIdx.y];
    size_t from = runs.from[blockIdx.y], count = runs.from[blockIdx.y + 1] - from;
    for (size_t i = thread_number(); i < count; i += num_threads()) y[from + i] = __float2bfloat16(x[i]);
}

KERNEL add(const float *x, const float *y, float *sum, size_t count) {
    for (size_t i = thread_number(); i < count; i += num_threads()) sum[i] = x[i] + y[i];
}

KERNEL multiply(const float *x, const float *y, float *product, size_t count) {
    for (size_t i = thread_number(); i < count; i += num_threads()) product[i] = x[i] * y[i];
}

// Cosines, and behind all of them sines, of position * frequency: `count` of each, in f64 until they are rounded.
KERNEL angles(const uint32_t *positions, const double *frequencies, float *y, size_t count, int width) {
    for (size_t i = thread_number(); i < count; i += num_threads()) {
        double angle = positions[i / width] * frequencies[i % width], s, c;
        sincos(angle, &s, &c);
        y[i] = (float)c, y[count + i] = (float)s;
    }
}

// Turns pairs (x[i], x[i + half]) of every head by the angles of its token; `sign` -1 turns back.
// A block takes a token. `x` and `y` may be the same.
KERNEL rope(const float *x, float *y, const float *cosines, const float *sines, int heads, int half, float sign) {
    size_t token = blockIdx.x, of_token = token * heads * 2 * half;
    for (int i = threadIdx.x; i < heads * half; i += blockDim.x) {
        int at = i % half;
        size_t first = of_token + (i - at) * 2 + at;
        float c = cosines[token * half + at], s = sign * sines[token * half + at];
        float x1 = x[first], x2 = x[first + half];
        y[first] = x1 * c - x2 * s;
        y[first + half] = x2 * c + x1 * s;
    }
}

struct Activated {
    float value, slope;
};

constexpr int SILU = 0;

// QUICK where the result is rounded to bf16: off by some units of f32's last place.
template <bool QUICK>
__device__ __forceinline__ Activated activate(float x, int activation) {
    if (activation == SILU) {
        float s = QUICK ? __fdividef(1.0f, 1.0f + __expf(-x)) : 1.0f / (1.0f + expf(-x));
        return {x * s, s * (1.0f + x * (1.0f - s))};
    }
    const float root = 0.7978845608f, cubic = 0.044715f;  // sqrt(2 / pi)
    float t = tanhf(root * (x + cubic * x * x * x));
    float inner = root * (1.0f + 3.0f * cubic * x * x);
    return {0.5f * x * (1.0f + t), 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * inner};
}

KERNEL gated(const float *gate, const float *up, float *y, size_t count, int activation) {
    for (size_t i = thread_number(); i < count; i += num_threads()) y[i] = activate<false>(gate[i], activation).value * up[i];
}

KERNEL gated_bf16(const float *gate, const float *up, __nv_bfloat16 *y, size_t count, int activation) {
    size_t fours = in_fours(count, gate, up);
    for (size_t i = thread_number(); i < fours; i += num_threads()) {
        float4 g = ((const float4 *)gate)[i], u = ((const float4 *)up)[i];
        ((Bf16x4 *)y)[i] = round4({activate<true>(g.x, activation).value * u.x, activate<true>(g.y, activation).value * u.y,
                                   activate<true>(g.z, activation).value * u.z, activate<true>(g.w, activation).value * u.w});
    }
    for (size_t i = 4 * fours + thread_number(); i < count; i += num_threads()) {
        y[i] = __float2bfloat16(activate<true>(gate[i], activation).value * up[i]);
    }
}

KERNEL gated_backward(const float *gate, const float *up, const float *dy, float *d_gate, float *d_up, size_t count,
                      int activation) {
    for (size_t i = thread_number(); i < count; i += num_threads()) {
        Activated a = activate<false>(gate[i], activation);
        d_gate[i] = dy[i] * up[i] * a.slope;
        d_up[i] = dy[i] * a.value;
    }
}

KERNEL gated_backward_bf16(const float *gate, const float *up, const float *dy, __nv_bfloat16 *d_gate,
                           __nv_bfloat16 *d_up, size_t count, int activation) {
    size_t fours = min(in_fours(count, gate, up), in_fours(count, dy, dy));
    for (size_t i = thread_number(); i < fours; i += num_threads()) {
        float4 g = ((const float4 *)gate)[i], u = ((const float4 *)up)[i], d = ((const float4 *)dy)[i];
        Activated a = activate<true>(g.x, activation), b = activate<true>(g.y, activation);
        Activated c = activate<true>(g.z, activation), e = activate<true>(g.w, activation);
        ((Bf16x4 *)d_gate)[i] = round4({d.x * u.x * a.slope, d.y * u.y * b.slope, d.z * u.z * c.slope, d.w * u.w * e.slope});
        ((Bf16x4 *)d_up)[i] = round4({d.x * a.value, d.y * b.value, d.z * c.value, d.w * e.value});
    }
    for (size_t i = 4 * fours + thread_number(); i < count; i += num_threads()) {
        Activated a = activate<true>(gate[i], activation);
        d_gate[i] = __float2bfloat16(dy[i] * up[i] * a.slope);
        d_up[i] = __float2bfloat16(dy[i] * a.value);
    }
}

struct AdamWRun {
    float *p;
    const float *gradient;
    float *first, *second;
    size_t count;
    float beta1, beta2, eps, decay, step_size, correction, scale, padding;
};

// One step of AdamW as torch takes it; see src/adamw.rs for the corrections that are in `step_size` and `correction`.
// Blocks of the second dimension take a run each.
KERNEL adamw(const AdamWRun *runs) {
    AdamWRun run = runs[blockIdx.y];
    for (size_t i = thread_number(); i < run.count; i += num_threads()) {
        float g = run.gradient[i] * run.scale;
        float m = run.beta1 * run.first[i] + (1.0f - run.beta1) * g;
        float v = run.beta2 * run.second[i] + (1.0f - run.beta2) * g * g;
        run.first[i] = m;
        run.second[i] = v;
        run.p[i] = run.p[i] * run.decay - run.step_size * m / (sqrtf(v) / run.correction + run.eps);
    }
}

struct NumberRun {
    const float *x;
    size_t count;
};

// Sums of squares of equal shares of a run's numbers, one a block; blocks of the second dimension take a run each.
KERNEL sum_squares(const NumberRun *runs, double *sums) {
    __shared__ double of_warp[32];
    NumberRun run = runs[blockIdx.y];
    double sum = 0.0;
    for (size_t i = thread_number(); i < run.count; i += num_threads()) sum += (double)run.x[i] * (double)run.x[i];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = warp_sum(threadIdx.x < blockDim.x / 32 ? of_warp[threadIdx.x] : 0.0);
        if (threadIdx.x == 0) sums[blockIdx.y * gridDim.x + blockIdx.x] = sum;
    }
}
