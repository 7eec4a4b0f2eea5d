// Rows of a stored volume to and from score tiles: conversion, and compaction to the allowed targets.
#pragma once

#include <algorithm>

#include "common/arena.h"
#include "common/half.h"
#include "cpu/tile/tile_kernels.h"

namespace cosegflow {

// Row `row` of the tile gets from[index[j]] (index null: from[j]) for j in [0, columns), and 0 up to a whole panel.
template <class S, class T>
void read_tile_row(const S* from, const int64_t* index, int64_t columns, int64_t width, Panels<T> tile, int64_t row) {
  for (int64_t c = 0; c < columns; c += width) {
    T* to = tile.data + c / width * tile.panel_stride + row * width;
    const int64_t live = std::min(width, columns - c);
    if (index == nullptr) {
      for (int64_t j = 0; j < live; ++j) to[j] = static_cast<T>(to_float(from[c + j]));
    } else {
      for (int64_t j = 0; j < live; ++j) to[j] = static_cast<T>(to_float(from[index[c + j]]));
    }
    std::fill(to + live, to + width, T(0));
  }
}

// The way back, through `convert`.
template <class S, class T, class Convert>
void write_tile_row(Panels<const T> tile, int64_t row, const int64_t* index, int64_t columns, int64_t width, S* to,
                    Convert convert) {
  for (int64_t c = 0; c < columns; c += width) {
    const T* from = tile.data + c / width * tile.panel_stride + row * width;
    const int64_t live = std::min(width, columns - c);
    if (index == nullptr) {
      for (int64_t j = 0; j < live; ++j) to[c + j] = convert(from[j]);
    } else {
      for (int64_t j = 0; j < live; ++j) to[index[c + j]] = convert(from[j]);
    }
  }
}

}  // namespace cosegflow
