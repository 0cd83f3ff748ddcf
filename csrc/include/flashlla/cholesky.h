// A symmetric positive definite system in shared memory, solved by all threads of a block.
//
// The lower triangle is stored by tiles of 16 x 16, the right-hand side as one more row below, padded to a row of
// tiles: what eliminates the rows below the pivots turns it into the solution of L y = b.
#pragma once

#include "flashlla/primitives.h"

namespace flashlla {

constexpr int kTile = 16, kTileFloats = kTile * kTile;

// Chunks of 4 columns are permuted by row, so that 8 rows' chunks of one column lie in different banks.
FLASHLLA_BOTH int tile_chunk(int row, int chunk) { return row * kTile + ((chunk ^ (row >> 1)) & 3) * 4; }
FLASHLLA_BOTH int tile_index(int row, int column) { return tile_chunk(row, column / 4) + column % 4; }

FLASHLLA_BOTH float dot(const Float4& a, const Float4& b, float sum) {
  return a.w * b.w + (a.z * b.z + (a.y * b.y + (a.x * b.x + sum)));
}

template <int tiles, int threads>
struct System {
  static constexpr int kFloats = (tiles * (tiles + 1) / 2 + tiles) * kTileFloats;
  static constexpr int kWarps = threads / kWarp;

  float* data;
  float least;  // no pivot is smaller in exact arithmetic

  FLASHLLA_DEVICE float* tile(int row, int column) const { return data + (row * (row + 1) / 2 + column) * kTileFloats; }
  FLASHLLA_DEVICE const Float4& chunk(const float* t, int row, int c) const {
    return *reinterpret_cast<const Float4*>(t + tile_chunk(row, c));
  }
  FLASHLLA_DEVICE float& right_hand_side(int i) const { return tile(tiles, i / kTile)[i % kTile]; }

  // to -= a b^T, by a warp: lane (r, c) computes rows r, r + 8 and columns c, c + 4, c + 8, c + 12.
  FLASHLLA_DEVICE void subtract_product(float* to, const float* a, const float* b) const {
    const int lane = thread_index() % kWarp, r = lane / 4, c = lane % 4;
    float sum[2][4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Float4 a0 = chunk(a, r, i), a1 = chunk(a, r + 8, i);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const Float4 bn = chunk(b, c + 4 * n, i);
        sum[0][n] = dot(a0, bn, sum[0][n]);
        sum[1][n] = dot(a1, bn, sum[1][n]);
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      to[tile_chunk(r, n) + c] -= sum[0][n];
      to[tile_chunk(r + 8, n) + c] -= sum[1][n];
    }
  }

  // 1 / sqrt of a pivot; a NaN stays one.
  FLASHLLA_DEVICE float inverse_root(float pivot) const { return rsqrtf(pivot < least ? least : pivot); }

  // A diagonal tile to its Cholesky factor, by a warp; lane n holds row n % 16. The diagonal becomes reciprocals. Every
  // lane factors the 2 x 2 pivots for itself and scales what it gets of other rows: two columns take one exchange.
  FLASHLLA_DEVICE void factor(float* t) const {
    const int lane = thread_index() % kWarp, row = lane % kTile;
    float a[kTile];
#pragma unroll
    for (int c = 0; c < kTile; ++c) a[c] = t[tile_index(row, c)];
#pragma unroll
    for (int j = 0; j < kTile; j += 2) {
      const float first = inverse_root(shuffle(a[j], j)), corner = shuffle(a[j], j + 1) * first;
      const float second = inverse_root(shuffle(a[j + 1], j + 1) - corner * corner);
      const float x = a[j] * first, y = (a[j + 1] - x * corner) * second;
#pragma unroll
      for (int c = j + 2; c < kTile; ++c) {
        const float cx = shuffle(a[j], c) * first, cy = (shuffle(a[j + 1], c) - cx * corner) * second;
        a[c] -= x * cx + y * cy;
      }
      a[j] = row == j ? first : x;
      a[j + 1] = row == j + 1 ? second : y;
    }
    sync_warp();
    if (lane < kTile)
#pragma unroll
      for (int c = 0; c < kTile; ++c) t[tile_index(row, c)] = a[c];
    sync_warp();
  }

  // The factor's row r times x, without its diagonal: the newest entry of x comes last.
  FLASHLLA_DEVICE float row_product(const float* factor, int r, const float (&x)[kTile]) const {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < r; ++i) sum += factor[tile_index(r, i)] * x[i];
    return sum;
  }

  // Rows below a factored diagonal tile, each by a thread: x with x L^T = row.
  FLASHLLA_DEVICE void eliminate_column(int k) const {
    const float* factor = tile(k, k);
    for (int n = thread_index(); n < (tiles - k) * kTile; n += threads) {
      float *t = tile(k + 1 + n / kTile, k), x[kTile];
#pragma unroll
      for (int c = 0; c < kTile; ++c)
        x[c] = (t[tile_index(n % kTile, c)] - row_product(factor, c, x)) * factor[tile_index(c, c)];
#pragma unroll
      for (int c = 0; c < kTile; ++c) t[tile_index(n % kTile, c)] = x[c];
    }
  }

  // Column k out of the tiles behind it, by all warps but the first.
  FLASHLLA_DEVICE void update_trailing(int k) const {
    const int warp = thread_index() / kWarp;
    int turn = 0;
    for (int i = k + 2; i <= tiles; ++i)
      for (int j = k + 1; j <= min_of(i, tiles - 1); ++j)
        if (turn++ % (kWarps - 1) == warp - 1) subtract_product(tile(i, j), tile(i, k), tile(j, k));
  }

  // A diagonal tile's factor to its inverse, by a warp; lane n computes column n % 16.
  FLASHLLA_DEVICE void invert(float* t) const {
    const int lane = thread_index() % kWarp, column = lane % kTile;
    float x[kTile];
#pragma unroll
    for (int r = 0; r < kTile; ++r) x[r] = ((r == column ? 1.0f : 0.0f) - row_product(t, r, x)) * t[tile_index(r, r)];
    sync_warp();
    if (lane < kTile)
#pragma unroll
      for (int r = 0; r < kTile; ++r) t[tile_index(r, column)] = x[r];
  }

  // L^T x = y from the last tile to the first; y is where the right-hand side was.
  FLASHLLA_DEVICE void substitute_back(float* x) const {
    const int thread = thread_index();
    for (int k = tiles - 1; k >= 0; --k) {
      const float *inverse = tile(k, k), *y = tile(tiles, k);
      if (thread < kTile) {
        float sum = 0.0f;
#pragma unroll
        for (int r = 0; r < kTile; ++r) sum += inverse[tile_index(r, thread)] * y[r];
        x[k * kTile + thread] = sum;
      }
      sync_block();
      for (int n = thread; n < k * kTile; n += threads) {
        const float* t = tile(k, n / kTile);
        float sum = 0.0f;
#pragma unroll
        for (int r = 0; r < kTile; ++r) sum += t[tile_index(r, n % kTile)] * x[k * kTile + r];
        right_hand_side(n) -= sum;
      }
      sync_block();
    }
  }

  // The next diagonal tile is factored while other warps are still busy with the rest of the last update.
  FLASHLLA_DEVICE void solve(float* x) const {
    const int warp = thread_index() / kWarp;
    for (int k = 0; k < tiles; ++k) {
      if (warp == 0) {
        if (k > 0) subtract_product(tile(k, k), tile(k, k - 1), tile(k, k - 1));
        sync_warp();
        factor(tile(k, k));
      } else if (k > 0) {
        update_trailing(k - 1);
      }
      sync_block();
      eliminate_column(k);
      sync_block();
    }
    for (int k = warp; k < tiles; k += kWarps) invert(tile(k, k));
    sync_block();
    substitute_back(x);
  }
};

}  // namespace flashlla
