// What the examples work on: two feature maps with a known answer (what is at p in a is at p + shift in b), and the
// params of match and warp over them. Pointers are the host's for *_cpu and the device's for *_cuda; all else is equal.
#pragma once

#include <cosegflow/match.h>
#include <cosegflow/warp.h>

#include <cstdint>
#include <vector>

constexpr int64_t kChannels = 32, kHeight = 24, kWidth = 40, kPixels = kHeight * kWidth;
constexpr int64_t kShiftX = 3, kShiftY = 2;
constexpr float kBeta = 50;

// Noise in [-0.5, 0.5): the bits of a position, mixed.
inline float noise(int64_t c, int64_t y, int64_t x) {
  uint32_t h = static_cast<uint32_t>((c * 256 + y + 128) * 256 + x + 128);
  h = (h ^ h >> 16) * 2246822519u;
  h = (h ^ h >> 13) * 3266489917u;
  return static_cast<float>((h ^ h >> 16) >> 8) / 16777216.0f - 0.5f;
}

// (C, H, W), contiguous.
inline std::vector<float> features(int64_t shift_x, int64_t shift_y) {
  std::vector<float> f;
  for (int64_t c = 0; c < kChannels; ++c) {
    for (int64_t y = 0; y < kHeight; ++y) {
      for (int64_t x = 0; x < kWidth; ++x) f.push_back(noise(c, y - shift_y, x - shift_x));
    }
  }
  return f;
}

// [params]
inline cosegflow::MatchParams match_params(const float* fa, const float* fb, const float* beta, float* flow, float* lse,
                                           float* confidence) {
  using cosegflow::contiguous_view;
  constexpr auto kFloat32 = cosegflow::DType::kFloat32;
  cosegflow::MatchParams p;
  p.batch = 1, p.channels = kChannels;
  p.height_a = p.height_b = kHeight, p.width_a = p.width_b = kWidth;
  p.fa = contiguous_view(fa, kFloat32, {1, kChannels, kHeight, kWidth});
  p.fb = contiguous_view(fb, kFloat32, {1, kChannels, kHeight, kWidth});
  p.beta = contiguous_view(beta, kFloat32, {1});
  p.flow = contiguous_view(flow, kFloat32, {1, 2, kHeight, kWidth});
  p.lse = contiguous_view(lse, kFloat32, {1, kHeight, kWidth});
  p.confidence = contiguous_view(confidence, kFloat32, {1, kHeight, kWidth});
  return p;  // the masks stay null: every pixel counts
}

inline cosegflow::WarpParams warp_params(const float* x, const float* flow, float* out) {
  using cosegflow::contiguous_view;
  constexpr auto kFloat32 = cosegflow::DType::kFloat32;
  cosegflow::WarpParams p;
  p.batch = 1, p.channels = kChannels;
  p.height = p.out_height = kHeight, p.width = p.out_width = kWidth;
  p.x = contiguous_view(x, kFloat32, {1, kChannels, kHeight, kWidth});
  p.flow = contiguous_view(flow, kFloat32, {1, 2, kHeight, kWidth});
  p.out = contiguous_view(out, kFloat32, {1, kChannels, kHeight, kWidth});
  return p;
}
// [params]
