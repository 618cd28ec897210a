// Products of small matrices in vector registers, aligned scratch memory, and a loop over threads.
//
// KAIROS_VECTOR_BYTES is the vector width: wider than the machine's registers is very slow, so it
// follows the flags that this is compiled with.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#ifndef KAIROS_VECTOR_BYTES
#if defined(__AVX512F__)
#define KAIROS_VECTOR_BYTES 64
#elif defined(__AVX__)
#define KAIROS_VECTOR_BYTES 32
#else
#define KAIROS_VECTOR_BYTES 16
#endif
#endif

namespace {

using Size = std::int64_t;

constexpr Size kAlign = 64;
// Registers hold kRows x kColumns vectors of a product; 16 of the 32 registers of AVX-512, 8 of 16
// below it.
constexpr int kRows = 4;
constexpr int kColumns = KAIROS_VECTOR_BYTES >= 64 ? 4 : 2;

template <class Real>
struct Lanes {
  typedef Real Vector __attribute__((vector_size(KAIROS_VECTOR_BYTES), may_alias));
  static constexpr Size count = KAIROS_VECTOR_BYTES / sizeof(Real);
  static Size padded(Size n) { return (n + count - 1) / count * count; }
};

// c (Rows, Columns vectors) += a (Rows, inner) b (inner, Columns vectors); a has any strides.
// Unrolled, so that the sums stay in registers: three times faster.
template <class Real, int Rows, int Columns>
inline void tile(Size inner, const Real* a, Size a_row, Size a_inner, const Real* b, Size b_row,
                 Real* c, Size c_row) {
  using Vector = typename Lanes<Real>::Vector;
  constexpr Size lanes = Lanes<Real>::count;
  Vector sum[Rows][Columns];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < Columns; ++j) sum[r][j] = *(const Vector*)(c + r * c_row + j * lanes);
  for (Size l = 0; l < inner; ++l) {
    Vector row[Columns];
#pragma GCC unroll 8
    for (int j = 0; j < Columns; ++j) row[j] = *(const Vector*)(b + l * b_row + j * lanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const Real factor = a[r * a_row + l * a_inner];
#pragma GCC unroll 8
      for (int j = 0; j < Columns; ++j) sum[r][j] += factor * row[j];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < Columns; ++j) *(Vector*)(c + r * c_row + j * lanes) = sum[r][j];
}

template <class Real, int Rows>
inline void strip(Size columns, Size inner, const Real* a, Size a_row, Size a_inner, const Real* b,
                  Size b_row, Real* c, Size c_row) {
  constexpr Size lanes = Lanes<Real>::count;
  Size n = 0;
  for (; n + kColumns * lanes <= columns; n += kColumns * lanes)
    tile<Real, Rows, kColumns>(inner, a, a_row, a_inner, b + n, b_row, c + n, c_row);
  for (; n < columns; n += lanes)
    tile<Real, Rows, 1>(inner, a, a_row, a_inner, b + n, b_row, c + n, c_row);
}

// c (rows, columns) += a (rows, inner) b (inner, columns); columns is a whole number of vectors.
template <class Real>
void multiply(Size rows, Size columns, Size inner, const Real* a, Size a_row, Size a_inner,
              const Real* b, Size b_row, Real* c, Size c_row) {
  Size m = 0;
  for (; m + kRows <= rows; m += kRows)
    strip<Real, kRows>(columns, inner, a + m * a_row, a_row, a_inner, b, b_row, c + m * c_row,
                       c_row);
  for (; m < rows; ++m)
    strip<Real, 1>(columns, inner, a + m * a_row, a_row, a_inner, b, b_row, c + m * c_row, c_row);
}

template <class Real>
inline void scale_by(Size n, Real factor, Real* x) {
  for (Size i = 0; i < n; ++i) x[i] *= factor;
}

template <class Real>
inline Real dot(Size n, const Real* x, const Real* y) {  // n is a whole number of vectors
  using Vector = typename Lanes<Real>::Vector;
  constexpr Size lanes = Lanes<Real>::count;
  Vector sum = {};
  for (Size i = 0; i < n; i += lanes) sum += *(const Vector*)(x + i) * *(const Vector*)(y + i);
  Real total = 0;
  for (Size i = 0; i < lanes; ++i) total += sum[i];
  return total;
}

template <class Real>
inline void zero(Size n, Real* x) {
  std::memset(x, 0, n * sizeof(Real));
}

// One block of memory, handed out in aligned pieces that start as zeros.
template <class Real>
class Scratch {
 public:
  explicit Scratch(Size numbers) {
    bytes_ = (numbers * sizeof(Real) + kAlign - 1) / kAlign * kAlign;
    memory_ = static_cast<Real*>(std::aligned_alloc(kAlign, bytes_));
    if (memory_ == nullptr) throw std::bad_alloc();
    clear();
    next_ = memory_;
  }
  ~Scratch() { std::free(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  Real* take(Size numbers) {
    Real* piece = next_;
    const Size step = kAlign / sizeof(Real);
    next_ += (numbers + step - 1) / step * step;
    return piece;
  }
  void clear() { std::memset(memory_, 0, bytes_); }

 private:
  Size bytes_;
  Real* memory_;
  Real* next_;
};

// Run work(item) for every item, on several threads when there is enough to do.
template <class Work>
void for_each(Size items, Size threads, const Work& work) {
  threads = std::min(threads, items);
  std::atomic<Size> next{0};
  std::atomic<bool> failed{false};
  auto run = [&] {
    try {
      work([&] { return next.fetch_add(1); });
    } catch (...) {
      failed = true;
    }
  };
  std::vector<std::thread> others;
  try {
    for (Size i = 1; i < threads; ++i) others.emplace_back(run);
  } catch (...) {  // no further thread to be had: those that run do the work
  }
  run();
  for (auto& other : others) other.join();
  if (failed) throw std::bad_alloc();
}

}  // namespace
