// A short causal convolution of each channel on a CPU, forward and backward.
#pragma once

#include "matrix.h"

// Mirrored by the ctypes structures of cpu.py, field by field.
extern "C" {
struct ConvProblem {
  std::int64_t batch, tokens, channels, width, threads;
  const void* x;  // (batch, tokens, channels) with the strides below, channels contiguous
  std::int64_t batch_stride, token_stride;
  const void* weight;  // (width, channels)
  const void* state;   // (batch, width - 1, channels)
  void* y;             // (batch, tokens, channels)
};

struct ConvGradients {
  const void* y;  // (batch, tokens, channels)
  void* x;        // (batch, width - 1 + tokens, channels): the state's gradient comes first
  void* weight;   // (batch, width, channels): one an item
};
}

namespace {

// Row t of the inputs, where row 0 is the oldest of the state.
template <class Real>
const Real* input_row(const ConvProblem& p, Size item, Size t) {
  if (t < p.width - 1)
    return static_cast<const Real*>(p.state) + (item * (p.width - 1) + t) * p.channels;
  return static_cast<const Real*>(p.x) + item * p.batch_stride + (t - p.width + 1) * p.token_stride;
}

template <class Real>
void conv_forward(const ConvProblem& p, Size item) {
  const Real* weight = static_cast<const Real*>(p.weight);
  for (Size t = 0; t < p.tokens; ++t) {
    Real* y = static_cast<Real*>(p.y) + (item * p.tokens + t) * p.channels;
    const Real* x = input_row<Real>(p, item, t);
    for (Size c = 0; c < p.channels; ++c) y[c] = weight[c] * x[c];
    for (Size j = 1; j < p.width; ++j) {
      const Real* __restrict x = input_row<Real>(p, item, t + j);
      const Real* __restrict w = weight + j * p.channels;
      for (Size c = 0; c < p.channels; ++c) y[c] += w[c] * x[c];
    }
  }
}

template <class Real>
void conv_backward(const ConvProblem& p, const ConvGradients& d, Size item) {
  const Size rows = p.width - 1 + p.tokens;
  Real* d_x = static_cast<Real*>(d.x) + item * rows * p.channels;
  Real* d_weight = static_cast<Real*>(d.weight) + item * p.width * p.channels;
  zero(rows * p.channels, d_x);
  zero(p.width * p.channels, d_weight);
  for (Size t = 0; t < p.tokens; ++t) {
    const Real* d_y = static_cast<const Real*>(d.y) + (item * p.tokens + t) * p.channels;
    for (Size j = 0; j < p.width; ++j) {
      const Real* __restrict x = input_row<Real>(p, item, t + j);
      const Real* __restrict w = static_cast<const Real*>(p.weight) + j * p.channels;
      Real* __restrict to_x = d_x + (t + j) * p.channels;
      Real* __restrict to_w = d_weight + j * p.channels;
      for (Size c = 0; c < p.channels; ++c) {
        to_x[c] += w[c] * d_y[c];
        to_w[c] += x[c] * d_y[c];
      }
    }
  }
}

template <class Real>
int run_conv(const ConvProblem& p, const ConvGradients* d) noexcept {
  try {
    for_each(p.batch, p.threads, [&](auto next) {
      for (Size item = next(); item < p.batch; item = next())
        if (d == nullptr)
          conv_forward<Real>(p, item);
        else
          conv_backward<Real>(p, *d, item);
    });
  } catch (...) {
    return 1;
  }
  return 0;
}

}  // namespace

extern "C" {
int conv_forward_float32(const ConvProblem* p) { return run_conv<float>(*p, nullptr); }
int conv_forward_float64(const ConvProblem* p) { return run_conv<double>(*p, nullptr); }
int conv_backward_float32(const ConvProblem* p, const ConvGradients* d) {
  return run_conv<float>(*p, d);
}
int conv_backward_float64(const ConvProblem* p, const ConvGradients* d) {
  return run_conv<double>(*p, d);
}
}
