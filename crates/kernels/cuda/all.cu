// Every kernel of the crate in one module. Numbers are f32, row-major; sizes are checked by the callers in src/cuda.

#include "common.cuh"

#include "attention.cuh"
#include "attention_graph.cuh"
#include "attention_tensor.cuh"
#include "elementwise.cuh"
#include "few_rows.cuh"
#include "losses.cuh"
#include "rows.cuh"
