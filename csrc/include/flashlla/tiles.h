// Blocks of keys or values in shared memory. Rows are 16 bytes longer than they need be: 8 rows' chunks of one column
// lie in different banks, which is what ldmatrix reads at a time.
#pragma once

#include "flashlla/problem.h"

namespace flashlla {

template <int columns>
constexpr int kPitch = columns + 8;
template <int columns>
constexpr int kTileBytes = kBlock * kPitch<columns> * 2;

// How the threads of a block share a tile: each has one column of chunks, of every kStep-th row.
template <int columns, int threads>
struct Lanes {
  static constexpr int kChunks = columns / 8, kStep = threads / kChunks;
  int chunk, first;
  FLASHLLA_DEVICE Lanes() : chunk(thread_index() % kChunks), first(thread_index() / kChunks) {}
};

// Eight numbers of a row of `count`, at any address; those that do not exist are 0.
FLASHLLA_DEVICE Chunk gather(const uint16_t* from, int count) {
  Chunk to;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t low = 2 * i < count ? from[2 * i] : 0, high = 2 * i + 1 < count ? from[2 * i + 1] : 0;
    to.word[i] = low | high << 16;
  }
  return to;
}

// Begins to copy the keys `block` .. `block` + kBlock that lie in `keys`, columns from `column` on of `width`; what
// else is in the tile becomes 0. Nothing outside `keys` is read.
template <int columns, int threads, bool aligned>
FLASHLLA_DEVICE void load_tile(const Problem& p, const Array& a, const Row& row, Range keys, int block, int column,
                               int width, uint16_t* tile) {
  const Lanes<columns, threads> lane;
  column += lane.chunk * 8;
#pragma unroll 4
  for (int r = lane.first; r < kBlock; r += lane.kStep) {
    const int key = block + r;
    const int count = key < keys.begin || key >= keys.end ? 0 : min_of(max_of(width - column, 0), 8);
    const int64_t offset = count ? key_offset(p, a, row.batch, row.kv_head, key) + column : 0;
    const uint16_t* from = static_cast<const uint16_t*>(a.data) + offset;
    uint16_t* to = tile + r * kPitch<columns> + lane.chunk * 8;
    if (aligned)
      copy_async(to, from, count * 2);
    else
      *reinterpret_cast<Chunk*>(to) = gather(from, count);
  }
}

// A vector of q or probe, padded with zeros; one call a thread and chunk.
FLASHLLA_DEVICE void load_vector(const Array& a, const Row& row, int dim, int chunk, uint16_t* to) {
  const uint16_t* from = static_cast<const uint16_t*>(a.data) + a.offset(row.batch, row.token, row.head) + chunk * 8;
  *reinterpret_cast<Chunk*>(to + chunk * 8) = gather(from, dim - chunk * 8);
}

}  // namespace flashlla
