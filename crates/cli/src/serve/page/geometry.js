// Cosines of vectors, and their best picture in the plane.

export const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);

function unit(vector) {
  const length = Math.sqrt(dot(vector, vector)) || 1;
  return vector.map((x) => x / length);
}

/** The cosine of each with each. */
export function cosines(vectors) {
  const units = vectors.map(unit);
  return units.map((a) => units.map((b) => dot(a, b)));
}

/**
 * The vectors on their first two principal components, and the share of the variance that these hold.
 * Taken from the inner products of the centred vectors, which are few, not from their many dimensions.
 */
export function plane(vectors) {
  const mean = vectors[0].map((_, i) => vectors.reduce((sum, vector) => sum + vector[i], 0) / vectors.length);
  const centred = vectors.map((vector) => vector.map((x, i) => x - mean[i]));
  const products = centred.map((a) => centred.map((b) => dot(a, b)));
  const all = products.reduce((sum, row, i) => sum + row[i], 0);
  const axes = [axis(products), axis(products)];
  const points = vectors.map((_, i) => axes.map(({ value, vector }) => Math.sqrt(value) * vector[i]));
  return { points, share: all > 1e-8 ? (axes[0].value + axes[1].value) / all : 1 };
}

/** The largest eigenvalue of a symmetric matrix and its vector, by power iteration; they are taken out of the matrix. */
function axis(matrix) {
  let vector = unit(matrix.map((_, i) => Math.sin(i + 1)));
  for (let round = 0; round < 300; round++) vector = unit(matrix.map((row) => dot(row, vector)));
  const value = Math.max(0, dot(vector, matrix.map((row) => dot(row, vector))));
  for (const [i, row] of matrix.entries()) {
    for (const j of row.keys()) row[j] -= value * vector[i] * vector[j];
  }
  return { value, vector };
}
