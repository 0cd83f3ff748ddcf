// What a call of a decoding kernel asks for, and who computes what: rows, their visible keys, and the splits of these.
#pragma once

#include "flashlla/primitives.h"

#ifndef FLASHLLA_MIN_SPLIT
#define FLASHLLA_MIN_SPLIT 1024
#endif

namespace flashlla {

constexpr int kBlock = 64;  // keys that are in shared memory at a time
constexpr int kMinSplit = FLASHLLA_MIN_SPLIT, kMaxSplit = 4 * kMinSplit;
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// A [batch, row, head] array (of vectors whose stride is 1). Strides count elements.
struct Array {
  const void* data;
  int64_t batch_stride, row_stride, head_stride;

  FLASHLLA_BOTH int64_t offset(int64_t batch, int64_t row, int64_t head) const {
    return batch * batch_stride + row * row_stride + head * head_stride;
  }
};

// flashlla/ops/cuda/__init__.py packs this. q, k, v, probe and o hold 16-bit numbers, ridge and gate float32; lse is a
// contiguous float32 array. k and v of a paged cache are [page, slot, head] arrays.
struct Problem {
  Array q, k, v, probe, ridge, gate, o;
  float* lse;
  const void* lengths;  // [batch], of the caches in use
  const int* pages;     // [batch, ...] rows of page numbers, or null
  float* scratch;
  int* counters;        // 0 before and after, one for each group of blocks that merge their states
  int64_t page_stride;  // of a row of page numbers
  float scale;
  int q_len, heads, kv_heads, dim, value_dim;
  int page_size, capacity, window, causal, long_lengths;
  int splits;      // most that any row has
  int first_unit;  // (batch row, key head) of the first block; blocks of a unit are neighbours
  int page_shift;  // log2 of page_size, or -1 where that is no whole number

  FLASHLLA_BOTH int group() const { return heads / kv_heads; }
  FLASHLLA_BOTH int unit_rows() const { return group() * q_len; }
};

struct Range {
  int begin, end;
  FLASHLLA_BOTH int size() const { return end - begin; }
};

// Keys that a query token sees: the mask is aligned to the bottom right.
FLASHLLA_BOTH Range visible_keys(const Problem& p, int batch, int token) {
  const int64_t length =
      p.long_lengths ? static_cast<const int64_t*>(p.lengths)[batch] : static_cast<const int*>(p.lengths)[batch];
  const int n = int(length < 0 ? 0 : length < p.capacity ? length : p.capacity);
  if (!p.causal) return {0, n};
  const int hi = min_of(max_of(token + n - p.q_len + 1, 0), n);
  return {p.window > 0 ? max_of(hi - p.window, 0) : 0, hi};
}

// Keys a split. It depends on the number of visible keys alone, so that no result depends on the batch.
FLASHLLA_BOTH int split_size(int n) {
  int size = kMinSplit;
  while (size < kMaxSplit && int64_t(size) * 8 < n) size *= 2;
  return size;
}
FLASHLLA_BOTH int split_count(int n) { return (n + split_size(n) - 1) / split_size(n); }
FLASHLLA_BOTH Range split_range(Range keys, int split) {
  const int size = split_size(keys.size());
  const int begin = keys.begin + min_of(split * size, keys.size());
  return {begin, min_of(begin + size, keys.end)};
}

// Where the vector of a key begins.
FLASHLLA_BOTH int64_t key_offset(const Problem& p, const Array& a, int batch, int head, int key) {
  if (!p.pages) return a.offset(batch, key, head);
  const int page = p.page_shift >= 0 ? key >> p.page_shift : key / p.page_size;
  return a.offset(p.pages[batch * p.page_stride + page], key - page * p.page_size, head);
}

// A query row: a unit and one of its rows, those of a token side by side.
struct Row {
  int batch, token, head, kv_head;
};
FLASHLLA_BOTH Row row_of(const Problem& p, int unit, int row) {
  const int kv_head = unit % p.kv_heads;
  return {unit / p.kv_heads, row / p.group(), kv_head * p.group() + row % p.group(), kv_head};
}

FLASHLLA_BOTH float value_at(const Array& a, const Row& row) {
  return static_cast<const float*>(a.data)[a.offset(row.batch, row.token, row.head)];
}
template <bool bf16>
FLASHLLA_DEVICE float half_at(const Array& a, const Row& row, int d) {
  return low_half<bf16>(static_cast<const uint16_t*>(a.data)[a.offset(row.batch, row.token, row.head) + d]);
}
template <bool bf16>
FLASHLLA_DEVICE void store_output(const Problem& p, const Row& row, int d, float x) {
  uint16_t* o = static_cast<uint16_t*>(const_cast<void*>(p.o.data));
  o[p.o.offset(row.batch, row.token, row.head) + d] = uint16_t(pack<bf16>(x, 0.0f));
}
FLASHLLA_DEVICE void store_lse(const Problem& p, const Row& row, float max, float sum) {
  p.lse[(int64_t(row.batch) * p.q_len + row.token) * p.heads + row.head] = (max + log2f(sum)) * kLn2;
}

// Whether this block is the last of `blocks` that count on a counter, and may read what all of them have written.
FLASHLLA_DEVICE bool last_of(int* counter, int blocks, int* flag) {
  fence();
  sync_block();
  if (thread_index() == 0) {
    *flag = atomic_add(counter, 1) == blocks - 1;
    if (*flag) *counter = 0;
  }
  sync_block();
  const bool last = *flag;
  fence();
  sync_block();  // the memory of the flag is free from here on
  return last;
}

}  // namespace flashlla
