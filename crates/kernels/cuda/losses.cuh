#pragma once

#include "common.cuh"

// Cross-entropy over rows of logits: a block of 1,024 threads a row.

__device__ __forceinline__ float block_max(float x, float *shared) {
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = warp_max(threadIdx.x % 32 < blockDim.x / 32 ? shared[threadIdx.x % 32] : -INFINITY);
    __syncthreads();
    return x;
}

__device__ __forceinline__ double block_sum(double x, double *shared) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? shared[threadIdx.x % 32] : 0.0);
    __syncthreads();
    return x;
}

// Caps the logits in place where `cap` is not 0, and writes the loss of each row and the maximum and the sum of
// exp(logit - maximum) of its softmax. Sums are f64: tens of thousands of small terms beside a large one.
KERNEL cross_entropy(float *logits, const uint32_t *labels, float *nll, float *maxima, float *sums, int vocabulary,
                     float cap) {
    __shared__ float floats[32];
    __shared__ double doubles[32];
    float *row = logits + (size_t)blockIdx.x * vocabulary;
    float most = -INFINITY;
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) {
        float l = row[i];
        if (cap != 0.0f) row[i] = l = cap * tanhf(l / cap);
        most = fmaxf(most, l);
    }
    most = block_max(most, floats);
    double sum = 0.0;
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) sum += (double)expf(row[i] - most);
    sum = block_sum(sum, doubles);
    if (threadIdx.x == 0) {
        nll[blockIdx.x] = (float)((double)most + log(sum) - (double)row[labels[blockIdx.x]]);
        maxima[blockIdx.x] = most;
        sums[blockIdx.x] = (float)sum;
    }
}

// The gradient of each row's loss by its logits, times the row's factor if there are any.
template <typename Out>
__device__ __forceinline__ void slopes(const float *logits, Out *d, const uint32_t *labels, const float *maxima,
                                       const float *sums, const float *factors, int vocabulary, float cap) {
    const float *row = logits + (size_t)blockIdx.x * vocabulary;
    Out *to = d + (size_t)blockIdx.x * vocabulary;
    float most = maxima[blockIdx.x], sum = sums[blockIdx.x], factor = factors ? factors[blockIdx.x] : 1.0f;
    int label = labels[blockIdx.x];
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) {
        float l = row[i];
        float slope = cap != 0.0f ? 1.0f - (l / cap) * (l / cap) : 1.0f;
        store(to + i, factor * (expf(l - most) / sum - (i == label ? 1.0f : 0.0f)) * slope);
    }
}

KERNEL cross_entropy_slopes(const float *logits, float *d, const uint32_t *labels, const float *maxima,
                            const float *sums, const float *factors, int vocabulary, float cap) {
    slopes(logits, d, labels, maxima, sums, factors, vocabulary, cap);
}

KERNEL cross_entropy_slopes_bf16(const float *logits, __nv_bfloat16 *d, const uint32_t *labels, const float *maxima,
                                 const float *sums, const float *factors, int vocabulary, float cap) {
    slopes(logits, d, labels, maxima, sums, factors, vocabulary, cap);
}
