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

// As below, where offset_of(r) says where the vector of key `block` + r begins.
template <int columns, int threads, bool aligned, class Offset>
FLASHLLA_DEVICE void load_rows(const void* data, const Offset& offset_of, Range keys, int block, int column, int width,
                               uint16_t* tile) {
  const Lanes<columns, threads> lane;
  column += lane.chunk * 8;
  const int chunk = min_of(max_of(width - column, 0), 8);
#pragma unroll
  for (int n = 0; n < kBlock / lane.kStep; ++n) {
    const int r = lane.first + n * lane.kStep;
    const int count = block + r < keys.begin || block + r >= keys.end ? 0 : chunk;
    const uint16_t* from = static_cast<const uint16_t*>(data) + (count ? offset_of(r) + column : 0);
    uint16_t* to = tile + r * kPitch<columns> + lane.chunk * 8;
    if (aligned)
      copy_async(to, from, count * 2);
    else
      *reinterpret_cast<Chunk*>(to) = gather(from, count);
  }
}

// Begins to copy the keys `block` .. `block` + kBlock that lie in `keys`, columns from `column` on of `width`; what
// else is in the tile becomes 0. Nothing outside `keys` is read.
template <int columns, int threads, bool aligned>
FLASHLLA_DEVICE void load_tile(const Problem& p, const Array& a, const Row& row, Range keys, int block, int column,
                               int width, uint16_t* tile) {
  const int64_t first = a.offset(row.batch, block, row.kv_head);
  const auto paged = [&](int r) { return key_offset(p, a, row.batch, row.kv_head, block + r); };
  const auto in_one_piece = [&](int r) { return first + r * a.row_stride; };
  if (p.pages)
    load_rows<columns, threads, aligned>(a.data, paged, keys, block, column, width, tile);
  else
    load_rows<columns, threads, aligned>(a.data, in_one_piece, keys, block, column, width, tile);
}

// A vector of q or probe, padded with zeros; one call a thread and chunk.
FLASHLLA_DEVICE void load_vector(const Array& a, const Row& row, int dim, int chunk, uint16_t* to) {
  const uint16_t* from = static_cast<const uint16_t*>(a.data) + a.offset(row.batch, row.token, row.head) + chunk * 8;
  *reinterpret_cast<Chunk*>(to + chunk * 8) = gather(from, dim - chunk * 8);
}

}  // namespace flashlla
